"""The data set that a user names becomes a `Source`.

A path or URL (`s3://`, `gs://`, `az://`, `hf://`) that exists decides by what it holds, the first of these that fits:

1. a file that ends in `.parquet`, `.pq` or `.parq`: its rows; in `.tar`: the samples of a webdataset; in the ending of
   an image: one row
2. a folder with the `state.json` or `dataset_dict.json` of `save_to_disk`: the data set that it wrote; not by URL
3. a folder with files of one of these kinds in it or below: the rows of parquet files or the samples of tars, by the
   split that their names tell, or image files, one row each

Where files of several kinds lie in a folder, tables without an image column are notes on the others and are left aside,
and so are those that img2dataset writes beside tars, under their names. Image files to which a table leads by paths
belong to the table. All else is refused with the counts of each kind, unless the request says which kind is meant
(`kind`). A pattern such as `data/**/*.png` or `{000..012}.tar` stands for files, to which the same rules apply. Other
names, `name` or `org/name`, are loaded from the Hugging Face hub.

What is left aside is noted with the source: see `volgrowth.sources.opened`.
"""

import glob
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from operator import attrgetter
from pathlib import Path

from volgrowth.config import BRACES, MAX_BYTES
from volgrowth.credentials import hide
from volgrowth.errors import DataError
from volgrowth.sources.base import Request, Source
from volgrowth.sources.choosing import choose_kind, describing_tables, refuse_several_splits
from volgrowth.sources.contents import MARKS, UNITS, Contents, data_kind
from volgrowth.sources.listing import Listing
from volgrowth.sources.ordering import Sorted
from volgrowth.sources.readers.folder import FolderSource
from volgrowth.sources.readers.hub import HubSource
from volgrowth.sources.readers.tables.parquet import ParquetSource
from volgrowth.sources.readers.tables.saved import ArrowSource
from volgrowth.sources.readers.webdataset import WebDatasetSource, refuse_packed
from volgrowth.storage.places import Found, Place, locate, read_ahead
from volgrowth.storage.urls import is_url

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FILES = (".csv", ".json", ".jsonl", ".zip", ".npz", ".txt")
_EXPECTED = (
    "parquet files, webdataset tars, a save_to_disk folder, a folder of images, or an id on the Hugging Face hub"
)
_ASKED = re.compile(r"(?:^|[/{,])[._]")
"""A part of a pattern that names hidden files or drafts."""
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
    kind: str | None = None,
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
        kind: the kind of files that are the data set, "parquet", "webdataset", "folder" or "arrow"; needed where files
            of several kinds lie together and nothing tells which are meant.

    Raises:
        DataError: nothing is there, or not what was expected; the message says which, and the fix.
    """
    if not data.strip():
        raise DataError(f"no data set was given (got {data!r}): expected {_EXPECTED}")
    data = hide(data)
    request = Request(data, split, image_column, id_column, condition_column, max_bytes, configuration, kind)
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
    if listing is None and not is_url(data) and _HUB_ID.fullmatch(data) and not _names_a_file(data):
        if kind is not None:
            raise DataError(
                f"{data} is not here, and a data set of the hub has no data_kind (got {kind}): leave it out"
            )
        return HubSource(request)
    raise _missing(data)


def _open_file(place: Place, name: str, request: Request) -> Source:
    kind = data_kind(name)
    if kind == "packed":
        refuse_packed(request.data)
    if kind not in _READERS:
        raise DataError(f"{request.data} is a file, and neither parquet nor tar nor an image: expected {_EXPECTED}")
    if request.kind not in (None, kind):
        raise DataError(f"{request.data} is a {UNITS[kind]}, and data_kind was {request.kind}: leave data_kind out")
    if kind == "parquet":
        _refuse_part_of_table(place, request, Contents())
    return _READERS[kind](place, request, [place.find(name) or Found(name, 0)])


def _open_folder(place: Place, request: Request) -> Source:
    saved = _is_saved(place) and request.kind in (None, ArrowSource.kind)
    contents = Contents()
    for file in place.walk(contents.add_repeated):
        contents.add(file)
    if saved:
        source = ArrowSource(place, request)
        for note in contents.counted_but("arrow", "the folder is one data set, which save_to_disk wrote"):
            source.leave_aside(*note)
        return source
    refuse_several_splits(request, contents.files["folder"])
    return _open_contents(place, request, contents)


def _is_saved(place: Place) -> bool:
    """Return whether `save_to_disk` wrote a folder; others write a state.json too, without the keys of `datasets`."""
    if place.size("dataset_dict.json") is not None:
        return True
    data, _ = place.read("state.json") if place.size("state.json") is not None else (None, None)
    try:
        content = json.loads(data or "null")
    except ValueError:
        return True
    return data is not None and (not isinstance(content, dict) or any(key.startswith("_") for key in content))


def _refuse_part_of_table(place: Place, request: Request, contents: Contents) -> None:
    """Raise a DataError if files that were named lie in a folder that is a managed table, which does not list them."""
    for pattern in MARKS:
        with suppress(DataError):  # who may read a file may not be allowed to list its folder, or the store cannot
            for file in place.matches(pattern):
                contents.note_marks(file.name)
    contents.refuse_parts(request.data, "parquet")


def _open_contents(place: Place, request: Request, contents: Contents) -> Source:
    """Open the files of the kind that is meant among those of a folder or a pattern."""
    contents.settle()
    kind, notes = choose_kind(place, request, contents)
    contents.refuse_parts(request.data, kind)
    tables = describing_tables(request, contents, kind)
    described = {"tables": tables} if tables else {}
    source = _READERS[kind](place, request, contents.files[kind], **described)
    if request.split is not None and kind != ArrowSource.kind:  # which counts its own
        others = len(contents.files[kind]) - source.opened.files
        source.leave_aside(UNITS[kind], others, f"not of split {request.split}")
    for each in (*notes, *contents.aside()):
        if not (tables and each in notes and each[0] == UNITS["parquet"]):  # the source says which it does not use
            source.leave_aside(*each)
    return source


def _open_pattern(pattern: str, request: Request, listing: Listing | None) -> Source:
    # Names start where the pattern does, so that they do not depend on which files happen to match.
    head = os.path.dirname(re.split(r"[*?\[{]", pattern)[0])
    found = locate(head or ".")
    if found is None or found[1] is not None:
        raise _missing(pattern)
    place, tail = found[0], pattern[len(head) :].lstrip("/")
    if listing is not None:
        return _READERS[listing.kind](place, request, listing=listing)
    files = Sorted.of(_matches(place, tail, pattern))
    if not files:
        raise _missing(pattern)
    contents, asked = Contents(), bool(_ASKED.search(tail))
    for name, found_twice in itertools.groupby(files, key=attrgetter("name")):
        if name.endswith("/"):
            contents.leave("folder", "a pattern stands for files; with /* at its end it takes those in folders", name)
        else:
            contents.add(next(found_twice), asked)
    if contents.files["parquet"]:
        _refuse_part_of_table(place, request, contents)
    return _open_contents(place, request, contents)


def _matches(place: Place, pattern: str, given: str) -> Iterator[Found]:
    def matches(name: str) -> list[Found]:
        if glob.has_magic(name):
            return list(place.matches(name))
        found = place.find(name)
        if found is None:
            raise DataError(f"{place.url(name)} does not exist, and {given} stands for it: correct the braces")
        return [found]

    def below(name: str) -> str:
        if ".." in name.split("/"):
            raise DataError(
                f"{given} leads out of {place.where} by ..: begin the pattern with the folder that holds all its files"
            )
        return name

    for found in read_ahead(matches, map(below, _expanded(pattern)), place.threads):
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


def _names_a_file(name: str) -> bool:
    return data_kind(name) != "" or Path(name).suffix.lower() in _FILES


def _missing(data: str) -> DataError:
    where = "check the bucket and the path in it" if is_url(data) else f"looked in {Path.cwd()}"
    pattern = ", and as a pattern it matches no file" if glob.has_magic(data) else ""
    return DataError(f"{data} does not exist{pattern} ({where}): expected {_EXPECTED}")
