"""The data set that a user names becomes a `Source`.

A path or URL (`s3://`, `gs://`, `az://`, `hf://`) that exists decides by what it holds, the first of these that fits:

1. a `.parquet` file: its rows
2. a `.tar` file: the samples of a webdataset
3. a folder with `state.json` or `dataset_dict.json`: a data set written by `save_to_disk`; not by URL
4. a folder with parquet files in it or below: their rows, by the split their names tell. Where each has a tar of the
   same name beside it, it holds what img2dataset notes of that tar, and the tars are read
5. a folder with tar files in it or below: their samples, by the split their names tell
6. a folder with image files in it or below: one row a file

Otherwise a pattern such as `data/*.parquet` or `{000..012}.tar` takes the files it stands for, all parquet or all tar,
and `name` or `org/name` is loaded from the Hugging Face hub.
"""

import glob
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from volgrowth.config import BRACES, MAX_BYTES
from volgrowth.errors import DataError
from volgrowth.sources.base import Request, Source
from volgrowth.sources.listing import Listing
from volgrowth.sources.ordering import Sorted
from volgrowth.sources.pixels.decoding import EXTENSIONS
from volgrowth.sources.readers.folder import FolderSource
from volgrowth.sources.readers.hub import HubSource
from volgrowth.sources.readers.parquet import ParquetSource
from volgrowth.sources.readers.saved import ArrowSource
from volgrowth.sources.readers.webdataset import WebDatasetSource, refuse_packed
from volgrowth.storage.places import Found, Place, locate, read_ahead
from volgrowth.storage.urls import is_url

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_PACKED = frozenset({".gz", ".tgz", ".bz2", ".xz", ".zst"})
_SUFFIXES = EXTENSIONS | _PACKED | {".parquet", ".tar"}
_FILES = _SUFFIXES | {".arrow", ".csv", ".json", ".jsonl", ".zip", ".npz", ".txt"}
_EXPECTED = (
    "parquet files, webdataset tars, a save_to_disk folder, a folder of images, or an id on the Hugging Face hub"
)
_SAVED = ("state.json", "dataset_dict.json")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_READERS: dict[str, Callable[..., Source]] = {
    reader.kind: reader for reader in (ParquetSource, WebDatasetSource, FolderSource, ArrowSource)
}


def open_source(
    data: str,
    split: str | None = None,
    image_column: str | None = None,
    id_column: str | None = None,
    listing: Listing | None = None,
    condition_column: str | None = None,
    max_bytes: int = MAX_BYTES,
    configuration: str | None = None,
) -> Source:
    """Return the data set of a name, opened by the rules of this module.

    Args:
        data: a path, a URL, a pattern or an id.
        split: needed if there are several.
        image_column: needed if several columns hold images; of a webdataset, an extension.
        id_column: gives `Row.image_id`, else the hash of the encoded image; of a webdataset, `__key__`.
        listing: the listing of this data set as it was first opened, extended or not: nothing is listed again, and
            what is read must be as it says. The columns may be others than it was made with.
        condition_column: gives `Row.condition`: integers, strings, or lists of strings, of which the first is taken;
            of a webdataset, the extension of the members that hold it, such as `cls` or `txt`.
        max_bytes: the most bytes of an encoded image; a row with a larger one has the status `too_large`.
        configuration: which configuration of a data set of the hub, if it has several. A local copy of its repository
            is then loaded as the hub's own tools do, too.

    Raises:
        DataError: nothing is there, or not what was expected; the message says which, and the fix.
    """
    if not data.strip():
        raise DataError(f"no data set was given (got {data!r}): expected {_EXPECTED}")
    request = Request(data, split, image_column, id_column, condition_column, max_bytes, configuration)
    if configuration is not None or (listing is not None and listing.kind == HubSource.kind):
        return HubSource(request, listing)
    found = locate(data)
    if found is not None:
        place, name = found
        if listing is not None:
            return _READERS[listing.kind](place, request, listing=listing)
        return _open_folder(place, request) if name is None else _open_file(place, name, request)
    pattern = os.path.expanduser(data)
    if glob.has_magic(pattern) or BRACES.search(pattern):
        return _open_pattern(pattern, request, listing)
    if listing is None and not is_url(data) and _HUB_ID.fullmatch(data) and Path(data).suffix.lower() not in _FILES:
        return HubSource(request)
    raise _missing(data)


def _open_file(place: Place, name: str, request: Request) -> Source:
    kind = _kind(name)
    if kind == "packed":
        refuse_packed(request.data)
    if kind not in ("parquet", "webdataset"):
        raise DataError(f"{request.data} is a file, and neither parquet nor tar: expected {_EXPECTED}")
    return _READERS[kind](place, request, [place.find(name) or Found(name, 0)])


def _open_folder(place: Place, request: Request) -> Source:
    if any(place.size(name) is not None for name in _SAVED):
        return ArrowSource(place, request)
    files = {kind: Sorted[Found]() for kind in ("parquet", "webdataset", "folder", "packed", "other")}
    for file in place.walk(_SUFFIXES):
        files[_kind(file.name)].add(file)
    if files["parquet"] and not _beside_tars(files["parquet"], files["webdataset"]):
        return ParquetSource(place, request, files["parquet"])
    if files["webdataset"]:
        return WebDatasetSource(place, request, files["webdataset"])
    if files["packed"] and not files["folder"]:
        refuse_packed(place.url(next(iter(files["packed"])).name))
    return FolderSource(place, request, files["folder"])


def _open_pattern(pattern: str, request: Request, listing: Listing | None) -> Source:
    # Names start where the pattern does, so that they do not depend on which files happen to match.
    head = os.path.dirname(re.split(r"[*?\[{]", pattern)[0])
    found = locate(head or ".")
    if found is None or found[1] is not None:
        raise _missing(pattern)
    place = found[0]
    if listing is not None:
        return _READERS[listing.kind](place, request, listing=listing)
    files = Sorted.of(dict.fromkeys(_matches(place, pattern[len(head) :].lstrip("/"), pattern)))
    if not files:
        raise _missing(pattern)
    kind = _kind(next(iter(files)).name)
    for file in files:
        if _kind(file.name) == "packed":
            refuse_packed(place.url(file.name))
        if kind not in ("parquet", "webdataset") or _kind(file.name) != kind:
            raise DataError(f"{pattern} matches {file.name}: make it match parquet files only, or tar files only")
    return _READERS[kind](place, request, files)


def _matches(place: Place, pattern: str, given: str) -> Iterator[Found]:
    def matches(name: str) -> list[Found]:
        if glob.has_magic(name):
            return list(place.matches(name))
        found = place.find(name)
        if found is None:
            raise DataError(f"{place.url(name)} does not exist, and {given} stands for it: correct the braces")
        return [found]

    for found in read_ahead(matches, _expanded(pattern), place.threads):
        yield from found


def _expanded(pattern: str) -> Iterator[str]:
    """Yield the names that a pattern with braces stands for: `{08..10}` is 08, 09, 10, and `{a,b}` is a, b."""
    parts = BRACES.split(pattern)
    for choice in itertools.product(*map(_alternatives, parts[1::2])):
        yield "".join(itertools.chain(*zip(parts[::2], (*choice, ""), strict=True)))


def _alternatives(braces: str) -> Iterable[str]:
    numbers = _RANGE.fullmatch(braces)
    if numbers is None:
        return braces.split(",")
    low, high = numbers[1], numbers[2]
    return (str(number).zfill(len(low)) for number in range(int(low), int(high) + 1))


def _beside_tars(tables: Iterable[Found], tars: Iterable[Found]) -> bool:
    """Return whether every table lies beside a tar of its name."""
    names = {os.path.splitext(file.name)[0] for file in tars}
    return bool(names) and all(os.path.splitext(file.name)[0] in names for file in tables)


def _kind(name: str) -> str:
    stem, suffix = os.path.splitext(name.lower())
    if suffix in _PACKED:
        return "packed" if suffix == ".tgz" or stem.endswith(".tar") else "other"
    return {".parquet": "parquet", ".tar": "webdataset"}.get(suffix, "folder" if suffix in EXTENSIONS else "other")


def _missing(data: str) -> DataError:
    where = "check the bucket and the path in it" if is_url(data) else f"looked in {Path.cwd()}"
    pattern = ", and as a pattern it matches no file" if glob.has_magic(data) else ""
    return DataError(f"{data} does not exist{pattern} ({where}): expected {_EXPECTED}")
