"""Walks through the members of a tar file, strictly: every byte of the file belongs to a member or to an end mark.

A tar is a run of blocks of 512 bytes: for each member a header, perhaps with extra headers before it (GNU long names,
PAX records), then its data. Blocks of zeros are the end mark, and may go on for as long as a writer pads. Members
after an end mark are those of another archive joined to the first (`cat a.tar b.tar`), and are read like the others, as
`tar --ignore-zeros` does. Anything else is refused: a file that stops before its end mark, a header whose checksum
is wrong, and bytes after the end mark that are neither zeros nor headers. The class `tarfile.TarFile` stops there in
silence, so only its parser of single headers is used here.
"""

import re
import tarfile
from collections.abc import Iterator
from io import BufferedIOBase
from typing import NamedTuple

BLOCK = tarfile.BLOCKSIZE
"""Bytes of a block."""
_ZEROS = bytes(1 << 20)
"""As many zeros as are skipped at a time."""
_LARGEST_HEADER = 16 << 20
"""Bytes of an extra header, at most: real ones have a few hundred, and they are held in memory."""
_LONG = {tarfile.GNUTYPE_LONGNAME: "name", tarfile.GNUTYPE_LONGLINK: "link"}
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_WITHOUT_DATA = (
    *(tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE),
)
_KINDS = {
    **dict.fromkeys((tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE), "file"),
    **{tarfile.LNKTYPE: "hard link", tarfile.SYMTYPE: "symbolic link"},
    **{tarfile.DIRTYPE: "folder", tarfile.GNUTYPE_SPARSE: "sparse file"},
}
MEMBERLESS = ("folder", "global header")
"""Kinds that hold no data of their own."""
_GNU_MAGIC = b"ustar  \0"
_RECORD = re.compile(rb"(\d{1,9}) ([^=]+)=")
_CHANGES_MEMBERS = re.compile(rb"path|linkpath|size|GNU[.]sparse[.].*")
"""Keywords of PAX records that change where a member ends or what its name is."""


class DamagedTarError(ValueError):
    """A file that is no whole tar. The message completes a sentence that begins with the file's name."""


class TarMember(NamedTuple):
    """One member of a tar.

    Attributes:
        name: as the archive has it; bytes that are no UTF-8 are escaped as `os.fsdecode` does.
        kind: "file", "hard link", "symbolic link", "folder", "sparse file", "other", or "global header", which is no
            member but PAX records for all that follow.
        start: byte at which its first header begins, extra headers included.
        data: byte at which its data begins.
        size: bytes of data, as stored.
        stop: byte after its last block.
        target: name that a link points to.
    """

    name: str
    kind: str
    start: int
    data: int
    size: int
    stop: int
    target: str = ""


class TarMembers:
    """Iterates over the members of a tar.

    Args:
        stream: the file; it may be moved between two members.
        size: bytes of the file.
        start: byte of the header to begin at.

    Attributes:
        archives: archives with members found so far: more than one if several were joined into one file.

    Iterating raises:
        DamagedTarError: see the module.
    """

    def __init__(self, stream: BufferedIOBase, size: int, start: int = 0) -> None:
        self.stream, self.size, self.at, self.archives = stream, size, start, 1

    def __iter__(self) -> Iterator[TarMember]:
        ended = False
        while True:
            block = self._read(self.at, BLOCK)
            if not block.strip(b"\0"):
                if len(block) < BLOCK and not ended:
                    raise DamagedTarError(_no_end_mark(self.size))
                after = self._after_zeros()
                if after is None:
                    return
                self.at, ended = after, True
                continue
            member = self._member(ended)
            self.archives += ended
            self.at, ended = member.stop, False
            yield member

    def content(self, member: TarMember) -> bytes:
        """Return the data of a member."""
        return self._read(member.data, member.size)

    def _read(self, at: int, count: int) -> bytes:
        self.stream.seek(at)
        return self.stream.read(count)

    def _after_zeros(self) -> int | None:
        """Return the start of the first block from `self.at` on that holds more than zeros, None at the file's end."""
        at = self.at
        while block := self._read(at, len(_ZEROS)):
            if block != _ZEROS[: len(block)]:  # many times faster than to look for what differs
                return (at + len(block) - len(block.lstrip(b"\0"))) // BLOCK * BLOCK
            at += len(block)
        return None

    def _member(self, after_end: bool) -> TarMember:
        """Return the member whose first header is at `self.at`."""
        at, names, records = self.at, dict[str, str](), dict[bytes, bytes]()
        while True:
            block = self._read(at, BLOCK)
            try:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                raise DamagedTarError(self._no_header(at, block, after_end)) from None
            at += BLOCK
            if header.size < 0:
                raise DamagedTarError(
                    f"is damaged at byte {at - BLOCK}: a member has {header.size} bytes; write it again"
                )
            if header.type in _LONG:
                names[_LONG[header.type]] = _text(self._extra(at, header.size))
            elif header.type in _PAX and not records:
                records = _records(self._extra(at, header.size), at)
            elif header.type == tarfile.XGLTYPE and at - BLOCK == self.at:
                return self._global(at, header.size)
            elif header.type in (*_PAX, tarfile.XGLTYPE):
                raise DamagedTarError(f"is damaged at byte {at - BLOCK}: a member has two PAX headers; write it again")
            else:
                return self._described(header, block, at, names, records)
            at += _blocks(header.size)

    def _no_header(self, at: int, block: bytes, after_end: bool) -> str:
        """Return what to say of a block that should be a header."""
        if at == 0:
            return (
                "cannot be read as tar (it begins without a header): it was cut off or damaged; copy or write it again"
            )
        if at != self.at or not after_end:
            cut = "it was cut off" if len(block) < BLOCK else "no header of a tar is there"
            return f"is damaged at byte {at}: {cut}; copy or write it again"
        return (
            f"holds {self.size - at} bytes after its end mark, from byte {at}, that are neither zeros nor the header "
            f"of another tar: cut them off (truncate -s {at}) or, if a tar was joined there, write both again as one"
        )

    def _extra(self, at: int, size: int) -> bytes:
        """Return the content of an extra header."""
        if size > _LARGEST_HEADER:
            raise DamagedTarError(
                f"is damaged at byte {at - BLOCK}: a header of {size} bytes is there, expected at most "
                f"{_LARGEST_HEADER}; copy or write it again"
            )
        self._check_stop(at + _blocks(size), "a header")
        return self._read(at, size)

    def _global(self, at: int, size: int) -> TarMember:
        records = _records(self._extra(at, size), at)
        for keyword in records:
            # a reader that begins behind this header would not know of it
            if _CHANGES_MEMBERS.fullmatch(keyword):
                raise DamagedTarError(
                    f"has a global PAX header with {_text(keyword)!r} at byte {self.at}, which would give all members "
                    "the same: write it again"
                )
        return TarMember("", "global header", self.at, at, size, at + _blocks(size))

    def _described(
        self, header: tarfile.TarInfo, block: bytes, at: int, names: dict[str, str], records: dict[bytes, bytes]
    ) -> TarMember:
        """Return the member of a header that begins one block before `at`, corrected by its extra headers."""
        kind, name, size = _KINDS.get(header.type, "other"), header.name, header.size
        if block[257:265] == _GNU_MAGIC:
            name = _text(block[:100])  # where other formats continue the name, this one may have times
        if header.type == tarfile.GNUTYPE_SPARSE:
            at = self._after_sparse_map(at, block[482])
        name, target = names.get("name", name), names.get("link", header.linkname)
        if b"size" in records:
            size = _number(records[b"size"], self.at)
        if any(keyword.startswith(b"GNU.sparse.") for keyword in records):
            kind = "sparse file"
        for keyword in (b"path", b"GNU.sparse.name"):
            name = _text(records[keyword]) if keyword in records else name
        target = _text(records[b"linkpath"]) if b"linkpath" in records else target
        if header.type in _WITHOUT_DATA:
            size = 0
        stop = at + _blocks(size)
        self._check_stop(stop, f"member {name!r}")
        return TarMember(name.rstrip("/"), kind, self.at, at, size, stop, target)

    def _after_sparse_map(self, at: int, goes_on: int) -> int:
        """Return the byte at which the data of a GNU sparse file begins, whose map may fill more blocks."""
        while goes_on:
            self._check_stop(at + BLOCK, "a sparse file")
            goes_on = self._read(at, BLOCK)[504]
            at += BLOCK
        return at

    def _check_stop(self, stop: int, what: str) -> None:
        if stop > self.size:
            raise DamagedTarError(
                f"was cut off or is damaged: {what} at byte {self.at} ends at byte {stop}, and the file has "
                f"{self.size}; copy or write it again"
            )


def _no_end_mark(size: int) -> str:
    if not size:
        return "cannot be read as tar (it is empty): it was cut off or never written; copy or write it again"
    return (
        "has no end mark: it was cut off, or never closed; copy or write it again or, if it is whole, append the mark "
        "(truncate -s +1024)"
    )


def _records(content: bytes, at: int) -> dict[bytes, bytes]:
    """Return the PAX records in the content of an extra header; `at` is where it begins, for the message."""
    found, position = {}, 0
    while position < len(content):
        match = _RECORD.match(content, position)
        stop = position + int(match[1]) if match else 0
        if match is None or not match.end() < stop <= len(content) or content[stop - 1 : stop] != b"\n":
            raise DamagedTarError(f"is damaged at byte {at + position}: no PAX record is there; copy or write it again")
        found[match[2]] = content[match.end() : stop - 1]
        position = stop
    return found


def _number(value: bytes, at: int) -> int:
    if not re.fullmatch(rb"\d{1,18}", value):
        raise DamagedTarError(f"is damaged at byte {at}: a member's size is {_text(value)!r}; copy or write it again")
    return int(value)


def _text(value: bytes) -> str:
    return value.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
