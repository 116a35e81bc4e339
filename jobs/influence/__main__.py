"""The command line of `jobs/influence.py`: which images of an audited data set pull the model towards some image.

The images are those that the audit scored, read by its frozen listing and decoded as it did. The formulas are those of
`volgrowth.theory.training_influence`; noise levels are those of the model's own sampler.
"""

import argparse
import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from volgrowth.analysis.judging import JudgedAudit
from volgrowth.audit.output.lock import driving
from volgrowth.audit.output.result import Audit, open_audit
from volgrowth.config import AuditConfig
from volgrowth.errors import DataError, ModelError, UsageError, VolgrowthError
from volgrowth.models import load_model
from volgrowth.numerics import Denoiser
from volgrowth.numerics.denoisers import Condition
from volgrowth.plain import plain, print_plain
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
# queries if none are named, and lines printed for each
FLAGGED, SHOWN = 4, 5
# the queries' gradients are exact up to so many numbers in all; longer ones are sketched to a width
EXACT, WIDTH = 2**28, 2**16


class Query(NamedTuple):
    """An image (C, H, W) uint8 whose origins are asked for, its name in the table, and its condition."""

    name: str
    pixels: np.ndarray
    condition: Condition = None


class AuditedImages:
    """The rows of an audit that have a score, in order."""

    def __init__(self, audit: Audit):
        self.config = AuditConfig.build(**audit.manifest["config"], output=audit.store.url)
        self.source, self.shape = audit.open_data(), audit.frozen.image_shape
        self.scored = np.concatenate([part["status"].to_numpy() == Status.OK.value for part in _statuses(audit)])
        self.audit = audit

    def __iter__(self) -> Iterator[Row]:
        return (row for row in self.source.read(0, len(self.scored)) if self.scored[row.row])

    def pixels(self, data: bytes | None, name: str) -> np.ndarray:
        """Decode the file of an image as the model sees it."""
        try:
            return decode_image(data, self.shape, self.config.max_pixels)
        except BadImage as bad:
            raise DataError(f"{name} is {bad}: expected an image") from None

    def query_of_row(self, number: int) -> Query:
        """Return the image of a row as a query."""
        if not 0 <= number < len(self.scored):
            raise UsageError(f"row {number} is asked for: expected 0 to {len(self.scored) - 1}")
        if not self.scored[number]:
            parts = (part for part in _statuses(self.audit) if number <= part["row"][-1].as_py())
            part = next(parts)
            status = part["status"][number - part["row"][0].as_py()].as_py()
            raise UsageError(f"row {number} is {status}: expected a row with a score")
        (row,) = self.source.read(number, number + 1)
        return Query(f"row {number}", self.pixels(row.data, f"row {number}"), row.condition)

    def query_of_file(self, path: Path) -> Query:
        """Return the image of a file, such as a sample of the model, as a query."""
        try:
            return Query(path.name, self.pixels(path.read_bytes(), str(path)))
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}): expected the file of an image") from None

    def states(self, denoiser: Denoiser, label: str) -> Iterator[Tensor]:
        """Read the rows as states of a model, under a progress bar."""
        count, console = int(self.scored.sum()), Console(stderr=True)
        for row in track(self, label, count, console=console, disable=not sys.stderr.isatty()):
            yield _states(denoiser, [self.pixels(row.data, f"row {row.row}")])[0]


def _statuses(audit: Audit) -> Iterator[pa.Table]:
    return audit.parts(scores=["status"])


def _states(denoiser: Denoiser, pixels: Sequence[np.ndarray]) -> Tensor:
    """Return images (C, H, W) uint8 as states of a model."""
    images = torch.from_numpy(to_unit(np.stack(pixels)))
    with torch.no_grad():
        return denoiser.embed(images.to(denoiser.device, denoiser.dtype))


def network_of(denoiser: Denoiser) -> torch.nn.Module:
    """Return the module behind a denoiser: an attribute of it, or held by a function that is an attribute of it.

    Raises:
        ModelError: there is none, or there are several.
    """
    held = list(vars(denoiser).values())
    held += [inner for f in held if inspect.isfunction(f) for inner in inspect.getclosurevars(f).nonlocals.values()]
    found = {id(module): module for module in held if isinstance(module, torch.nn.Module)}
    if len(found) != 1:
        raise ModelError(
            f"a {type(denoiser).__name__} holds {len(found)} torch modules: expected one, whose parameters were trained"
        )
    return next(iter(found.values()))


def most_suspicious_rows(audit: Audit) -> list[int]:
    """Return the flagged or reproduced rows of most evidence, one for each image."""
    judged = JudgedAudit(audit, audit.summary.get("verification"))
    found = [part.findings.filter(pa.array(part.found & part.first)) for part in judged.parts(["excess_growth"])]
    ranked = pa.concat_tables(found).sort_by([(judged.pictures.ranking, "descending")])
    rows = ranked["row"].to_pylist()[:FLAGGED]
    if not rows:
        raise UsageError(f"{audit.store.url} has no flagged images: name rows (--rows) or files (--images)")
    return rows


def measure_influence(rows: AuditedImages, queries: Sequence[Query], given: argparse.Namespace) -> Influence:
    """Measure the influence of every row on every query, over the checkpoints or else at the audit's own model."""
    config, generator = rows.config, torch.Generator().manual_seed(given.seed)
    models = [{"name": name, "base": config.base, "resolution": config.resolution} for name in given.checkpoints]
    conditional = config.condition_column is not None
    parts = []
    for model, rate in zip(models or [config.model_arguments], given.rates or [1.0] * max(len(models), 1), strict=True):
        denoiser = load_model(**model, device=given.device)
        if denoiser.pixel_shape != rows.shape:
            raise ModelError(f"{model['name']} is of images {denoiser.pixel_shape}: expected the audit's {rows.shape}")
        network = network_of(denoiser)
        numbers = 2 * len(queries) * sum(value.numel() for value in network.parameters())
        part = influence(
            [Checkpoint(denoiser, network, rate)],
            rows.states(denoiser, Path(model["name"]).name),
            _states(denoiser, [query.pixels for query in queries]),
            denoiser.sampling_levels(given.levels),
            given.noises,
            generator=generator,
            width=given.width or (None if numbers <= EXACT else WIDTH),
            conditions=(row.condition for row in rows) if conditional else None,
            query_conditions=[query.condition for query in queries] if conditional else None,
            batch_size=given.batch_size,
        )
        parts.append(part)
    return Influence(sum(part.raw for part in parts), sum(part.normalised for part in parts))  # type: ignore[arg-type]


def ranked_table(audit: Audit, queries: Sequence[Query], found: Influence) -> pa.Table:
    """Return one line for each query and row of the data set; rank 1 is the highest normalised influence.

    Rows without a score have no influence and no rank.
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


def attribute(given: argparse.Namespace) -> pa.Table:
    """Measure what the command line asks for, and publish the table in the audit's output folder."""
    audit = open_audit(given.output, trust_output=given.trust_output)
    audit.refuse_if_strange("measuring influence")
    if given.rates and len(given.rates) != max(len(given.checkpoints), 1):
        raise UsageError(f"{len(given.rates)} rates were given: expected one for each of the checkpoints")
    for name in ("levels", "noises", "width", "batch_size"):
        value = getattr(given, name)
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}: expected 1 or more")
    rows = AuditedImages(audit)
    asked = given.rows if given.rows or given.images else most_suspicious_rows(audit)
    queries = [*map(rows.query_of_row, asked), *map(rows.query_of_file, given.images)]
    table = ranked_table(audit, queries, measure_influence(rows, queries, given))
    settings = {name: getattr(given, name) for name in ("levels", "noises", "width", "seed", "device", "batch_size")}
    models = given.checkpoints or [rows.config.model]
    with driving(audit.store) as lock:
        lock.fenced().write_table(TABLE, table, {"checkpoints": "\n".join(models), "settings": repr(settings)})
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="influence", description="Which images pull a model towards an image.")
    add = parser.add_argument
    add("output", metavar="OUT", help="a finished audit; the table is written there")
    add("--checkpoints", nargs="+", default=[], help="models along the training; by default the audit's own model")
    add("--rates", nargs="+", type=float, default=[], help="weight of each checkpoint: learning rate times steps")
    add("--rows", nargs="+", type=int, default=[], help="rows to ask about; by default the highest flagged ones")
    add("--images", nargs="+", type=Path, default=[], help="files of images to ask about, such as samples")
    add("--levels", type=int, default=10, help="noise levels of the model's own sampler to average over")
    add("--noises", type=int, default=1, help="noises at each level")
    add("--width", type=int, help="sketch gradients to so many numbers; by default exact if they fit in memory")
    add("--seed", type=int, default=0, help="seed of noises and sketches")
    add("--device", default="cpu", help="cpu or cuda")
    add("--batch-size", type=int, help="images at once; 1 for models that torch.func.vmap cannot take")
    add("--trust-output", action="store_true", help="use what OUT names although this account did not make it")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `jobs/influence.py`. Returns the exit code: 0 done, 2 could not start."""
    given = _parser().parse_args(arguments)
    try:
        table = attribute(given)
    except VolgrowthError as error:
        print_plain(f"error: {plain(str(error))}", error=True)
        return 2
    order = [("query", "ascending"), ("rank", "ascending")]
    for line in table.filter(pc.less_equal(table["rank"], SHOWN)).sort_by(order).to_pylist():
        names = {name: plain(line.pop(name)) for name in ("query", "image_id")}
        said = "{query}: {rank}. row {row} {image_id}, {influence_normalised:.3g}, raw {influence:.3g}"
        print_plain(said.format(**names, **line))
    print_plain(f"table: {Store(given.output).path(TABLE)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
