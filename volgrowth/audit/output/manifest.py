"""The manifest of an audit: its settings, model and data sets, frozen before the first shard is scored.

A resumed audit is compared with its manifest. A difference that could change a score is an error that names it; how the
audit is run (workers, address) may differ.
"""

import hashlib
import platform
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib import metadata
from typing import Annotated, Any, Self

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from volgrowth.config import MAX_BYTES, AuditConfig
from volgrowth.errors import OutputError, kind_and_line
from volgrowth.records import SCHEMA_VERSION, ModelInfo
from volgrowth.sources import PNG_METHOD, Listing, Opened
from volgrowth.version import VERSION

MANIFEST = "manifest.json"
SUCCESS = "_SUCCESS"
SCORES_FOLDER = "scores"
HOLDOUT_FOLDER = "holdout"
IMAGES_FOLDER = "images"
"""Folder of the images that were given as objects: below it "audited", and "held-out" if there are held-out ones."""
COMPUTING = ("volgrowth", "torch", "diffusers")
PACKAGES = ("torch", "diffusers", "ray", "datasets", "pyarrow", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Shard:
    """A contiguous range of rows, and the fragment that will hold their scores.

    Attributes:
        folder: `SCORES_FOLDER` for audited rows, `HOLDOUT_FOLDER` for held-out ones.
        index: the number of the shard in its folder.
        start: its first row.
        stop: the row after its last one.
        generation: how often the data set had been extended when its rows were added.
    """

    folder: str
    index: int
    start: int
    stop: int
    generation: int = 0

    @property
    def name(self) -> str:
        """The fragment's file in the output: deterministic, so that a late writer replaces equal rows."""
        return f"{self.folder}/part-{self.index:05d}.parquet"

    @property
    def rows(self) -> int:
        """Number of rows in the range."""
        return self.stop - self.start


@dataclass(frozen=True)
class DataInfo:
    """The record of a data set in the manifest.

    Attributes:
        name: path, URL, pattern or hub id.
        split: its split, if it has several.
        kind: the kind of its files.
        rows: number of rows.
        files: number of files.
        fingerprint: sha256 over its files.
        listing: facts about the listing of its files that the output holds: see `volgrowth.sources.Listing.describe`.
        grown: rows and fingerprint before each extension, oldest first.
        opened: what was opened and left aside, for people; None in manifests of versions that did not note it.
    """

    name: str
    split: str | None
    kind: str
    rows: int
    files: int
    fingerprint: str
    listing: dict[str, Any]
    grown: tuple[tuple[int, str], ...] = ()
    opened: Opened | None = None

    @classmethod
    def of(cls, name: str, split: str | None, listing: Listing, opened: Opened | None = None) -> Self:
        """Build a `DataInfo` from a listing."""
        facts = listing.describe()
        rows, files, fingerprint = listing.num_rows, listing.num_files, listing.fingerprint
        return cls(name, split, listing.kind, rows, files, fingerprint, facts, opened=opened)

    def extended(self, listing: Listing, opened: Opened | None = None) -> Self:
        """Return the record of the same data set with the files it gained, as it was `opened` with them."""
        grown = (*self.grown, (self.rows, self.fingerprint))
        return replace(type(self).of(self.name, self.split, listing, opened), grown=grown)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Return the record from its JSON values."""
        grown = tuple((rows, fingerprint) for rows, fingerprint in content["grown"])
        opened = content.get("opened")
        return cls(**{**content, "grown": grown, "opened": opened and Opened.from_json(opened)})


@dataclass(frozen=True)
class Manifest:
    """Everything that decides the scores of an audit."""

    config: dict[str, Any]
    config_digest: str
    model: ModelInfo
    data: DataInfo
    holdout: DataInfo | None
    created: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    versions: dict[str, str] = field(default_factory=lambda: installed_versions())
    schema_version: int = SCHEMA_VERSION
    png_method: int = PNG_METHOD
    shard_rows: Annotated[int, Field(ge=1)] | None = None

    @classmethod
    def of(cls, config: AuditConfig, model: ModelInfo, data: DataInfo, holdout: DataInfo | None) -> Self:
        """Return the manifest of a new audit."""
        return cls(config.frozen, config.digest, model, data, holdout)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that the model takes."""
        channels, height, width = self.model.image_shape
        return channels, height, width

    @property
    def digest(self) -> str:
        """sha256 of everything that decides a score: settings, weights, rows."""
        return self.digest_at(len(self.data.grown))

    @property
    def list_digest(self) -> str:
        """The name of the audit in its lists: the first digits of its digest."""
        return self.digest.removeprefix("sha256:")[:16]

    def digest_at(self, generation: int) -> str:
        """Return the digest of the audit before its data set was extended further.

        Every fragment carries the digest of its shard's generation, so that an extension leaves it valid.
        """
        fingerprint = [*(fingerprint for _, fingerprint in self.data.grown), self.data.fingerprint][generation]
        parts = (self.config_digest, self.model.hash, fingerprint, self.holdout and self.holdout.fingerprint)
        return "sha256:" + hashlib.sha256(repr(parts).encode()).hexdigest()

    @property
    def shards(self) -> list[Shard]:
        """All shards, those of the held-out rows last."""
        size = self.shard_rows or self.config["shard_size"]
        ranges = list(_shards(SCORES_FOLDER, self.data, size))
        return ranges + (list(_shards(HOLDOUT_FOLDER, self.holdout, size)) if self.holdout else [])

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as JSON values, with the table of all shards."""
        table = [[shard.name, shard.start, shard.stop] for shard in self.shards]
        return {**asdict(self), "shards": {"columns": ["name", "start", "stop"], "table": table}}

    @classmethod
    def from_json(cls, content: dict[str, Any], where: str) -> Self:
        """Return the manifest from its JSON values.

        Args:
            content: the values.
            where: path or URL that they were read from, for errors.

        Raises:
            OutputError: another version of the schema wrote them, or they are no manifest.
        """
        version = content.get("schema_version")
        if version != SCHEMA_VERSION:
            raise OutputError(
                f"{where} was written by another version of volgrowth (schema {version}, this one writes "
                f"{SCHEMA_VERSION}): choose another output"
            )
        try:
            return cls._of_json(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OutputError(
                f"{where} is not as volgrowth writes it ({kind_and_line(error)}): restore it from a copy, or "
                f"audit into another output"
            ) from None

    @classmethod
    def _of_json(cls, content: dict[str, Any]) -> Self:
        """Return the manifest from its JSON values; values that are none raise what comes first."""
        known = {name: content[name] for name in ("config_digest", "created", "versions")}
        # a setting that is gone, where it was not used, and one that came later: such an audit is as any other
        config = {name: value for name, value in content["config"].items() if (name, value) != ("adaptive", False)}
        config.setdefault("max_bytes", MAX_BYTES)
        model = dict(content["model"])
        for name in ("image_shape", "latent_shape"):
            model[name] = tuple(model[name]) if model.get(name) else None
        for name in ("unknown_settings", "notes"):
            model[name] = tuple(model.get(name, ()))
        holdout = content["holdout"]
        made = cls(
            config=config,
            model=ModelInfo(**model),
            data=DataInfo.from_json(content["data"]),
            holdout=DataInfo.from_json(holdout) if holdout else None,
            shard_rows=content.get("shard_rows"),
            png_method=content.get("png_method", 1),  # of older versions, whose rows go on to be measured as they were
            **known,
        )
        # checked by value: what was built from JSON may hold anything
        TypeAdapter(cls).validate_python({each.name: getattr(made, each.name) for each in fields(cls)}, strict=False)
        TypeAdapter(ModelInfo).validate_python(asdict(made.model))
        for data in (made.data, made.holdout):
            if data:
                TypeAdapter(DataInfo).validate_python({**asdict(data), "opened": None})
                Listing.stored(data.listing, lambda chunk: None)
        TypeAdapter(_NeededConfig).validate_python(config)
        return made


class _NeededConfig(TypedDict):
    """The settings that later commands read from a manifest."""

    shard_size: Annotated[int, Field(ge=1)]
    seed: int
    max_pixels: int
    max_bytes: int
    measure: dict[str, Any]
    image_column: str | None
    id_column: str | None
    class_column: str | None
    caption_column: str | None


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that compute the scores; a package that is not installed is left out."""
    versions = {"volgrowth": VERSION, "python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):  # the local engine does without Ray
            versions[package] = metadata.version(package)
    return versions


def _shards(folder: str, data: DataInfo, size: int) -> Iterator[Shard]:
    """Yield the shards of the rows that were there at first, then of the rows that each extension added."""
    index, begin = 0, 0
    for generation, end in enumerate([*(rows for rows, _ in data.grown), data.rows]):
        for start in range(begin, end, size):
            yield Shard(folder, index, start, min(start + size, end), generation)
            index += 1
        begin = end
