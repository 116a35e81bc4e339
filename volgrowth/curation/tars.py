"""Writer of webdataset tars without the samples that a curation list drops.

Members of samples that stay are copied byte for byte, headers included, and so is whatever belongs to no sample, such
as folders. End marks inside a file, where archives were joined, are left out, since most readers stop there. Each tar
that was written is read back: it must hold the same samples in the same order.
"""

import hashlib
import posixpath
import tarfile
from io import BufferedIOBase
from pathlib import Path
from typing import BinaryIO

from volgrowth.curation.kept import WEIGHT, Kept, kept_entries, refuse_weights
from volgrowth.curation.stages import Stage
from volgrowth.errors import DataError, OutputError
from volgrowth.sources.listing import SourceFile
from volgrowth.sources.readers.tar_members import BLOCK, DamagedTarError, TarMember, TarMembers
from volgrowth.sources.readers.tar_samples import TarPart, tar_parts
from volgrowth.sources.readers.webdataset import BLOCK_BYTES, WebDatasetSource
from volgrowth.storage.places import printable

EXTENSION = f"{WEIGHT}.json"
"""Extension of the tar member that holds a sample's weight, a number that webdataset loaders decode."""


def write_kept_tars(source: WebDatasetSource, stage: Stage, kept: Kept) -> None:
    """Write the tars of the data set with the samples that stay, byte for byte; a tar that keeps none is left out.

    Raises:
        DataError: a tar has changed, is damaged, has weights already, or has a link from a sample that stays to one
            that is dropped.
        OutputError: what was written does not read back as the samples that stay.
    """
    stage.expect([file.name for file, _ in kept_entries(source, kept)])
    for file, first in kept_entries(source, kept):
        if not stage.has(file.name):
            rows = slice(first, first + file.rows)
            part = Kept(kept.mask[rows], None if kept.weight is None else kept.weight[rows])
            with stage.new_file(file.name, count_samples) as path:
                _KeptTar(source, file, part).write(path)


def count_samples(path: Path) -> int:
    """Return how many samples a tar that was written holds."""
    return _read_back(path)[0]


class _KeptTar:
    """One tar of the data set, and the samples of it that stay.

    Args:
        source: the data set.
        file: the tar.
        kept: the rows of this tar that stay.
    """

    def __init__(self, source: WebDatasetSource, file: SourceFile, kept: Kept) -> None:
        self.source, self.file, self.kept = source, file, kept
        self.url, self.names, self.links = source.place.url(file.name), _Names(), dict[str, TarMember]()

    def write(self, path: Path) -> None:
        """Write the samples that stay to `path`, and compare it with them."""
        with self.source.place.open(self.file.name, self.file.size, BLOCK_BYTES) as stream, open(path, "wb") as written:
            self._copy(stream, written)
        if self.links:
            self._check_links()
        if _read_back(path) != (self.kept.rows, self.names.digest()):
            raise OutputError(
                f"the samples of {self.url} that stay do not read back from the tar that was written, such as where "
                "samples of one key come to stand side by side: nothing was written; give each sample a key of its "
                "own, or drop those of one key together"
            )

    def _copy(self, stream: BufferedIOBase, written: BinaryIO) -> None:
        """Copy what stays. Headers are read from another stream than `stream`, which is free to copy."""
        last = TarPart(TarMember("", "", 0, 0, 0, 0), -1)
        with self.source.open_file(self.file) as members:
            for part in tar_parts(members):
                if part.sample is not None and part.sample != last.sample:
                    self._end_sample(written, last)
                    last = part
                if self.kept.weight is not None and part.extension == EXTENSION:
                    refuse_weights(f"sample {printable(part.key)} of {self.url}")
                if self._stays(part.sample):
                    self._copy_member(stream, written, part)
        self._end_sample(written, last)
        assert last.sample is not None
        if last.sample + 1 != self.file.rows:
            self.source.place.changed(self.file.name, f"{last.sample + 1} samples", f"{self.file.rows}")
        written.write(bytes(2 * BLOCK))
        written.write(bytes(-written.tell() % tarfile.RECORDSIZE))

    def _stays(self, sample: int | None) -> bool:
        """Return whether a sample stays, or a member that belongs to none."""
        return sample is None or (0 <= sample < self.file.rows and bool(self.kept.mask[sample]))

    def _copy_member(self, stream: BufferedIOBase, written: BinaryIO, part: TarPart) -> None:
        self.names.add(part)
        if part.member.kind in ("hard link", "symbolic link"):
            self.links[_target(part.member)] = part.member
        left = part.member.stop - part.member.start
        stream.seek(part.member.start)
        while left:
            data = stream.read(min(left, BLOCK_BYTES))
            if not data:
                raise DataError(f"{self.url} ended while it was copied: it has changed; restore it, or audit it again")
            written.write(data)
            left -= len(data)

    def _end_sample(self, written: BinaryIO, last: TarPart) -> None:
        """Write the weight of a sample after its last member."""
        if self.kept.weight is None or last.sample == -1 or not self._stays(last.sample):
            return
        member = tarfile.TarInfo(f"{last.key}.{EXTENSION}")
        data = repr(float(self.kept.weight[last.sample])).encode()
        member.size = len(data)
        written.write(member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        written.write(data + bytes(-len(data) % BLOCK))
        self.names.add(last._replace(extension=EXTENSION))

    def _check_links(self) -> None:
        """Raise a DataError if a member that stays is a link to one that is dropped."""
        with self.source.open_file(self.file) as members:
            for part in tar_parts(members):
                link = None if self._stays(part.sample) else self.links.get(posixpath.normpath(part.member.name))
                if link is not None:
                    raise DataError(
                        f"{printable(link.name)} in {self.url} stays and is a {link.kind} to "
                        f"{printable(part.member.name)}, which the list drops: keep both or drop both in the list, or "
                        "pack the files without links (tar --hard-dereference -h) and audit that"
                    )


class _Names:
    """The members of a tar as samples, as a hash that does not grow with them."""

    def __init__(self) -> None:
        self._hash, self._last = hashlib.sha256(), -1
        self.samples = 0

    def add(self, part: TarPart) -> None:
        """Add the next member."""
        begins = part.sample is not None and part.sample != self._last
        if begins:
            self._last, self.samples = part.sample or 0, self.samples + 1
        name = part.member.name if part.sample is None else (part.key, part.extension)
        self._hash.update(f"{begins} {name!r}\n".encode())

    def digest(self) -> str:
        """Return the hash of all members so far."""
        return self._hash.hexdigest()


def _read_back(path: Path) -> tuple[int, str]:
    """Return how many samples a tar that was written holds, and the hash of its members."""
    names = _Names()
    with open(path, "rb") as stream:
        members = TarMembers(stream, path.stat().st_size)
        try:
            for part in tar_parts(members):
                names.add(part)
        except DamagedTarError as error:
            raise OutputError(f"{path.name} {error}") from None
    return names.samples, names.digest()


def _target(link: TarMember) -> str:
    """Return the name of the member that a link points to, seen from the tar's root."""
    folder = posixpath.dirname(link.name) if link.kind == "symbolic link" else ""
    return posixpath.normpath(posixpath.join(folder, link.target))
