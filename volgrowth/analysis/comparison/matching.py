"""Two finished audits, image by image: check that they can be compared, and match their images by content.

The rows of both are read in parts and matched by a database, so that their number may exceed the memory.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from volgrowth.analysis.as_numpy import as_floats
from volgrowth.analysis.calibration.error_rates import FDR
from volgrowth.analysis.calibration.expected_scores import MIN_IMAGES
from volgrowth.analysis.comparison.circumstances import refuse_other_flows
from volgrowth.analysis.judging import FoundPictures
from volgrowth.analysis.parts.database import Database
from volgrowth.audit.output.parts import other_rows
from volgrowth.audit.output.result import Audit
from volgrowth.errors import OutputError, UsageError

# settings of a measure that change how often it is repeated, not what is measured
REPEATS = frozenset({"num_probes", "num_noises"})


READ = ("row", "cluster", "q_value", "outside_range", "evidence", "growth", "excess_growth")
"""Columns of findings that a comparison reads, beside the ids of images."""
_FAILED = 2**62
"""Added to the numbers of rows without a score, so that any row with one stands before them."""


@dataclass(frozen=True)
class Matched:
    """The images of two audits, matched: the rows of the table `matched` of the database.

    Its columns are content: hash of the pixels; row_a, row_b: the row that stands for the image, which is the first
    with a score, under whatever caption; cluster: smallest row of the image's picture in A; copies_a, copies_b; z_a,
    z_b: excess growth in units of the audit's residual spread; change: their difference; scored: it has one; judged:
    neither audit leaves the image unjudged; flagged_a, flagged_b: the audit flags it, or its samples reproduced it.

    Attributes:
        null: changes of the held-out images that both calibrated and neither audits, (m,).
        only: number of pictures only in A, and only in B.
        only_flagged: number of those that their audit flags.
        held_sizes: number of distinct held-out images of A, and of B.
        draws_moved: see `_draws_moved`.
    """

    null: np.ndarray
    only: tuple[int, int]
    only_flagged: tuple[int, int]
    held_sizes: tuple[int, int]
    draws_moved: bool


def check_comparable(a: Audit, b: Audit, fdr: float) -> None:
    """Check that two audits can be compared, before their images are matched.

    Raises:
        UsageError: they cannot be compared, or the rate `fdr` is not between 0 and 1.
    """
    if not 0 < fdr < 1:
        raise UsageError(f"rate of false discoveries {fdr:g}: expected above 0 and below 1, such as {FDR:g}")
    measures = [{k: v for k, v in audit.manifest["config"]["measure"].items() if k not in REPEATS} for audit in (a, b)]
    for name in ("preset", *sorted({*measures[0], *measures[1]})):
        before, after = (measure.get(name) for measure in measures)
        if before != after:
            raise UsageError(
                f"the audits measured different things ({name} was {before!r} in {a.store.url} and {after!r} in "
                f"{b.store.url}): audit one of them again with the other's settings"
            )
    refuse_other_flows(a, b)
    shapes = ["x".join(map(str, audit.manifest["model"]["image_shape"])) for audit in (a, b)]
    if shapes[0] != shapes[1]:
        raise UsageError(
            f"the models see images of different shapes ({shapes[0]} in {a.store.url}, {shapes[1]} in {b.store.url}): "
            f"expected two models of the same images"
        )
    if a.frozen.digest == b.frozen.digest and _growth_digest(a) == _growth_digest(b):
        raise UsageError(
            f"{a.store.url} and {b.store.url} are the same audit (settings, weights, rows and scores): give the "
            f"outputs of two"
        )


def _growth_digest(audit: Audit) -> bytes:
    """Return a digest of the growth of all rows."""
    digest = hashlib.sha256()
    for part in audit.parts(scores=["growth"]):
        digest.update(as_floats(part["growth"]).tobytes())
    return digest.digest()


def match_images(database: Database, a: Audit, b: Audit) -> Matched:
    """Match the images of two audits by their pixels, in the table `matched` of an empty database.

    Raises:
        UsageError: there is no image in both.
        OutputError: one was not calibrated, or its tables do not fit each other.
    """
    for name, audit in (("a", a), ("b", b)):
        _add_images(database, name, audit)
    database.run(
        """CREATE TABLE matched AS SELECT *, change IS NOT NULL AND isfinite(change) AS scored,
            scored AND NOT outside AS judged FROM (
            SELECT content, a.row AS row_a, b.row AS row_b, a.cluster, a.copies AS copies_a, b.copies AS copies_b,
                a.z AS z_a, b.z AS z_b, CASE WHEN isnan(b.z - a.z) THEN NULL ELSE b.z - a.z END AS change,
                a.outside OR b.outside AS outside, a.flagged AS flagged_a, b.flagged AS flagged_b,
                b.cluster AS cluster_b
            FROM images_a a JOIN images_b b USING (content)
        )"""
    )
    if not database.number("SELECT count(*) FROM matched"):
        raise UsageError(
            f"{a.store.url} and {b.store.url} have no image in common: expected audits of the same images, which are "
            f"matched by their pixels"
        )
    held = _held_out(a), _held_out(b)
    found = Matched(
        null=_unchanged(database, *held),
        only=(_unmatched(database, "a", "true"), _unmatched(database, "b", "true")),
        only_flagged=(_unmatched(database, "a", "flagged"), _unmatched(database, "b", "flagged")),
        held_sizes=(len(held[0][0]), len(held[1][0])),
        draws_moved=_draws_moved(database, a, b),
    )
    database.run("DROP TABLE images_a", "DROP TABLE images_b")
    return found


def _add_images(database: Database, name: str, audit: Audit) -> None:
    """Make the table `images_` of an audit: each image once, with the values of the row that stands for it."""
    spread, verification = _spread(audit), audit.summary.get("verification")
    database.run(
        """CREATE TABLE seen (row BIGINT, content UBIGINT, cluster BIGINT, scored BOOLEAN, z DOUBLE,
            outside BOOLEAN, flagged BOOLEAN)"""
    )
    pictures = FoundPictures.of(audit.parts(findings=READ), verification)
    for part in audit.parts(findings=READ, scores=["content_hash"]):
        known = pictures.judge(part)
        rows = {
            "row": part["row"],
            "content": part["content_hash"],
            "cluster": part["cluster"],
            "scored": part["growth"].is_valid(),
            "z": pa.array(as_floats(part["excess_growth"]) / spread, from_pandas=True),
            "outside": pa.array(~known.judged),
            "flagged": pa.array(known.found),
        }
        database.add("seen", pa.table(rows).filter(part["content_hash"].is_valid()))
    database.run(
        f"""CREATE TABLE images_{name} AS SELECT chosen.content, row, cluster, copies, z, outside, flagged FROM (
            SELECT content, count(*)::INTEGER AS copies,
                min(CASE WHEN scored THEN row ELSE row + {_FAILED} END) % {_FAILED} AS row
            FROM seen GROUP BY content
        ) chosen JOIN seen USING (row)""",
        "DROP TABLE seen",
    )


def _unmatched(database: Database, name: str, condition: str) -> int:
    """Count the pictures of an audit, with an image that meets the condition, of which no image is matched."""
    column = "cluster" if name == "a" else "cluster_b"
    return database.number(
        f"""SELECT count(*) FROM (SELECT DISTINCT cluster FROM images_{name} WHERE {condition})
        ANTI JOIN (SELECT DISTINCT {column} AS cluster FROM matched) USING (cluster)"""
    )


def _held_out(audit: Audit) -> tuple[np.ndarray, np.ndarray]:
    """Return hash and z of each distinct held-out image, (n,) each; z is that of the first row with a score.

    Raises:
        OutputError: findings and scores are not of the same rows.
    """
    scores, findings = audit.holdout_scores, audit.holdout_findings
    if scores is None or findings is None:
        return np.empty(0, np.uint64), np.empty(0)
    if not scores["row"].equals(findings["row"]):
        raise other_rows(audit.store.url)
    known = scores["content_hash"].is_valid()
    content, findings = scores["content_hash"].filter(known).to_numpy(), findings.filter(known)
    order = np.lexsort((findings["row"].to_numpy(), ~findings["growth"].is_valid().to_numpy(), content))
    contents, first = np.unique(content[order], return_index=True)
    return contents, as_floats(findings["excess_growth"])[order[first]] / _spread(audit)


def _unchanged(
    database: Database, held_a: tuple[np.ndarray, np.ndarray], held_b: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Return the changes of the held-out images that have a score in both audits and that neither audits, (m,)."""
    content, first, second = np.intersect1d(held_a[0], held_b[0], assume_unique=True, return_indices=True)
    change = held_b[1][second] - held_a[1][first]
    database.run("CREATE TABLE held (content UBIGINT)")
    database.add("held", pa.table({"content": pa.array(content, pa.uint64())}))
    audited = database.table(
        """SELECT content FROM held SEMI JOIN images_a USING (content) UNION
        SELECT content FROM held SEMI JOIN images_b USING (content)"""
    )["content"].to_numpy()
    return change[np.isfinite(change) & ~np.isin(content, audited)]


def _spread(audit: Audit) -> float:
    calibration = audit.summary["calibration"]
    if calibration is None:
        raise OutputError(
            f"the audit in {audit.store.url} is not calibrated, which takes {MIN_IMAGES} distinct images with a score: "
            f"audit again with --holdout, or with more images"
        )
    if not calibration["residual_spread"] > 0:
        raise OutputError(
            f"growth does not vary among the images of {audit.store.url} (residual spread "
            f"{calibration['residual_spread']:g}), so that changes have no unit: audit again with a trained model"
        )
    return calibration["residual_spread"]


def _draws_moved(database: Database, a: Audit, b: Audit) -> bool:
    """Return True if audited images moved to other rows, and with that to other random draws.

    Preset `paper` draws axes by row, and the other presets draw the same for all rows. The change of an image that
    moved to another row is noisier than that of a held-out image whose row stayed: the two must not be compared.
    """
    configs = [audit.manifest["config"] for audit in (a, b)]
    by_row = configs[0]["measure"]["preset"] == "paper" and configs[0]["seed"] == configs[1]["seed"]
    return by_row and bool(database.number("SELECT count(*) FROM matched WHERE row_a <> row_b"))
