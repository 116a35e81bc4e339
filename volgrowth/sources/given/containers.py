"""What a user gives as images: a data set of datasets or torch, a list, an array, a tensor. Each becomes rows.

No library is imported to recognise its objects. Rows are taken one after the other, so that a data set that decodes or
transforms images as they are asked for is never in the memory as a whole.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from volgrowth.errors import DataError
from volgrowth.plain import kind_of
from volgrowth.sources.given.encoding import Encoder, ValueRange, as_array
from volgrowth.sources.opened import LeftAside

Condition = str | int | None
IMAGE, CONDITION, EMBEDDING = "image", "condition", "embedding"
"""Names of the columns that are written where the user's own have none."""
_SHOWN = 40
_INSTEAD = {
    "id_column": "leave it out",
    "class_column or caption_column": "give the conditions beside the images (conditions=, holdout_conditions=)",
    "embedding_column": "give the embeddings beside the images (embeddings=)",
}
"""What takes the place of a column where the items have none, by the setting that names it."""
EXPECTED = (
    "a datasets.Dataset, a torch Dataset, a list of PIL images or of arrays, a numpy array or a tensor, or the name of "
    "a data set, as a string"
)


@dataclass(frozen=True)
class GivenRow:
    """One image as the bytes of a file, or None with no image, and what belongs to it."""

    image: bytes | None
    image_id: Any = None
    condition: Condition = None
    embedding: Any = None


@dataclass
class GivenImages:
    """Images that a user gave as an object.

    Args:
        images: the object.
        called: the name of the argument, for errors.
        value_range: the numbers that stand for black and white in floating-point arrays.
        image_column, id_column, condition_column, embedding_column: names of columns, for data sets with columns.
        conditions: a class or a caption for each image, for images without columns.
        embeddings: an array or tensor with the embedding of each image, for images without columns.

    Attributes:
        kind: what was given, in words.
        left_aside: what was given beside the images, or is lost in 8 bits; complete when all rows were taken.
    """

    images: Any
    called: str = "images"
    value_range: ValueRange = None
    image_column: str | None = None
    id_column: str | None = None
    condition_column: str | None = None
    conditions: Sequence[Condition] | None = None
    embedding_column: str | None = None
    embeddings: Any = None
    kind: str = field(init=False)
    left_aside: list[LeftAside] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.encoder = Encoder(self.called, self.value_range)
        self._beside, self._example = 0, ""
        self.kind = _kind(self.images, self.called)
        features = getattr(self.images, "features", None) if self.kind.startswith("datasets.") else None
        self._stored = isinstance(features, Mapping) and self._stored_images(features)
        if self.conditions is not None and self.condition_column is not None:
            raise DataError(f"{self.called}: conditions and the column {self.condition_column} were both given")
        if self.embeddings is not None:
            self._check_embeddings()

    def rows(self) -> Iterator[GivenRow]:
        """Yield the images in their order.

        Raises:
            DataError: an image is none, a row lacks a column that was named, or the conditions are not as many as the
                images, or none of them is one.
        """
        count = without = 0
        for row in self._stored_rows() if self._stored else self._made_rows():
            yield row
            count += 1
            without += row.condition is None
        if self.conditions is not None and len(self.conditions) != count:
            raise DataError(f"{self.called}: {count} images, and {len(self.conditions)} conditions: expected as many")
        if self.embeddings is not None and len(self.embeddings) != count:
            raise DataError(f"{self.called}: {count} images, and {len(self.embeddings)} embeddings: expected as many")
        if not count:
            raise DataError(f"{self.called} is empty: expected at least one image")
        if self.conditions is not None or self.condition_column is not None:
            self._note_missing_conditions(without, count)
        if self._beside:
            why = "what a data set gives beside an image is taken by conditions= alone"
            self.left_aside.append(LeftAside("further value", self._beside, why, self._example))
        if self.encoder.rounded:
            why = "images are written in 8 bits, and these were rounded to the nearest step"
            self.left_aside.append(LeftAside("fractional pixel value", self.encoder.rounded, why))

    def _note_missing_conditions(self, without: int, count: int) -> None:
        """Note how many images have no condition, or raise the DataError if none has one."""
        if without == count:
            held = "conditions=" if self.condition_column is None else f"column {self.condition_column}"
            raise DataError(
                f"{self.called}: {held} holds no condition for any of {count} images: leave it out to measure them "
                f"without conditions"
            )
        if without:
            why = "these images are rows without a condition, and are measured without one if the model can be"
            self.left_aside.append(LeftAside("missing condition", without, why))

    def _check_embeddings(self) -> None:
        """Take the embeddings as an array, or raise the DataError for what is none."""
        if self.embedding_column is not None:
            raise DataError(f"{self.called}: embeddings and the column {self.embedding_column} were both given")
        array = as_array(self.embeddings)
        if array is None or array.ndim != 2:
            got = kind_of(self.embeddings) if array is None else f"of shape {array.shape}"
            raise DataError(f"embeddings is {got}: expected an array or tensor of shape (images, dimensions)")
        self.embeddings = array

    def _stored_images(self, features: Mapping[str, Any]) -> bool:
        """Return whether the image column holds encoded images, and choose it if it was not named."""
        found = [name for name, kind in features.items() if _is_image(kind)]
        for option, name in (("image_column", self.image_column), *self._named_beside):
            if name is not None and name not in features:
                raise DataError(f"{self.called} has no column {name!r} ({option}): it has {', '.join(features)}")
        if self.image_column is None and len(found) > 1:
            raise DataError(f"{self.called} has several columns of images, {', '.join(found)}: name one (image_column)")
        if self.image_column is None and not found:
            raise DataError(
                f"{self.called} has no column of images, but {', '.join(features)}: name the one that holds arrays "
                f"(image_column)"
            )
        self.image_column = self.image_column or found[0]
        return self.image_column in found and hasattr(self.images, "with_format")

    def _stored_rows(self) -> Iterator[GivenRow]:
        """Yield the rows of a data set of datasets with the image files that it holds, not decoded."""
        from datasets import Image as ImageFeature

        given = self.images
        if (getattr(given, "format", None) or {}).get("type"):
            why = "the images are audited as they are stored, at the model's size, whatever training made of them"
            self.left_aside.append(LeftAside("transform", 1, why))
        columns = (self.image_column, self.id_column, self.condition_column, self.embedding_column)
        names = [name for name in columns if name is not None]
        table = given.with_format(None).select_columns(list(dict.fromkeys(names)))
        if not isinstance(table.features[self.image_column], Mapping):
            table = table.cast_column(self.image_column, ImageFeature(decode=False))
        for index, row in enumerate(table):
            value = row[self.image_column] or {}
            image_id = row[self.id_column] if self.id_column else None
            yield GivenRow(_file_of(value), image_id, self._condition(index, row), self._embedding(index, row))

    def _made_rows(self) -> Iterator[GivenRow]:
        for index, item in enumerate(_items(self.images)):
            row = self._columns_of(item, index)
            image = self._image_in(item, index)
            data = None if image is None else self.encoder(image, index)
            image_id = row[self.id_column] if self.id_column else None
            yield GivenRow(data, image_id, self._condition(index, row), self._embedding(index, row))

    @property
    def _named_beside(self) -> tuple[tuple[str, str | None], ...]:
        """The columns beside the image, each with the setting that names it."""
        return (
            ("id_column", self.id_column),
            ("class_column or caption_column", self.condition_column),
            ("embedding_column", self.embedding_column),
        )

    def _columns_of(self, item: Any, index: int) -> Mapping[str, Any]:
        """Return the columns of an item, none for one without, or raise the DataError if it lacks one that is named."""
        row: Mapping[str, Any] = item if isinstance(item, Mapping) else {}
        for option, name in self._named_beside:
            if name is not None and name not in row:
                if isinstance(item, Mapping):
                    has = f"row {index} has {', '.join(map(str, item))}"
                else:
                    has = f"row {index} is {kind_of(item)} and not a dict with columns; {_INSTEAD[option]}"
                raise DataError(f"{self.called} has no column {name!r} ({option}): {has}")
        return row

    def _embedding(self, index: int, row: Mapping[str, Any]) -> Any:
        if self.embedding_column is not None:
            value = row[self.embedding_column]
            array = as_array(value)
            return value if array is None else array.tolist()
        if self.embeddings is None or index >= len(self.embeddings):
            return None
        return self.embeddings[index].tolist()

    def _condition(self, index: int, row: Mapping[str, Any]) -> Condition:
        if self.condition_column is not None:
            return _plain(row[self.condition_column])
        if self.conditions is None:
            return None
        return _plain(self.conditions[index]) if index < len(self.conditions) else None

    def _image_in(self, item: Any, index: int) -> Any:
        """Return the image in what a data set gives for one number: itself, the first of several, or a column."""
        if isinstance(item, Mapping):
            return item[self._column_in(item, index)]
        if isinstance(item, tuple | list) and len(item):
            if len(item) > 1:
                self._beside += len(item) - 1
                self._example = self._example or f"{item[1]!r}"[:_SHOWN]
            return item[0]
        return item

    def _column_in(self, item: Mapping[str, Any], index: int) -> str:
        if self.image_column is not None:
            if self.image_column in item:
                return self.image_column
            raise DataError(f"{self.called}: row {index} has no {self.image_column!r}: it has {', '.join(item)}")
        found = [name for name, value in item.items() if isinstance(value, Image.Image) or _has_pixels(value)]
        if len(found) != 1:
            several = f"several images, {', '.join(found)}" if found else f"no image, but {', '.join(item)}"
            raise DataError(f"{self.called}: row {index} has {several}: name one (image_column)")
        return found[0]


def _kind(images: Any, called: str) -> str:
    """Return what was given in words, or raise the DataError for what is no set of images."""
    roots = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(images).__mro__}
    name = type(images).__name__
    if ("datasets", "DatasetDict") in roots or ("datasets", "IterableDatasetDict") in roots:
        raise DataError(f"{called} is a {name} of the splits {', '.join(images)}: give one, such as images['train']")
    if ("torch", "DataLoader") in roots:
        raise DataError(f"{called} is a DataLoader, which shuffles and batches: give its data set, loader.dataset")
    if isinstance(images, str | bytes | Path | Mapping | type | Image.Image) or images is None:
        what = "one image" if isinstance(images, Image.Image) else kind_of(images)
        raise DataError(f"{called} is {what}: expected {EXPECTED}")
    if ("datasets", "Dataset") in roots or ("datasets", "IterableDataset") in roots:
        return f"datasets.{name}"
    array = as_array(images)
    if array is not None:
        if array.ndim not in (3, 4) or (array.ndim == 3 and array.shape[-1] in (1, 3, 4)):
            raise DataError(
                f"{called} is of shape {array.shape}: expected (images, channels, height, width), (images, height, "
                f"width, channels) of an array, or (images, height, width); one image is images[None]"
            )
        return f"{'array' if array is images else 'tensor'} of shape {array.shape}"
    if hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        return name
    if hasattr(images, "__iter__"):
        return name
    raise DataError(f"{called} is {kind_of(images)}: expected {EXPECTED}")


def _items(images: Any) -> Iterable[Any]:
    """Return the items of what was given, also of data sets that only know `len` and numbers."""
    if hasattr(images, "__len__") and hasattr(images, "__getitem__"):
        return (images[index] for index in range(len(images)))
    items: Iterable[Any] = images
    return items


def _is_image(kind: Any) -> bool:
    """Return whether a feature of datasets holds image files: an Image, or the struct that an Image is stored as."""
    return type(kind).__name__ == "Image" or (isinstance(kind, Mapping) and set(kind) == {"bytes", "path"})


def _has_pixels(value: Any) -> bool:
    array = as_array(value)
    return array is not None and array.ndim >= 2


def _file_of(value: Mapping[str, Any]) -> bytes | None:
    """Return the bytes of an image that datasets stores by its bytes or by a path; None if there is none."""
    data, path = value.get("bytes"), value.get("path")
    if data is not None:
        return bytes(data)
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError:
        return None


def _plain(value: Any) -> Condition:
    """Return a class or a caption as a Python value; numbers of numpy and torch have an `item`."""
    found = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
    if found is None or isinstance(found, str | int):
        return found
    raise DataError(f"a condition is {found!r}: expected a class as a whole number, a caption as a string, or None")
