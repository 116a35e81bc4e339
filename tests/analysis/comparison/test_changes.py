import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import kstest

from tests.analysis.test_summary import summarized
from tests.support.tables import data_info, many, scores
from volgrowth.analysis.calibration.error_rates import rows_needed
from volgrowth.analysis.calibration.expected_scores import MIN_IMAGES
from volgrowth.analysis.comparison.changes import CHANGES, LISTED, ChangeVerdict, WholeComparison
from volgrowth.analysis.comparison.comparing import compare_audits, compare_in_parts, write_changes
from volgrowth.analysis.comparison.nulls import conformal_p_values, median_change, mirrored_p_values
from volgrowth.analysis.comparison.wording import comparison_text
from volgrowth.analysis.distinct import identical_rows
from volgrowth.audit.output.manifest import Manifest
from volgrowth.audit.output.result import Audit
from volgrowth.config import AuditConfig
from volgrowth.errors import OutputError, UsageError
from volgrowth.records import FINDINGS, SCORES, ModelInfo
from volgrowth.storage.store import Store

HELD = 10**6  # contents of held-out images begin here


def empty_audit(name: str, holdout: bool = True, shape: tuple[int, ...] = (1, 8, 8), **settings: Any) -> Audit:
    """An audit by a model called so, without its tables."""
    config = AuditConfig.build(model="demo/model", data="digits", output=f"/nowhere/{name}", **settings)
    model = ModelInfo("demo/model", "UNet2DModel", shape, f"sha256:{name}", 18_521)
    data = data_info("digits", "train", 7)
    held = data_info("held", None, 7) if holdout else None
    return Audit(Store(f"/nowhere/{name}"), json.loads(json.dumps(Manifest.of(config, model, data, held).to_json())))


def tables(
    content: Any, z: Any, spread: float, flagged: Any = (), outside: Any = (), judged: bool = True
) -> tuple[pa.Table, pa.Table]:
    """Scores and findings of images whose excess is `z` spreads; NaN is an image without a score."""
    excess, content = spread * np.asarray(z, float), np.asarray(content, np.uint64)
    rows, scored = len(content), np.isfinite(excess)
    known: dict[str, Any] = {
        "row": np.arange(rows),
        "image_id": [f"image-{value}" for value in content],
        "status": np.where(scored, "ok", "non_finite"),
        "growth": pa.array(excess, from_pandas=True),
        "content_hash": content,
        "identical": identical_rows(pa.table({"row": np.arange(rows), "content_hash": content})),
        "cluster": identical_rows(pa.table({"row": np.arange(rows), "content_hash": content})),
        "excess_growth": pa.array(excess, from_pandas=True),
        "memorized": pa.array(np.isin(content, flagged), mask=~scored) if judged else None,
        "q_value": pa.array(np.where(np.isin(content, flagged), 0.01, 1.0), mask=~scored) if judged else None,
        "outside_range": pa.array(np.isin(content, outside), mask=~scored),
    }
    made = [
        pa.table(
            [
                pa.array(known[field.name], field.type)
                if known.get(field.name) is not None
                else pa.nulls(rows, field.type)
                for field in schema
            ],
            schema=schema,
        )
        for schema in (SCORES, FINDINGS)
    ]
    return made[0], made[1]


def audit(
    name: str,
    content: Any,
    z: Any,
    held: tuple[Any, Any] | None = None,
    *,
    spread: float = 1.0,
    marks: dict[str, Any] | None = None,
    **settings: Any,
) -> Audit:
    """A finished audit; `held` are contents and z of held-out images."""
    made = empty_audit(name, held is not None, **settings)
    table, findings = tables(content, z, spread, **(marks or {}))
    held_scores, held_findings = (None, None) if held is None else tables(*held, spread, judged=False)
    summary = {"calibration": {"residual_spread": spread, "method": "held-out", "evidence": {"parts": {}}}}
    vars(made).update(scores=table, findings=findings, holdout_scores=held_scores, holdout_findings=held_findings)
    vars(made).update(summary=summary, parts=partly(table, findings))  # as if read
    return made


def partly(table: pa.Table, findings: pa.Table) -> Any:
    """What `Audit.parts` is for an audit of these scores and findings, in shards of a hundred rows."""

    def parts(*, scores: Any = (), findings: Any = ()) -> Iterator[pa.Table]:
        columns = {name: table[name] for name in ("row", *scores)} | {name: judged[name] for name in findings}
        whole = pa.table(columns)
        yield from (whole.slice(start, 100) for start in range(0, len(whole), 100))

    judged = findings
    return parts


def mirrored(change: np.ndarray) -> np.ndarray:
    """p-values of changes (n,) against their own mirror image, (2, n)."""
    values, count = np.unique(change, return_counts=True)
    rising = [(values[some], count[some]) for some in np.array_split(np.arange(len(values)), 3)]
    falling = [(some[::-1], many[::-1]) for some, many in rising[::-1]]
    found = list(mirrored_p_values(rising, falling, median_change(rising, len(change)), len(change)))
    assert_array_equal(np.concatenate([some for some, _ in found]), values)
    return np.concatenate([p for _, p in found], axis=1)[:, np.searchsorted(values, change)]


def held_out(random: np.random.Generator, count: int = 400) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """The same held-out images in A and in B; what a model gives an image it keeps in part."""
    content, kept = HELD + np.arange(count), random.normal(size=count)
    first, second = (kept + 0.5 * random.normal(size=count) for _ in "ab")
    return (content, first), (content, second)


def unchanged(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """z in A and in B, exchangeable with those of `held_out`."""
    (_, first), (_, second) = held_out(random, count)
    return first, second


# ten images each: became, ceased, risen though flagged before, fallen though flagged after, beyond the range
GROUPS = ("became", "ceased", "rose", "fell", "not_judged")


def changed_pair(random: np.random.Generator, **settings: Any) -> tuple[Audit, Audit]:
    """800 images, of which the first fifty are `GROUPS`; B has them in another order, and its own scale."""
    content, (before, after) = np.arange(800), unchanged(random, 800)
    before[10:20] += 12
    after[:10] += 12
    before[20:30], after[20:30] = 8, 20
    before[30:40], after[30:40] = 20, 8
    after[40:50] += 50
    order = random.permutation(800)
    held_a, held_b = held_out(random)
    return (
        audit("a", content, before, held_a, marks={"flagged": range(10, 40), "outside": range(40, 45)}, **settings),
        audit(
            "b", content[order], after[order], held_b, spread=7.0,
            marks={"flagged": [*range(10), *range(20, 40)], "outside": range(45, 50)}, **settings,
        ),
    )  # fmt: skip


def verdicts(comparison: WholeComparison) -> dict[int, str]:
    table = comparison.table
    return dict(zip(table["content_hash"].to_pylist(), table["verdict"].to_pylist(), strict=True))


def test_each_change_has_its_name():
    found = compare_audits(*changed_pair(np.random.default_rng(0)))
    names = verdicts(found)
    assert [names[image] for image in range(50)] == [group for group in GROUPS for _ in range(10)]
    assert sum(names[image] != "same" for image in range(50, 800)) <= 12
    assert found.null == "held-out"
    assert (found.null_rows, found.tests, found.fdr, found.only) == (400, 1600, 0.1, (0, 0))
    assert sum(found.counts.values()) == found.table.num_rows == 800
    assert found.significant == sum(found.counts[verdict] for verdict in list(ChangeVerdict)[:4])
    assert found.warnings == ()


def test_swapping_the_audits_swaps_the_verdicts():
    one, other = changed_pair(np.random.default_rng(1))
    swap = {"became": "ceased", "ceased": "became", "rose": "fell", "fell": "rose"}
    forth, back = compare_audits(one, other), compare_audits(other, one)
    assert verdicts(back) == {image: swap.get(name, name) for image, name in verdicts(forth).items()}
    first, second = (found.table.sort_by("content_hash") for found in (forth, back))
    for name, mirror in (("p_rise", "p_fall"), ("z_a", "z_b"), ("row_a", "row_b"), ("q_value", "q_value")):
        assert first[name].equals(second[mirror])


def test_the_table_says_where_an_image_is():
    random = np.random.default_rng(2)
    held_a, held_b = held_out(random)
    one = audit("a", [7, 5, 7, 9, 7], [0.1, 0.2, 0.1, np.nan, 0.1], held_a, spread=3.0)
    other = audit("b", [5, 9, 8, 7], [2.0, 4.0, 1.0, 0.5], held_b, marks={"flagged": [8]})
    found = compare_audits(one, other)
    assert found.table.schema.equals(CHANGES)
    rows = {row["content_hash"]: row for row in found.table.to_pylist()}
    assert list(rows) == [7, 5, 9]
    seven = rows[7]
    assert (seven["row_a"], seven["row_b"], seven["copies_a"], seven["copies_b"]) == (0, 3, 3, 1)
    assert (seven["image_id"], seven["z_a"]) == ("image-7", pytest.approx(0.1))
    assert seven["change"] == pytest.approx(0.4)
    assert [rows[9][name] for name in ("z_a", "change", "p_rise", "p_fall", "q_value")] == [None] * 5
    assert rows[9]["verdict"] == "not_judged"
    assert (found.only, found.only_flagged, found.tests) == ((0, 1), (0, 1), 4)


def test_a_failed_copy_does_not_hide_its_image():
    random = np.random.default_rng(2)
    held_a, held_b = held_out(random)
    found = compare_audits(audit("a", [7, 7], [np.nan, 1.0], held_a), audit("b", [7], [1.0], held_b)).table.to_pylist()[
        0
    ]
    assert (found["row_a"], found["copies_a"], found["z_a"]) == (1, 2, 1.0)


def test_copies_do_not_count_twice_and_row_order_does_not_matter():
    random = np.random.default_rng(3)
    content, (before, after) = np.arange(300), unchanged(random, 300)
    after[:20] += 8
    held_a, held_b = held_out(random)
    plain = compare_audits(audit("a", content, before, held_a), audit("b", content, after, held_b))
    copied = np.concatenate([np.repeat(content[:10], 50), content, content[200:]])
    order = random.permutation(len(copied))
    shuffled = copied[order]
    again = compare_audits(
        audit("a", shuffled, before[shuffled], held_a), audit("b", content[::-1], after[::-1], held_b)
    )
    judged = ["content_hash", "z_a", "z_b", "change", "p_rise", "p_fall", "q_value", "verdict"]
    first, second = (found.table.sort_by("content_hash").select(judged) for found in (plain, again))
    assert first.equals(second)
    assert plain.significant >= 20


def test_units_are_each_audits_own():
    """Growth in other units, or of a larger spread, changes nothing."""
    random = np.random.default_rng(4)
    content, (before, after) = np.arange(300), unchanged(random, 300)
    held_a, held_b = held_out(random)
    one = audit("a", content, before, held_a)
    small, large = (compare_audits(one, audit("b", content, after, held_b, spread=spread)) for spread in (1.0, 1000.0))
    assert_allclose(small.table["change"].to_numpy(), large.table["change"].to_numpy(), rtol=1e-9, atol=1e-9)
    assert verdicts(small) == verdicts(large)


def test_p_values_are_their_formulas():
    random = np.random.default_rng(5)
    change, null = random.integers(-5, 5, 40) / 2, random.integers(-5, 5, 60) / 2  # with ties
    rise = [(1 + sum(d >= value for d in null)) / 61 for value in change]
    fall = [(1 + sum(d <= value for d in null)) / 61 for value in change]
    assert_allclose(conformal_p_values(change, null), [rise, fall])
    centred = change - np.median(change)
    rise = [(1 + sum(d <= -value for d in centred)) / 41 for value in centred]
    fall = [(1 + sum(d >= -value for d in centred)) / 41 for value in centred]
    assert_allclose(mirrored(change), [rise, fall])
    assert conformal_p_values(np.empty(0), null).shape == (2, 0)


@pytest.mark.parametrize("null", ["held-out", "mirrored"])
def test_p_values_are_uniform_where_nothing_changed(null):
    """One image a seed, so that they are independent of each other."""
    p_values = []
    for seed in range(300):
        change = np.random.default_rng(seed).standard_t(5, 400)
        found = mirrored(change + 3) if null == "mirrored" else conformal_p_values(change[:1], change[1:])
        p_values.append(found[:, 0])
    rise, fall = np.transpose(p_values)
    assert kstest(rise, "uniform").pvalue > 0.01
    assert kstest(fall, "uniform").pvalue > 0.01


@pytest.mark.parametrize(("null", "fell", "found_share"), [
    ("held-out", 30, 0.9), ("held-out", 0, 0.9), ("mirrored", 0, 0.9), ("mirrored", 30, 0.0),
])  # fmt: skip
def test_the_rate_is_kept_and_what_changed_is_found(null, fell, found_share):
    """Of 600 images 60 rose. Where others fell a mirrored null cannot tell them from a wide one, and finds nothing."""
    false_share, power = [], []
    for seed in range(30):
        random = np.random.default_rng(seed)
        before, after = unchanged(random, 600)
        after[:60] += 5
        after[60 : 60 + fell] -= 5
        held_a, held_b = held_out(random, 1000) if null == "held-out" else (None, None)
        found = compare_audits(audit("a", range(600), before, held_a), audit("b", range(600), after, held_b))
        assert found.null == null
        names = found.table.sort_by("content_hash")["verdict"].to_pylist()
        right = names[:60].count("rose") + names[60 : 60 + fell].count("fell")
        false_share.append((found.significant - right) / max(found.significant, 1))
        power.append(right / (60 + fell))
    assert np.mean(false_share) <= 0.1 + 0.02
    assert np.mean(power) >= found_share


def test_images_beyond_the_range_do_not_loosen_the_rate_for_the_others():
    random = np.random.default_rng(6)
    before, after = unchanged(random, 600)
    after[:300] += 50
    held_a, held_b = held_out(random)
    beyond = {"outside": range(300)}
    found = compare_audits(audit("a", range(600), before, held_a), audit("b", range(600), after, held_b, marks=beyond))
    table = found.table.sort_by("content_hash")
    assert set(table["verdict"].to_pylist()[:300]) == {"not_judged"}
    assert set(table["p_rise"].to_pylist()[:300]) == set(table["p_fall"].to_pylist()[:300]) == {1.0}
    assert found.significant <= 3
    assert found.tests == 1200


def test_beyond_the_range_is_no_part_of_a_mirrored_null():
    random = np.random.default_rng(6)
    before, after = unchanged(random, 600)
    after[:300] += 50
    found = compare_audits(audit("a", range(600), before), audit("b", range(600), after, marks={"outside": range(300)}))
    assert (found.null, found.null_rows) == ("mirrored", 300)
    assert found.significant <= 3


def test_flags_without_held_out_images_name_changes_too():
    random = np.random.default_rng(7)
    before, after = unchanged(random, 600)
    after[:60] += 9
    flagged = audit("b", range(600), after, marks={"flagged": range(50)})
    for one in (audit("a", range(600), before), audit("a", range(600), before, held_out(random)[0])):
        found = compare_audits(one, flagged)
        assert found.null == "mirrored"
        names = found.table.sort_by("content_hash")["verdict"].to_pylist()
        assert names[:60] == ["became"] * 50 + ["rose"] * 10
        assert len(found.warnings) == 1


def test_held_out_images_that_either_audits_are_no_null():
    """A null of which half was trained on by B would hide what B's training did."""
    random = np.random.default_rng(8)
    (held, first), (_, second) = held_out(random, 100)
    second[:MIN_IMAGES] += 30
    before, after = unchanged(random, 200)
    one = audit("a", range(200), before, (held, first))
    content = [*range(200), *held[:MIN_IMAGES]]
    other = audit("b", content, [*after, *second[:MIN_IMAGES]], (held, second))
    found = compare_audits(one, other)
    assert (found.null, found.null_rows) == ("held-out", 100 - MIN_IMAGES)
    assert found.only == (0, MIN_IMAGES)


@pytest.mark.parametrize(("common", "null"), [(MIN_IMAGES - 1, "mirrored"), (MIN_IMAGES, "held-out")])
def test_held_out_sets_that_hardly_overlap(common, null):
    random = np.random.default_rng(9)
    (held, first), (_, second) = held_out(random, 200)
    before, after = unchanged(random, 100)
    one = audit("a", range(100), before, (held, first))
    found = compare_audits(one, audit("b", range(100), after, (held + 200 - common, second)))
    assert found.null == null
    assert f"{common} usable" in found.warnings[0]
    assert "A" in found.warnings[0]
    assert "200" in found.warnings[0]
    assert ("symmetric" in found.warnings[0]) == (null == "mirrored")


@pytest.mark.parametrize(("preset", "seeds", "null"), [
    ("paper", (0, 0), "mirrored"), ("paper", (0, 1), "held-out"), ("standard", (0, 0), "held-out"),
])  # fmt: skip
def test_axes_that_are_drawn_by_row_ask_for_rows_that_stayed(preset, seeds, null):
    """Curation moves rows; with the published preset that adds noise which the held-out images do not have."""
    random = np.random.default_rng(10)
    before, after = unchanged(random, 100)
    held_a, held_b = held_out(random)
    measure = {"preset": preset}
    one = audit("a", range(100), before, held_a, measure=measure, seed=seeds[0])
    stayed = compare_audits(one, audit("b", range(100), after, held_b, measure=measure, seed=seeds[1]))
    moved = compare_audits(one, audit("b", range(1, 100), after[1:], held_b, measure=measure, seed=seeds[1]))
    assert (stayed.null, moved.null) == ("held-out", null)
    assert any("another seed" in warning for warning in moved.warnings) == (null == "mirrored")


def test_too_few_to_compare_with_is_said_with_the_number_that_would_do():
    random = np.random.default_rng(11)
    before, after = unchanged(random, 1000)
    after[:5] += 20
    held_a, held_b = held_out(random, 100)
    found = compare_audits(audit("a", range(1000), before, held_a), audit("b", range(1000), after, held_b))
    assert found.significant == 0
    p_value = np.stack([found.table["p_rise"].to_numpy(), found.table["p_fall"].to_numpy()])
    extreme = int((p_value <= 1 / 101).sum())
    enough = rows_needed(2000, extreme)
    (warning,) = found.warnings
    assert f"{extreme} did. With {enough} held-out images common to both audits {extreme} would be enough" in warning
    # so many more, none of them as extreme as those
    change = after[p_value.min(0) <= 1 / 101] - before[p_value.min(0) <= 1 / 101]
    bound = np.abs(change).min() - 1e-9
    (held, first), (_, second) = held_out(random, enough)
    calm = first + np.clip(second - first, -bound, bound)
    found = compare_audits(audit("a", range(1000), before, (held, first)), audit("b", range(1000), after, (held, calm)))
    assert found.significant >= extreme


def test_nothing_to_judge():
    held_a, held_b = held_out(np.random.default_rng(0))
    one, other = audit("a", [1, 2], [np.nan, 1.0], held_a), audit("b", [1, 2], [1.0, np.nan], held_b)
    found = compare_audits(one, other)
    assert found.counts[ChangeVerdict.NOT_JUDGED] == 2
    assert "No image in both could be judged" in found.warnings[0]
    assert "not judged" in comparison_text(found)


def test_identical_scores_of_two_models_are_no_change():
    random = np.random.default_rng(0)
    before, _ = unchanged(random, 100)
    held, _ = held_out(random)
    for null in (held, None):
        found = compare_audits(audit("a", range(100), before, null), audit("b", range(100), before, null))
        assert found.counts[ChangeVerdict.SAME] == 100
        assert set(found.table["q_value"].to_pylist()) == {1.0}


def refused(one: Audit, other: Audit, fdr: float = 0.1, kind: type[Exception] = UsageError) -> str:
    with pytest.raises(kind) as error:
        compare_audits(one, other, fdr)
    return str(error.value)


def test_what_cannot_be_compared():
    random = np.random.default_rng(12)
    before, after = unchanged(random, 100)
    held_a, held_b = held_out(random)
    one = audit("a", range(100), before, held_a)

    def other(name: str = "b", content: Any = range(100), z: Any = after, **settings: Any) -> Audit:
        return audit(name, content, z, held_b, **settings)

    assert "preset was 'standard' in /nowhere/a and 'paper'" in refused(one, other(measure={"preset": "paper"}))
    assert "loss_level was 0.3 in /nowhere/a and 0.2" in refused(one, other(measure={"loss_level": 0.2}))
    assert "1x8x8 in /nowhere/a, 3x16x16" in refused(one, other(shape=(3, 16, 16)))
    assert "have no image in common" in refused(one, other(content=range(200, 300)))
    assert "are the same audit" in refused(one, one)
    assert "are the same audit" in refused(one, other("a", z=before))
    assert "expected above 0 and below 1" in refused(one, other(), fdr=0)
    bare = other()
    bare.summary["calibration"] = None
    assert "/nowhere/b is not calibrated" in refused(one, bare, kind=OutputError)
    assert "/nowhere/b is not calibrated" in refused(bare, one, kind=OutputError)
    assert "does not vary" in refused(one, other(spread=0.0), kind=OutputError)


def test_what_can_be_compared():
    """More probes, another seed, and new weights behind the name of an old factory."""
    random = np.random.default_rng(13)
    before, after = unchanged(random, 100)
    held_a, held_b = held_out(random)
    volume = {"preset": "volume"}
    one = audit("a", range(100), before, held_a, measure=volume)
    for probes, seed in ((16, 0), (2, 1), (2, 0)):
        settings: dict[str, Any] = {"measure": {**volume, "num_probes": probes}, "seed": seed}
        assert compare_audits(one, audit("a", range(100), after, held_b, **settings)).table.num_rows == 100


def test_words_for_people():
    one, other = changed_pair(np.random.default_rng(0))
    said = comparison_text(compare_audits(one, other))
    for line in ("A: /nowhere/a", "800 distinct images are in both", "10  became", "10  ceased", "10  not judged"):
        assert line in said
    assert "400 held-out images" in said
    first = next(line for line in said.splitlines() if line.startswith("  image-")).split()
    assert first[2:7:2] == ["->", "1", "1"] or "->" in first


def test_long_lists_are_cut_and_hashes_too():
    random = np.random.default_rng(14)
    before, after = unchanged(random, 600)
    after[:60] += 15
    held_a, held_b = held_out(random, 1000)
    one = audit("a", range(600), before, held_a)
    ids = pa.array(["sha256:" + "0c" * 32] * 600)
    vars(one)["parts"] = partly(one.scores, one.findings.set_column(1, "image_id", ids))
    found = compare_audits(one, audit("b", range(600), after, held_b))
    said = comparison_text(found)
    assert f"the first {LISTED} of {found.counts[ChangeVerdict.ROSE]} images" in said
    assert sum(line.startswith("  sha256:") for line in said.splitlines()) <= LISTED + found.counts[ChangeVerdict.FELL]
    assert max(map(len, said.splitlines())) <= 120


def test_the_table_is_saved(tmp_path: Path) -> None:
    with compare_in_parts(*changed_pair(np.random.default_rng(0))) as found:
        write_changes(found, f"{tmp_path}/new/changes.parquet")
        assert pq.read_table(tmp_path / "new/changes.parquet").cast(CHANGES).equals(found.whole().table)
        assert pq.read_metadata(tmp_path / "new/changes.parquet").metadata[b"null"] == b"held-out"
        with pytest.raises(UsageError, match=r"ends in \.parquet"):
            write_changes(found, f"{tmp_path}/changes.txt")
        (tmp_path / "file").write_text("mine")
        with pytest.raises(OutputError, match="cannot be written"):
            write_changes(found, f"{tmp_path}/file/changes.parquet")


def analysed(folder: Path, rows: list[dict[str, Any]], held: list[dict[str, Any]]) -> Audit:
    """An audit of such rows, calibrated in earnest."""
    summary, made, _ = summarized(folder, scores(*rows), scores(*held))
    vars(made).update(summary=summary)
    return made


@pytest.mark.slow
def test_from_scores_to_verdicts(tmp_path: Path) -> None:
    """A second model of another slope, scale and noise, which memorizes other images than the first."""
    random = np.random.default_rng(0)
    rows, held = many(300, seed=1), many(400, seed=2)

    def second(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "growth": 5 + 3 * row["growth"] + float(random.normal(0, 0.5))}

    before = [{**row, "growth": row["growth"] + 10 * (index < 20)} for index, row in enumerate(rows)]
    after = [second({**row, "growth": row["growth"] + 10 * (20 <= index < 40)}) for index, row in enumerate(rows)]
    first = analysed(tmp_path / "a", before, held)
    found = compare_audits(first, analysed(tmp_path / "b", after[::-1], [second(row) for row in held]))
    assert found.null == "held-out"
    names = verdicts(found)
    ceased = sum(names[row["content_hash"]] == "ceased" for row in rows[:20])
    became = sum(names[row["content_hash"]] == "became" for row in rows[20:40])
    other = sum(names[row["content_hash"]] not in ("same", "not_judged") for row in rows[40:])
    judged = [names[row["content_hash"]] != "not_judged" for row in rows[:40]]
    assert (ceased, became) == (sum(judged[:20]), sum(judged[20:]))
    assert min(ceased, became) >= 15
    assert other <= 8
