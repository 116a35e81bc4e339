"""Groups the members of a tar into samples, as webdataset does.

A sample is what consecutive members share as their key: the name up to the first dot after the last slash. What
follows the dot is the member's extension. Folders, names without a dot or that begin with one, and names such as
`__meta__/x` belong to no sample.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from volgrowth.sources.base import Encoded
from volgrowth.sources.pixels.decoding import EXTENSIONS
from volgrowth.sources.readers.tar_members import MEMBERLESS, TarMember

_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_UNREAD = Encoded(None)
_META = re.compile(r"__[^/]*__($|/)")


class TarPart(NamedTuple):
    """A member of a tar and the sample that it belongs to.

    Attributes:
        member: the member.
        sample: number of its sample, from 0 where reading began; None if it belongs to none.
        key: key of the sample.
        extension: the member's, in lower case and without its first dot.
    """

    member: TarMember
    sample: int | None = None
    key: str = ""
    extension: str = ""


@dataclass
class TarSample:
    """Consecutive members of one key.

    Attributes:
        index: number of the sample, from 0 where reading began.
        key: the name that its members share.
        offset: byte at which its first header begins.
        extensions: those of its members, in order.
        image: the extension of its image, if it has one.
        content: the image, once it was read.
        condition: the class or caption, once it was read.
    """

    index: int
    key: str
    offset: int
    extensions: dict[str, None] = field(default_factory=dict)
    image: str | None = None
    content: Encoded = _UNREAD
    condition: str | int | None = None


Take = Callable[[TarSample, TarMember, str], None]
"""Called with a sample, a member that is wanted of it, and the member's extension."""


def tar_parts(members: Iterable[TarMember]) -> Iterator[TarPart]:
    """Yield every member with the sample that it belongs to. A member whose extension its sample has already begins
    another sample."""
    index, key, extensions = -1, None, set[str]()
    for member in members:
        match = _NAME.fullmatch(member.name)
        if match is None or member.kind in MEMBERLESS or _META.match(member.name):
            yield TarPart(member)
            continue
        extension = match[2].lower()
        if match[1] != key or extension in extensions:
            index, key, extensions = index + 1, match[1], set()
        extensions.add(extension)
        yield TarPart(member, index, match[1], extension)


def tar_samples(
    members: Iterable[TarMember], extension: str | None, condition: str | None = None, take: Take | None = None
) -> Iterator[TarSample]:
    """Yield the samples of a tar.

    Args:
        members: its members, or those from a sample on.
        extension: the extension of images; None for that of any image. Of several the one with the fewest dots is
            taken, and of these the first by alphabet: data sets with several are refused when they are opened first,
            and audits that were begun by an earlier version go on with that image.
        condition: the extension of conditions, if they are wanted.
        take: called with each member that is the best image so far or the condition, which it may read.
    """
    sample: TarSample | None = None
    for member, index, key, found in tar_parts(members):
        if index is None:
            continue
        if sample is None or index != sample.index:
            if sample is not None:
                yield sample
            sample = TarSample(index, key, member.start)
        sample.extensions[found] = None
        best = is_image(found, extension) and (sample.image is None or _rank(found) < _rank(sample.image))
        if best:
            sample.image = found
        if take and (best or found == condition):
            take(sample, member, found)
    if sample is not None:
        yield sample


def is_image(found: str, extension: str | None) -> bool:
    """Return whether members of the extension `found` are images, given the one that the user named, if any."""
    return found == extension if extension else os.path.splitext(f"x.{found}")[1] in EXTENSIONS


def _rank(extension: str) -> tuple[int, str]:
    return extension.count("."), extension
