"""From what a user typed to a `Source`."""

import glob
import os
import re
from pathlib import Path

from volgrowth.errors import DataError
from volgrowth.sources.arrow import ArrowSource
from volgrowth.sources.base import Source
from volgrowth.sources.decode import EXTENSIONS
from volgrowth.sources.folder import FolderSource, files_below
from volgrowth.sources.hub import HubSource
from volgrowth.sources.parquet import ParquetSource

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FILES = EXTENSIONS | {".parquet", ".arrow", ".csv", ".json", ".jsonl", ".zip", ".tar", ".gz", ".npz", ".txt"}
_EXPECTED = "parquet files, a save_to_disk folder, a folder of images, or an id on the Hugging Face hub"


def open_source(
    data: str, split: str | None = None, image_column: str | None = None, id_column: str | None = None
) -> Source:
    """Open a data set by what it is.

    A path that exists decides by what it holds, the first of these that fits:

    1. a `.parquet` file: its rows
    2. a folder with `state.json` or `dataset_dict.json`: a data set written by `save_to_disk`
    3. a folder with parquet files in it or below: their rows, by the split their names tell
    4. a folder with image files in it or below: one row a file

    Otherwise a pattern such as `data/*.parquet` takes the parquet files it matches, and `name` or `org/name`
    is loaded from the Hugging Face hub.

    Args:
        data: a path, a pattern or an id
        split: needed when there are several
        image_column: needed when several columns hold images
        id_column: gives `Row.image_id`, else the hash of the encoded image

    Raises:
        DataError: nothing there, or not what was expected; the message says which, and the fix.
    """
    if not data.strip():
        raise DataError(f"no data set was given (got {data!r}): expected {_EXPECTED}")
    if "://" in data:
        raise DataError(f"{data} is a URL, which is not read as a data set: download it first, and pass {_EXPECTED}")
    path = os.path.expanduser(data)
    if os.path.exists(path):
        return _open_path(Path(path), split, image_column, id_column)
    if glob.has_magic(path):
        return _open_pattern(path, split, image_column, id_column)
    if _HUB_ID.fullmatch(data) and Path(data).suffix.lower() not in _FILES:
        return HubSource(data, split, image_column, id_column)
    raise DataError(f"{data} does not exist (looked in {Path.cwd()}): expected {_EXPECTED}")


def _open_path(path: Path, split: str | None, image_column: str | None, id_column: str | None) -> Source:
    if not path.is_dir():
        if path.suffix.lower() != ".parquet":
            raise DataError(f"{path} is a file and not parquet: expected {_EXPECTED}")
        return ParquetSource(path.parent, [path.name], split, image_column, id_column)
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return ArrowSource(path, split, image_column, id_column)
    names = [file.relative_to(path).as_posix() for file in files_below(path) if file.suffix.lower() == ".parquet"]
    if names:
        return ParquetSource(path, names, split, image_column, id_column)
    if image_column or id_column:
        given = "image_column" if image_column else "id_column"
        raise DataError(
            f"{path} holds no table, so {given} {image_column or id_column!r} has no meaning there: expected "
            f"a folder with parquet files or one written by save_to_disk, or leave {given} out "
            "for a folder of images"
        )
    return FolderSource(path, split)


def _open_pattern(pattern: str, split: str | None, image_column: str | None, id_column: str | None) -> Source:
    files = [name for name in glob.glob(pattern, recursive=True) if os.path.isfile(name)]
    if not files:
        raise DataError(f"{pattern} does not exist, and as a pattern it matches no file (looked in {Path.cwd()})")
    if odd := [name for name in files if Path(name).suffix.lower() != ".parquet"]:
        raise DataError(f"{pattern} matches {odd[0]}, which is not parquet: make it match parquet files only")
    # Names start where the pattern does, so that they do not depend on which files happen to match.
    head = re.split(r"[*?\[]", pattern)[0]
    root = Path(os.path.dirname(head))
    return ParquetSource(root, [os.path.relpath(name, root) for name in files], split, image_column, id_column)
