"""Arrow files as `datasets` keeps a data set in its cache: `NAME-SPLIT.arrow`, or `NAME-SPLIT-00000-of-00002.arrow`.

Beside them `dataset_info.json` says how many rows each split has. Files that begin with `cache-` or `tmp` are what
`map`, `filter` and `sort` kept or were writing: other rows than those of the data set, or only their numbers.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from volgrowth.errors import DataError
from volgrowth.sources.readers.splits import split_of
from volgrowth.storage.failures import store_reason

INFO_FILE = "dataset_info.json"
_KEPT = re.compile(r"(cache-|tmp)[^/]*\.arrow")
_CACHED = re.compile(r"(?P<stem>.+?)(?P<shard>-(?P<index>\d{5})-of-(?P<count>\d{5}))?\.arrow")
_FEATHER = b"ARROW1"


def is_kept_result(name: str) -> bool:
    """Return whether an arrow file is what `map` or `filter` kept, by its name."""
    return _KEPT.fullmatch(name) is not None


def files_by_split(names: Iterable[str], infos: dict[str, Any], where: str) -> dict[str, list[str]]:
    """Return the names of arrow files of a cache by the split that they tell, in order.

    Args:
        names: of the files in one folder.
        infos: the splits that `dataset_info.json` describes, by name.
        where: the folder, or the file or pattern that the user named, which may be some of a split's files.

    Raises:
        DataError: a split lacks one of its files.
    """
    found: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    for name in sorted(names):
        match = _CACHED.fullmatch(name)
        if match is None or is_kept_result(name):
            continue
        split = _split(match["stem"], match["shard"] or "", infos)
        found.setdefault(split, []).append(name)
        counts[split] = int(match["count"] or 1)
    for split, files in found.items() if not where.lower().endswith(".arrow") else ():
        if len(files) != counts[split]:
            raise DataError(
                f"split {split!r} of {where} has {counts[split]} arrow files by their names, and {len(files)} are "
                f"there ({', '.join(files[:3])}): restore the others, or load the data set again"
            )
    return found


def load_arrow_files(folder: Path, names: Iterable[str], split: str, infos: dict[str, Any]) -> Any:
    """Return the rows of arrow files as one `datasets.Dataset`, which maps them into memory.

    Args:
        folder: where they lie.
        names: of the files, in order.
        split: the split that they are.
        infos: the splits that `dataset_info.json` describes, by name.

    Raises:
        DataError: a file cannot be read, the files do not agree, or they have other rows than `dataset_info.json` says.
    """
    from datasets import (  # a second to import, and only some data sets need it
        Dataset,
        NamedSplit,
        concatenate_datasets,
    )

    parts = []
    for name in names:
        path = folder / name
        try:
            with open(path, "rb") as stream:
                if stream.read(len(_FEATHER)) == _FEATHER:
                    raise DataError(
                        f"{path} is an arrow file of the file format (Feather), which is not read: write it as "
                        "parquet, pyarrow.parquet.write_table(pyarrow.feather.read_table(...), ...)"
                    )
            parts.append(Dataset.from_file(str(path), split=NamedSplit(split)))
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise DataError(
                f"{path} cannot be read as arrow ({store_reason(error)}): it was cut off or damaged; load the data set "
                "again"
            ) from None
    try:
        dataset = concatenate_datasets(parts)
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise DataError(
            f"the arrow files of split {split!r} of {folder} do not have the same columns ({store_reason(error)}): "
            "name one of them, or load the data set again"
        ) from None
    expected = (infos.get(split) or {}).get("num_examples")
    if isinstance(expected, int) and expected != len(dataset):
        raise DataError(
            f"split {split!r} of {folder} has {len(dataset)} rows, and {expected} by {INFO_FILE}: it was cut off or "
            "damaged; load the data set again"
        )
    return dataset


def described_splits(folder: Path) -> dict[str, Any]:
    """Return what `dataset_info.json` of a folder says of each split; nothing if it is not there or says nothing."""
    try:
        splits = json.loads((folder / INFO_FILE).read_text())["splits"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    found = splits if isinstance(splits, dict) else {}
    return {name: said for name, said in found.items() if isinstance(said, dict)}


def _split(stem: str, shard: str, infos: dict[str, Any]) -> str:
    described = [name for name in infos if stem == name or stem.endswith(f"-{name}")]
    name, _, last = stem.rpartition("-")
    return max(described, key=len) if described else split_of(last + shard if name else last)
