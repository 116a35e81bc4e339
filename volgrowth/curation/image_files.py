"""Writer of lists of image files without those that a curation list drops."""

import os
from contextlib import ExitStack
from pathlib import Path

from volgrowth.curation.kept import Kept
from volgrowth.curation.stages import Stage, no_rows
from volgrowth.errors import DataError
from volgrowth.sources.listing import SourceFile
from volgrowth.sources.readers.folder import FolderSource
from volgrowth.storage.places import read_ahead

FILE_LIST = "files.txt"
WEIGHT_LIST = "weights.txt"


def write_file_list(source: FolderSource, stage: Stage, kept: Kept) -> None:
    """Write the names of the files that stay, one a line, relative to the data set's folder, and their weights."""

    def checked(entry: tuple[SourceFile, int]) -> tuple[bytes, int] | None:
        file, row = entry
        if not kept.mask[row]:
            return None
        size = source.place.size(file.name)
        if (size or 0) != file.size:
            source.place.changed(file.name, "nothing" if size is None else f"{size} bytes", f"{file.size}")
        if "\n" in file.name:
            raise DataError(
                f"the name of {source.place.url(file.name)!r} has a line break in it, and a list has one name a line: "
                f"rename the file and audit again, or drop row {row} in the list"
            )
        return os.fsencode(file.name), row

    lists = [FILE_LIST] if kept.weight is None else [FILE_LIST, WEIGHT_LIST]
    stage.expect(lists)
    entries = source.listing.entries(0, source.num_rows)
    with ExitStack() as files:
        paths = [
            files.enter_context(stage.new_file(name, _count_names if name == FILE_LIST else no_rows)) for name in lists
        ]
        names, *weights = (files.enter_context(path.open("wb")) for path in paths)
        for found in read_ahead(checked, entries, source.place.threads):
            if found:
                names.write(found[0] + b"\n")
                if kept.weight is not None:
                    weights[0].write(f"{float(kept.weight[found[1]])!r}\n".encode())


def _count_names(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(1 for _ in lines)
