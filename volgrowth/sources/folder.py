"""A folder of image files as rows, sorted by relative path."""

import os
from collections.abc import Iterator
from pathlib import Path

from volgrowth.errors import DataError
from volgrowth.sources.base import Row, Source, SourceFile, content_id
from volgrowth.sources.columns import check_range, read_file
from volgrowth.sources.decode import EXTENSIONS


class FolderSource(Source):
    """The image files under a folder, one row each, whether they can be decoded or not.

    Links to files and folders are followed, except to a folder that contains the link; hidden files are left
    out.

    Raises:
        DataError: the folder or one in it cannot be listed, or no file has an image's extension.
    """

    kind = "folder"

    def __init__(self, root: Path, split: str | None = None) -> None:
        self.root = root.resolve()
        folder = self.root / split if split else self.root
        if split and not folder.is_dir():
            found = sorted(entry.name for entry in self.root.iterdir() if entry.is_dir())
            raise DataError(
                f"{root} has no split {split!r}: a split of an image folder is a folder in it, and it has: "
                f"{', '.join(found[:20]) or 'none'}. Leave split (--split) out to take all images"
            )
        paths = sorted(image_files(folder), key=lambda path: path.relative_to(self.root).as_posix())
        self.files = tuple(SourceFile(path.relative_to(self.root).as_posix(), _size(path), 1) for path in paths)
        if not self.files:
            raise DataError(
                f"{folder} holds no images: expected files ending in {', '.join(sorted(EXTENSIONS))}, in it "
                "or in folders below"
            )

    def read(self, start: int, stop: int) -> Iterator[Row]:
        """Yield the rows start..stop-1; a file that cannot be read says so in `error`.

        Raises:
            ValueError: `start` and `stop` are not a range of this source.
        """
        check_range(start, stop, self.num_rows)
        return (self._row(row) for row in range(start, stop))

    def _row(self, row: int) -> Row:
        name = self.files[row].name
        data, error = read_file(self.root / name)
        # A file name need not be valid UTF-8, and a column of an Arrow table must be.
        source = os.fsencode(name).decode("utf-8", "backslashreplace")
        return Row(row, content_id(data or b""), source, data, error)


def image_files(folder: Path) -> Iterator[Path]:
    """Image files below a folder, by extension, in no particular order."""
    return (path for path in files_below(folder) if path.suffix.lower() in EXTENSIONS)


def files_below(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """All files below a folder but hidden ones, broken links included, in no particular order.

    Raises:
        DataError: a folder cannot be listed.
    """
    above = above | {os.path.realpath(folder)}
    try:
        entries = [Path(entry) for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}. Check its permissions") from None
    for path in entries:
        if not path.is_dir():
            yield path
        elif os.path.realpath(path) not in above:
            yield from files_below(path, above)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # a broken link: a row, whose error says so
