"""Counts what tars hold while they are opened first, and refuses those in which the images of samples are a guess."""

from array import array
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from volgrowth.errors import DataError
from volgrowth.sources.conditions import FLAGS, OPTIONS
from volgrowth.sources.opened import LeftAside, counted
from volgrowth.sources.readers.tar_members import MEMBERLESS
from volgrowth.sources.readers.tar_samples import TarPart, is_image
from volgrowth.storage.places import printable

_SHOWN = 8
"""Extensions named in a sentence, at most."""
_MOST_EXTENSIONS = 1000
"""Extensions that are told apart; where names have many dots, nearly every member has one of its own."""
_OTHER = "other"
_KEY_RULE = "a key ends at the first dot of a name"


class _Wanted(NamedTuple):
    """The extensions of images and of conditions that the user named."""

    image: str | None
    condition: str | None


class TarCensus:
    """Counts of members and samples, of one tar by `add`, of several by `merge`.

    Args:
        image: the extension of images that the user named, if any.
        condition: the extension of conditions, if they are wanted.

    Attributes:
        samples: samples found.
        extensions: members of samples by extension.
    """

    def __init__(self, image: str | None, condition: str | None) -> None:
        self.wanted = _Wanted(image, condition)
        self.samples = self.several = self.without = self.outside = self.repeated = self.joined = 0
        self.extensions, self.examples = Counter[str](), dict[str, str]()
        # of every sample: hash of its key, number of its images; of every member: hash of its name, its sample
        self._keys, self._images = array("q"), array("q")
        self._names, self._owners = array("q"), array("q")

    def add(self, part: TarPart) -> bool:
        """Count a member; return whether it begins a sample."""
        if part.sample is None:
            if part.member.kind not in MEMBERLESS:
                self.outside += 1
                self.examples.setdefault("outside", part.member.name)
            return False
        begins = part.sample == self.samples
        if begins:
            self.samples += 1
            self._keys.append(hash(part.key))
            self._images.append(0)
        self._names.append(hash((part.key, part.extension)))
        self._owners.append(part.sample)
        self.extensions[self._label(part.extension)] += 1
        if is_image(part.extension, self.wanted.image):
            self._images[-1] += 1
            if "." in part.extension and "dotted" not in self.examples:
                said = f"{part.member.name} is the image {part.extension} of the sample {part.key}"
                self.examples["dotted"] = said
        return begins

    def close(self, archives: int, name: str, url: str) -> None:
        """Finish counting a tar, and refuse it where its samples or images are ambiguous.

        Args:
            archives: how many archives were joined in it.
            name: the tar in its data set.
            url: the tar with its place, for the refusal.

        Raises:
            DataError: samples hold more than one image and no extension was named, or members of one key lie apart.
        """
        images = np.frombuffer(self._images, np.int64)
        self.joined = archives - 1
        self.without, self.several = int((images == 0).sum()), int((images > 1).sum())
        if self.several:
            raise DataError(self._several_images(url))
        self.repeated, apart = self._repeated_and_apart()
        self.examples |= {what: name for what in ("joined", "repeated") if getattr(self, what)}
        if apart:
            raise DataError(
                f"{url} has members of one key that do not follow each other, in {counted(apart, 'sample')}: readers "
                "of webdatasets would take them for several samples; unpack it to an empty folder and pack that by "
                "name there (tar --sort=name -cf NEW.tar *)"
            )
        self._keys = self._images = self._names = self._owners = array("q")

    def merge(self, other: "TarCensus") -> None:
        """Add the counts of another tar."""
        self.samples += other.samples
        self.without += other.without
        self.outside += other.outside
        self.repeated += other.repeated
        self.joined += other.joined
        for extension, count in other.extensions.items():
            self.extensions[self._label(extension)] += count
        self.examples = {**other.examples, **self.examples}

    @property
    def image_extensions(self) -> list[str]:
        """Extensions of the members that are read as images, the most frequent first."""
        return [found for found, _ in self.extensions.most_common() if is_image(found, self.wanted.image)]

    def check(self, data: str) -> None:
        """Raise a DataError if no sample of a data set has an image, or none the condition that is wanted."""
        image, condition = self.wanted
        asked = [
            (
                bool(self.image_extensions),
                "images",
                f".{image}" if image else "the extension of an image",
                "image_column (--image-column)",
            )
        ]
        if condition:
            asked.append((condition in self.extensions, "conditions", f".{condition}", f"{OPTIONS} ({FLAGS})"))
        for held, what, wanted, option in asked:
            if not held:
                dotted = any("." in found for found in self.extensions)
                raise DataError(
                    f"{data} holds no {what}: no member of its tar files has {wanted}; they have "
                    f"{', '.join(sorted(self.extensions)[:20]) or 'none'}{f' ({_KEY_RULE})' if dotted else ''}. "
                    f"Name another as {option}"
                )

    def left_aside(self) -> Iterator[LeftAside]:
        """Yield what is in the tars and does not become images or conditions of rows."""
        beside = Counter({found: n for found, n in self.extensions.items() if found != self.wanted.condition})
        for found in self.image_extensions:
            del beside[found]
        images = Counter({found: count for found, count in beside.items() if is_image(found, None)})
        for kind, some in (("unused image", images), ("other member", beside - images)):
            if some:
                yield LeftAside(kind, some.total(), _listed(some))
        if self.outside:
            why = "no sample's: no dot in the name, or one at its beginning, or __meta__"
            yield LeftAside("keyless member", self.outside, why, printable(self.examples["outside"]))
        if self.without:
            yield LeftAside("imageless sample", self.without, "a row without a score each")
        if self.repeated:
            why = "each of its samples is a row, while unpacking keeps the last; in tars"
            yield LeftAside("repeated key", self.repeated, why, printable(self.examples["repeated"]))
        if self.joined:
            why = "archives were joined there, and all of them are read; in tars"
            yield LeftAside("inner end mark", self.joined, why, printable(self.examples["joined"]))

    def _label(self, extension: str) -> str:
        """Return the name under which an extension is counted: its own, or one for all that came too late."""
        if extension in self.extensions or extension in self.wanted or len(self.extensions) < _MOST_EXTENSIONS:
            return extension
        return f"*.{extension.rpartition('.')[2]}" if is_image(extension, None) else _OTHER

    def _several_images(self, url: str) -> str:
        images = Counter({found: self.extensions[found] for found in self.image_extensions})
        said = (
            f"{self.several:,} of {counted(self.samples, 'sample')} in {url} hold more than one image "
            f"({_listed(images)}): name the extension of those to audit as image_column (--image-column)"
        )
        if "dotted" not in self.examples:
            return said
        return (
            f"{said}; {_KEY_RULE}, so that {printable(self.examples['dotted'])}: if each image is a sample of its own, "
            "rename them so that the only dot stands before the ending"
        )

    def _repeated_and_apart(self) -> tuple[int, int]:
        """Return how many samples have the key of an earlier one, and how many are only a part of a sample.

        A part shares its key with another sample and lacks an image that the other has, or holds nothing that the
        other has as well. Otherwise both are whole, as where a member was added again or archives were joined.
        """
        keys = np.frombuffer(self._keys, np.int64)
        _, of_key, counts = np.unique(keys, return_inverse=True, return_counts=True)
        if len(counts) == len(keys):
            return 0, 0
        shared, has_image = counts[of_key] > 1, np.frombuffer(self._images, np.int64) > 0
        imageless = ~has_image & (np.bincount(of_key, has_image)[of_key] > 0)
        _, of_name, counts_of_names = np.unique(
            np.frombuffer(self._names, np.int64), return_inverse=True, return_counts=True
        )
        twice = np.zeros(len(keys), bool)
        twice[np.frombuffer(self._owners, np.int64)[counts_of_names[of_name] > 1]] = True
        return len(keys) - len(counts), int((shared & (imageless | ~twice)).sum())


def _listed(extensions: Counter[str]) -> str:
    """Return extensions with their counts, the most frequent first."""
    shown = [f"{printable(found)} {count:,}" for found, count in extensions.most_common(_SHOWN)]
    rest = len(extensions) - len(shown)
    return ", ".join([*shown, *([f"{rest:,} more"] if rest else [])])
