"""Which images of an audited data set pull the model towards some image: `jobs/influence.py`.

The images are those that the audit scored, read by its frozen listing and decoded as it did. The formulas are those of
`volgrowth.theory.training_influence`; noise levels are those of the model's own sampler.
"""

import argparse
import inspect
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from volgrowth.audit.output.result import Audit, open_audit
from volgrowth.config import AuditConfig
from volgrowth.errors import DataError, ModelError, UsageError, VolgrowthError
from volgrowth.models import load_model
from volgrowth.numerics import Denoiser
from volgrowth.numerics.denoisers import Condition
from volgrowth.records import Status
from volgrowth.sources import BadImage, Row, decode_image, to_unit
from volgrowth.storage.store import Store
from volgrowth.theory.training_influence import Checkpoint, Influence, influence

TABLE = "influence.parquet"
SCHEMA = pa.schema(
    {
        "query": pa.string(),
        "row": pa.int64(),
        "image_id": pa.string(),
        "status": pa.string(),
        "influence": pa.float64(),
        "influence_normalised": pa.float64(),
        "rank": pa.int32(),
    }
)
# queries where none are named, and lines printed for each
FLAGGED, SHOWN = 4, 5
# numbers of the queries' gradients that are held, beyond which they are sketched to so many
EXACT, WIDTH = 2**28, 2**16


@dataclass(frozen=True)
class Settings:
    """How influence is measured.

    Attributes:
        levels: noise levels of the sampler that the mean is taken over.
        noises: at each level.
        width: of the sketch; None for exact gradients, or a sketch where those of the queries are too large.
        seed: of noises and sketches.
        device: where a torch.device is told to be.
        batch_size: images whose gradients are taken together; 1 for models that torch.func.vmap cannot take.
    """

    levels: int = 10
    noises: int = 1
    width: int | None = None
    seed: int = 0
    device: str = "cpu"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("levels", "noises", "width", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}: expected 1 or more")


@dataclass(frozen=True)
class Query:
    """An image (C, H, W) uint8 that is asked about, by a name, and its condition."""

    name: str
    pixels: np.ndarray
    condition: Condition = None


class Images:
    """The images of an audit that have a score, in the order of its rows."""

    def __init__(self, audit: Audit):
        self.config = AuditConfig.build(**audit.manifest["config"], output=audit.store.url)
        self.source, self.shape = audit.open_data(), audit.frozen.image_shape
        self.statuses = audit.scores["status"].to_pylist()

    def __len__(self) -> int:
        return self.statuses.count(Status.OK.value)

    def rows(self) -> Iterator[Row]:
        """Those that have a score."""
        return (row for row in self.source.read(0, len(self.statuses)) if self.statuses[row.row] == Status.OK.value)

    def pixels(self, data: bytes | None, name: str) -> np.ndarray:
        """As the model sees them."""
        try:
            return decode_image(data, self.shape, self.config.max_pixels)
        except BadImage as bad:
            raise DataError(f"{name} is {bad}: expected an image") from None

    def query(self, number: int) -> Query:
        """The image of a row."""
        if not 0 <= number < len(self.statuses):
            raise UsageError(f"row {number} is asked for: expected 0 to {len(self.statuses) - 1}")
        if self.statuses[number] != Status.OK.value:
            raise UsageError(f"row {number} is {self.statuses[number]}: expected a row with a score")
        (row,) = self.source.read(number, number + 1)
        return Query(f"row {number}", self.pixels(row.data, f"row {number}"), row.condition)

    def file(self, path: Path) -> Query:
        """The image of a file: a sample of the model, say."""
        try:
            return Query(path.name, self.pixels(path.read_bytes(), str(path)))
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}): expected the file of an image") from None


@dataclass(frozen=True)
class States:
    """The same images as states of a model, read anew each time."""

    images: Images
    denoiser: Denoiser
    label: str

    def __iter__(self) -> Iterator[Tensor]:
        rows = track(
            self.images.rows(),
            self.label,
            len(self.images),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        return (states(self.denoiser, [self.images.pixels(row.data, f"row {row.row}")])[0] for row in rows)


def states(denoiser: Denoiser, pixels: Sequence[np.ndarray]) -> Tensor:
    """Of images (C, H, W) uint8."""
    images = torch.from_numpy(to_unit(np.stack(pixels)))
    with torch.no_grad():
        return denoiser.embed(images.to(denoiser.device, denoiser.dtype))


def network_of(denoiser: Denoiser) -> torch.nn.Module:
    """The module behind a denoiser: an attribute of it, or what a function that is one was made of.

    Raises:
        ModelError: none, or several.
    """
    held = list(vars(denoiser).values())
    held += [inner for f in held if inspect.isfunction(f) for inner in inspect.getclosurevars(f).nonlocals.values()]
    found = {id(module): module for module in held if isinstance(module, torch.nn.Module)}
    if len(found) != 1:
        raise ModelError(
            f"a {type(denoiser).__name__} holds {len(found)} torch modules: expected one, whose parameters were trained"
        )
    return next(iter(found.values()))


def flagged(audit: Audit) -> list[int]:
    """The rows of highest excess growth among those that are flagged, one of each image."""
    findings = audit.findings
    first = pc.equal(findings["row"], findings["identical"])
    found = findings.filter(pc.and_(pc.fill_null(findings["memorized"], False), first))
    rows = found.sort_by([("excess_growth", "descending")])["row"].to_pylist()[:FLAGGED]
    if not rows:
        raise UsageError(f"{audit.store.url} has no flagged images: name rows (--rows) or files (--images)")
    return rows


def measure(
    images: Images, queries: Sequence[Query], checkpoints: Sequence[str], rates: Sequence[float], settings: Settings
) -> Influence:
    """Influence of each image that has a score on each query, over checkpoints; those of the audit's model if none."""
    config, generator = images.config, torch.Generator().manual_seed(settings.seed)
    names = [{"name": name, "base": config.base, "resolution": config.resolution} for name in checkpoints]
    conditional = config.condition_column is not None
    conditions = [row.condition for row in images.rows()] if conditional else None
    asked = [query.condition for query in queries] if conditional else None
    parts = []
    for name, rate in zip(names or [config.model_arguments], rates or [1.0] * max(len(names), 1), strict=True):
        denoiser = load_model(**name, device=settings.device)
        if denoiser.pixel_shape != images.shape:
            raise ModelError(f"{name['name']} is of images {denoiser.pixel_shape}: expected the audit's {images.shape}")
        network = network_of(denoiser)
        numbers = 2 * len(queries) * sum(value.numel() for value in network.parameters())
        part = influence(
            [Checkpoint(denoiser, network, rate)],
            States(images, denoiser, Path(name["name"]).name),
            states(denoiser, [query.pixels for query in queries]),
            denoiser.sampling_levels(settings.levels),
            settings.noises,
            generator=generator,
            width=settings.width or (None if numbers <= EXACT else WIDTH),
            conditions=conditions,
            query_conditions=asked,
            batch_size=settings.batch_size,
        )
        parts.append(part)
    return Influence(sum(part.raw for part in parts), sum(part.normalised for part in parts))  # type: ignore[arg-type]


def ranked(audit: Audit, queries: Sequence[Query], found: Influence) -> pa.Table:
    """One line for each query and row of the data set; rows without a score have no influence and no rank.

    Rank 1 is the highest normalised influence.
    """
    scores = audit.scores.select(["row", "image_id", "status"])
    scored = pc.equal(scores["status"], Status.OK.value).to_numpy()
    tables = []
    for query, raw, normalised in zip(queries, found.raw.numpy(), found.normalised.numpy(), strict=True):
        ranks = np.argsort(np.argsort(-normalised, kind="stable")) + 1
        columns = [pa.array([query.name] * len(scores)), *scores.columns]
        for values in (raw, normalised, ranks):
            spread = np.zeros(len(scores), values.dtype)
            spread[scored] = values
            columns.append(pa.array(spread, mask=~scored))
        tables.append(pa.table(columns, SCHEMA.names).cast(SCHEMA))
    return pa.concat_tables(tables)


def run(given: argparse.Namespace) -> pa.Table:
    """Measure, and publish the table in OUT."""
    audit = open_audit(given.output)
    if given.rates and len(given.rates) != max(len(given.checkpoints), 1):
        raise UsageError(f"{len(given.rates)} rates were given: expected one for each of the checkpoints")
    settings = Settings(given.levels, given.noises, given.width, given.seed, given.device, given.batch_size)
    images = Images(audit)
    rows = given.rows if given.rows or given.images else flagged(audit)
    queries = [*map(images.query, rows), *map(images.file, given.images)]
    table = ranked(audit, queries, measure(images, queries, given.checkpoints, given.rates, settings))
    models = given.checkpoints or [images.config.model]
    audit.store.write_table(TABLE, table, {"checkpoints": "\n".join(models), "settings": repr(settings)})
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """What `jobs/influence.py` does: 0 done, 2 could not start."""
    parser = argparse.ArgumentParser(prog="influence", description="Which images pull a model towards an image.")
    parser.add_argument("output", metavar="OUT", help="a finished audit; the table is written there")
    parser.add_argument("--checkpoints", nargs="+", default=[], help="models along the training; the audit's if none")
    parser.add_argument(
        "--rates", nargs="+", type=float, default=[], help="what each counts: learning rate times steps"
    )
    parser.add_argument(
        "--rows", nargs="+", type=int, default=[], help="rows to ask about; the highest flagged if none"
    )
    parser.add_argument("--images", nargs="+", type=Path, default=[], help="files of images to ask about, as samples")
    parser.add_argument("--levels", type=int, default=Settings.levels, help="noise levels, of the model's own sampler")
    parser.add_argument("--noises", type=int, default=Settings.noises, help="at each level")
    parser.add_argument("--width", type=int, help="sketch gradients to so many numbers; exact where they fit in memory")
    parser.add_argument("--seed", type=int, default=Settings.seed, help="of noises and sketches")
    parser.add_argument("--device", default=Settings.device, help="cpu or cuda")
    parser.add_argument("--batch-size", type=int, help="images at once; 1 for models that torch.func.vmap cannot take")
    given = parser.parse_args(arguments)
    try:
        table = run(given)
    except VolgrowthError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    order = [("query", "ascending"), ("rank", "ascending")]
    for line in table.filter(pc.less_equal(table["rank"], SHOWN)).sort_by(order).to_pylist():
        print("{query}: {rank}. row {row} {image_id}, {influence_normalised:.3g}, raw {influence:.3g}".format(**line))
    print(f"table: {Store(given.output).path(TABLE)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
