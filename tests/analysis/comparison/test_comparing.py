"""A comparison by a database gives what the same gives with all images in memory, to the bit."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.analysis.comparison.test_changes import HELD, audit, partly
from volgrowth.analysis.calibration.error_rates import q_values
from volgrowth.analysis.comparison.changes import CHANGES, ChangeVerdict
from volgrowth.analysis.comparison.comparing import compare_audits
from volgrowth.analysis.comparison.nulls import conformal_p_values
from volgrowth.analysis.distinct import simes
from volgrowth.analysis.judging import judge
from volgrowth.analysis.parts import database
from volgrowth.audit.output.result import Audit


def in_memory(a: Audit, b: Audit, null: np.ndarray | None, fdr: float) -> pa.Table:
    """The table of a comparison, from whole tables."""
    one, other = (images(side) for side in (a, b))
    _, first, second = np.intersect1d(one["content"], other["content"], assume_unique=True, return_indices=True)
    one, other = ({name: some[place] for name, some in side.items()} for side, place in ((one, first), (other, second)))
    change = other["z"] - one["z"]
    scored = np.isfinite(change)
    judged = scored & one["judged"] & other["judged"]
    p_value = np.where(scored, np.ones((2, 1)), np.nan)
    p_value[:, judged] = mirrored(change[judged]) if null is None else conformal_p_values(change[judged], null)
    names, picture = np.unique(one["cluster"], return_inverse=True)

    def any_of(mask: np.ndarray) -> np.ndarray:
        return np.bincount(picture, mask) > 0

    combined = np.stack([simes(p[judged], picture[judged], len(names)) for p in p_value])
    tested = np.stack([any_of(scored)] * 2)
    q_value = np.full(combined.shape, np.nan)
    q_value[tested] = q_values(combined[tested], np.arange(tested.sum()))
    q_value = q_value.min(0)
    rises = (q_value <= fdr) & (combined[0] < combined[1])
    falls = (q_value <= fdr) & ~rises
    before, after = any_of(one["flagged"]), any_of(other["flagged"])
    cases = [~any_of(judged), rises & after & ~before, falls & before & ~after, rises, falls]
    verdicts = [ChangeVerdict(name).value for name in ("not_judged", "became", "ceased", "rose", "fell")]
    columns = {
        "cluster": one["cluster"], "content_hash": one["content"], "image_id": one["id"],
        **{f"{name}_a": one[name] for name in ("row", "copies", "z")},
        **{f"{name}_b": other[name] for name in ("row", "copies", "z")},
        "change": change, "p_rise": p_value[0], "p_fall": p_value[1],
        "q_value": q_value[picture], "verdict": np.select(cases, verdicts, "same")[picture],
    }  # fmt: skip
    return pa.table([pa.array(columns[f.name], f.type, from_pandas=True) for f in CHANGES], CHANGES).sort_by("row_a")


def images(one: Audit) -> dict[str, np.ndarray]:
    """Each image once, by its first row with a score."""
    known = one.scores["content_hash"].is_valid()
    content, findings = one.scores["content_hash"].filter(known).to_numpy(), one.findings.filter(known)
    judgement = judge(findings, one.summary.get("verification"))
    _, image, copies = np.unique(content, return_inverse=True, return_counts=True)
    row = findings["row"].to_numpy()
    order = np.lexsort((row, findings["growth"].is_null().to_numpy(), image))
    chosen = order[np.unique(image[order], return_index=True)[1]]
    z = findings["excess_growth"].to_numpy() / one.summary["calibration"]["residual_spread"]
    columns = {
        "content": content, "id": findings["image_id"].to_numpy(), "row": row, "copies": copies[image], "z": z,
        "cluster": findings["cluster"].to_numpy(), "judged": judgement.judged, "flagged": judgement.found,
    }  # fmt: skip
    return {name: column[chosen] for name, column in columns.items()}


def mirrored(change: np.ndarray) -> np.ndarray:
    centred = change - np.median(change)

    def beyond(value: np.ndarray, null: np.ndarray) -> np.ndarray:
        return (1 + len(null) - np.searchsorted(np.sort(null), value)) / (1 + len(null))

    return np.stack([beyond(centred, -centred), beyond(-centred, centred)])


def random_audit(name: str, random: np.random.Generator, step: float, held: Any) -> Audit:
    """An audit of copies, near duplicates, rows without a score or an image, flags and proven images."""
    content = random.integers(0, 220, 300)
    z = (np.round(random.normal(size=220) / step) * step)[content] + 6.0 * (content < 12)
    z[random.uniform(size=300) < 0.1] = np.nan
    flagged, outside = random.choice(220, 15, replace=False), random.choice(220, 10, replace=False)
    made = audit(name, content, z, held, spread=3.0, marks={"flagged": flagged, "outside": outside})
    lost = pa.array(np.isnan(z) & (random.uniform(size=300) < 0.5))
    hashes = pa.array(content.astype(np.uint64), mask=lost.to_numpy(zero_copy_only=False))
    place = made.scores.column_names.index("content_hash")
    scores = made.scores.set_column(place, made.scores.field(place), hashes)
    look = content // 3 * (content < 90) + content * (content >= 90)  # every three of them are alike
    first = {key: row for row, key in reversed(list(enumerate(look.tolist())))}
    group = np.array([first[key] for key in look.tolist()])
    cluster = np.where(lost.to_numpy(zero_copy_only=False), np.arange(300), group)
    place = made.findings.column_names.index("cluster")
    findings = made.findings.set_column(place, made.findings.field(place), pa.array(cluster, pa.int64()))
    vars(made).update(scores=scores, findings=findings, parts=partly(scores, findings))
    made.summary["verification"] = {"rows": random.choice(300, 5, replace=False).tolist(), "samples": 9}
    return made


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The database lies on disk, and is read few rows at a time."""
    monkeypatch.setattr(database, "FEW", 0)
    monkeypatch.setattr(database, "BATCH", 32)


@pytest.mark.parametrize("null", ["held-out", "mirrored"])
@pytest.mark.parametrize("step", [1e-9, 0.5, 50.0])
@pytest.mark.usefixtures("files")
def test_as_in_memory(null: str, step: float) -> None:
    """Also where very many changes are equal."""
    random = np.random.default_rng(int(step * 10))
    content, before, after = HELD + np.arange(150), random.normal(size=150), random.normal(size=150)
    held = ((content, before), (content, after)) if null == "held-out" else (None, None)
    one, other = random_audit("a", random, step, held[0]), random_audit("b", random, step, held[1])
    found = compare_audits(one, other, 0.3)
    held_out = [side.holdout_findings for side in (one, other)]
    unchanged = [some["excess_growth"].to_numpy() / 3.0 for some in held_out if some]
    expected = in_memory(one, other, unchanged[1] - unchanged[0] if unchanged else None, 0.3)
    assert found.null == null
    assert found.table.equals(expected)
    by_picture = dict(zip(expected["cluster"].to_pylist(), expected["verdict"].to_pylist(), strict=True))
    for verdict, count in found.counts.items():
        assert count == list(by_picture.values()).count(verdict.value)
