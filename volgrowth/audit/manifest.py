"""The plan of an audit, frozen before its first shard: what is measured, on which rows, by which model.

Resuming compares the frozen plan with what is there now. Whatever differs and could change a score is an error that
names it; how the audit is run (workers, address) may differ.
"""

import hashlib
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Self

from volgrowth.audit.store import Store
from volgrowth.config import AuditConfig
from volgrowth.errors import OutputError
from volgrowth.records import SCHEMA_VERSION, ModelInfo
from volgrowth.sources import Source
from volgrowth.version import VERSION

MANIFEST = "manifest.json"
SUCCESS = "_SUCCESS"
SCORES_FOLDER = "scores"
HOLDOUT_FOLDER = "holdout"
COMPUTING = ("volgrowth", "torch", "diffusers")
PACKAGES = ("torch", "diffusers", "ray", "datasets", "pyarrow", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Shard:
    """A contiguous range of rows, and the fragment that will hold their scores."""

    folder: str
    index: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """The fragment's file under OUT: deterministic, so that a late writer replaces equal rows."""
        return f"{self.folder}/part-{self.index:05d}.parquet"

    @property
    def rows(self) -> int:
        """Rows in the range."""
        return self.stop - self.start


@dataclass(frozen=True)
class DataInfo:
    """What the manifest records of a data set."""

    name: str
    split: str | None
    kind: str
    rows: int
    files: int
    fingerprint: str

    @classmethod
    def of(cls, name: str, split: str | None, source: Source) -> Self:
        """Of an opened source."""
        return cls(name, split, source.kind, source.num_rows, len(source.files), source.fingerprint)


@dataclass(frozen=True)
class Manifest:
    """Everything that decides the scores of an audit."""

    config: dict[str, Any]
    config_digest: str
    model: ModelInfo
    data: DataInfo
    holdout: DataInfo | None
    created: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    versions: dict[str, str] = field(default_factory=lambda: environment())
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def plan(cls, config: AuditConfig, model: ModelInfo, data: DataInfo, holdout: DataInfo | None) -> Self:
        """A new audit's plan."""
        return cls(config.frozen, config.digest, model, data, holdout)

    @property
    def digest(self) -> str:
        """sha256 of everything that decides a score: settings, weights, rows. Every fragment carries it."""
        parts = (self.config_digest, self.model.hash, self.data.fingerprint, self.holdout and self.holdout.fingerprint)
        return "sha256:" + hashlib.sha256(repr(parts).encode()).hexdigest()

    @property
    def shards(self) -> list[Shard]:
        """All shards, those of the held-out rows last."""
        size = self.config["shard_size"]
        ranges = list(_shards(SCORES_FOLDER, self.data.rows, size))
        return ranges + (list(_shards(HOLDOUT_FOLDER, self.holdout.rows, size)) if self.holdout else [])

    def to_json(self) -> dict[str, Any]:
        """As written to OUT, with the shard table spelled out."""
        table = [[shard.name, shard.start, shard.stop] for shard in self.shards]
        return {**asdict(self), "shards": {"columns": ["name", "start", "stop"], "table": table}}

    @classmethod
    def from_json(cls, content: dict[str, Any], where: str) -> Self:
        """As read from OUT.

        Raises:
            OutputError: what is there is no manifest of this version.
        """
        version = content.get("schema_version")
        if version != SCHEMA_VERSION:
            raise OutputError(
                f"{where} was written by another version of volgrowth (schema {version}, this one writes "
                f"{SCHEMA_VERSION}): choose another output"
            )
        known = {name: content[name] for name in ("config", "config_digest", "created", "versions")}
        model = {**content["model"], "image_shape": tuple(content["model"]["image_shape"])}
        holdout = content["holdout"]
        return cls(
            model=ModelInfo(**model),
            data=DataInfo(**content["data"]),
            holdout=DataInfo(**holdout) if holdout else None,
            **known,
        )


def freeze(store: Store, planned: Manifest) -> Manifest:
    """Write the plan to an empty OUT, or check it against the one that is there.

    Raises:
        OutputError: OUT holds another audit, or something else.
    """
    if store.exists(MANIFEST):
        frozen = Manifest.from_json(store.read_json(MANIFEST), f"{store.url}/{MANIFEST}")
        difference = next(_differences(frozen, planned, finished=store.exists(SUCCESS)), None)
        if difference:
            raise OutputError(
                f"output {store.url} holds another audit: {difference}. Choose another output, or repeat "
                f"the audit as it was to resume it"
            )
        return frozen
    strangers = [name for name in store.names() if not name.startswith(".")]
    if strangers:
        raise OutputError(
            f"output {store.url} is not empty and holds no audit (it has {strangers[0]}): choose an empty or new folder"
        )
    store.write_json(MANIFEST, planned.to_json())
    return planned


def environment() -> dict[str, str]:
    """Versions of what computes the scores."""
    return {
        "volgrowth": VERSION,
        "python": platform.python_version(),
        **{p: metadata.version(p) for p in PACKAGES},
    }


def _differences(frozen: Manifest, planned: Manifest, *, finished: bool) -> Iterator[str]:
    """What differs, the most telling first, as `name was A there and is B now`."""
    for name in () if finished else COMPUTING:
        begun, here = frozen.versions.get(name), planned.versions.get(name)
        if begun != here:
            yield f"it was begun with {name} {begun} and would go on with {here}"
    for name in sorted({*frozen.config, *planned.config}):
        before, now = frozen.config.get(name), planned.config.get(name)
        if before != now:
            yield f"{name} was {before!r} there and is {now!r} now"
    if frozen.model.hash != planned.model.hash:
        yield f"the model's weights changed ({frozen.model.hash[:19]} there, {planned.model.hash[:19]} now)"
    for which, before, now in (
        ("data", frozen.data, planned.data),
        ("holdout", frozen.holdout, planned.holdout),
    ):
        if before and now and before.fingerprint != now.fingerprint:
            yield (
                f"the {which} set changed (it had {before.rows} rows in {before.files} files there and has {now.rows} "
                f"in {now.files} now)"
            )


def _shards(folder: str, rows: int, size: int) -> Iterator[Shard]:
    for index, start in enumerate(range(0, rows, size)):
        yield Shard(folder, index, start, min(start + size, rows))
