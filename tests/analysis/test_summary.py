import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.support.report_data import RUN
from tests.support.stored import store_tables
from tests.support.tables import data_info, failed, many, scores
from volgrowth.analysis import summary as summary_module
from volgrowth.analysis.calibration import tails
from volgrowth.analysis.calibration.complexity import REGRESSORS
from volgrowth.analysis.findings import WholeAnalysis, analyse
from volgrowth.analysis.parts import fitting
from volgrowth.analysis.parts.judge import Judge
from volgrowth.analysis.summary import _arithmetic, _of_embeddings, summarize_audit
from volgrowth.audit.output.manifest import Manifest
from volgrowth.audit.output.result import Audit
from volgrowth.config import AuditConfig
from volgrowth.records import Mark, ModelInfo, Status
from volgrowth.report import Shown, render_report
from volgrowth.report.words import verdict_rows
from volgrowth.storage.store import Store

MODEL = ModelInfo("demo/model", "UNet2DModel", (1, 8, 8), "sha256:" + "0c" * 32, 18_521)


def summarized(
    folder: Path, table: pa.Table, holdout: pa.Table | None = None, **settings: Any
) -> tuple[dict[str, Any], Audit, WholeAnalysis]:
    """The summary of an audit whose scores are these."""
    config = AuditConfig.build(model="demo/model", data="digits", output=str(folder), **settings)
    data = data_info("digits", "train", len(table))
    held = None if holdout is None else data_info("held", None, len(holdout))
    manifest = json.loads(json.dumps(Manifest.of(config, MODEL, data, held).to_json()))
    audit = Audit(Store(str(folder)), manifest)
    analysis = analyse(table, holdout)
    held_out = None if holdout is None or analysis.holdout is None else (holdout, analysis.holdout)
    store_tables(audit, table, analysis.findings, held_out)
    return summarize_audit(audit, analysis, config, RUN), audit, analysis


def rows() -> list[dict[str, Any]]:
    """70 scored images, three of them one picture, two another and two near duplicates, and five rows that failed."""
    scored = many(70)
    for index in (40, 50):
        scored[index] |= {"phash": 20 + index % 20, "mean": 0.0, "variance": 0.25}
    for index, original in ((10, 1), (20, 1), (30, 2)):
        scored[index] = {**scored[index], "content_hash": scored[original]["content_hash"]}
    scored[4] = {**scored[4], "marks": [Mark.ABOVE_CEILING.value]}
    scored[5] = {**scored[5], "marks": [Mark.ABOVE_CEILING.value, Mark.SIGN_FLIP.value]}
    bad = [failed("undecodable"), failed("undecodable"), failed("too_large"), failed("crashed")]
    return [*scored, *bad, failed("non_finite", content_hash=1, nfe=11)]


def test_every_row_is_counted_once(tmp_path: Path) -> None:
    counts = summarized(tmp_path, scores(*rows()))[0]["counts"]
    assert counts["rows"] == 75 == sum(counts[status.value] for status in Status)
    expected = {"ok": 70, "undecodable": 2, "too_large": 1, "non_finite": 1, "crashed": 1}
    assert counts == {"rows": 75, **dict.fromkeys((status.value for status in Status), 0), **expected}


def test_marks_are_counted_each(tmp_path: Path) -> None:
    assert summarized(tmp_path, scores(*rows()))[0]["marks"] == {"above_ceiling": 2, "sign_flip": 1, "caption_cut": 0}


def test_duplicates(tmp_path: Path) -> None:
    duplicates = summarized(tmp_path, scores(*rows()))[0]["duplicates"]
    assert duplicates == {"clusters": 3, "rows_in_clusters": 7, "identical_rows": 5, "largest": 3}


def test_flags_with_duplicates_are_told_from_intrinsic_ones(tmp_path: Path) -> None:
    """Of 30 flagged images two have the same pixels, and two look alike."""
    marked = many(300)
    for index in range(30):
        marked[index]["growth"] += 100
    marked[1] = marked[0]
    for index in (2, 3):
        marked[index] |= {"phash": index, "mean": 0.0, "variance": marked[2]["variance"]}
    summary = summarized(tmp_path, scores(*marked), scores(*many(300, seed=9)))[0]
    detection = summary["detection"]
    duplicated, intrinsic = detection["memorized_duplicated"], detection["memorized_intrinsic"]
    assert duplicated + intrinsic == detection["memorized"] > 20
    assert (duplicated, detection["memorized_rows"] - detection["memorized"]) == (2, 2)
    said = " ".join(row.note for row in verdict_rows(summary))
    assert (
        f"Driven by duplication may be 2, with copies or near duplicates in the data set; {intrinsic} have no" in said
    )


def test_no_duplicates(tmp_path: Path) -> None:
    for table in (scores({}, {}), scores()):
        duplicates = summarized(tmp_path, table)[0]["duplicates"]
        assert duplicates == {"clusters": 0, "rows_in_clusters": 0, "identical_rows": 0, "largest": 1}


def test_evaluations_are_those_that_were_spent(tmp_path: Path) -> None:
    """On rows without a finite score as well, and on held-out rows; not on rows without an image."""
    alone = summarized(tmp_path, scores(*rows()))[0]["run"]
    assert alone == {**RUN, "evaluations": 71 * 11, "max_failed": 0.01, "warnings": []}
    assert summarized(tmp_path, scores(*rows()), scores(*many(60), failed()))[0]["run"]["evaluations"] == 131 * 11


CHECK = {
    "deviation": 0.001,
    "tolerance": 0.01,
    "used": "backward passes",
    "against": "float64",
    "differenced": None,
    "compiling": None,
}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, None),
        ({"deviation": 0.3}, "by 30.00%, and at most 1% was expected"),
        ({"deviation": float("nan")}, "differ from central differences in float64"),
        (
            {"differenced": "RuntimeError: no grad"},
            "no derivative (RuntimeError: no grad): growth rests on",
        ),
        ({"compiling": "torch.compile failed with OSError: no g++"}, "not compiled: torch.compile failed with OSError"),
    ],
)
def test_what_the_self_check_found_is_a_warning(found: dict[str, Any], said: str | None) -> None:
    warnings = _arithmetic({"rows": 8, "batch": 0.0, "dtype": None, "derivative": {**CHECK, **found}})
    assert len(warnings) == (said is not None)
    assert said is None or said in warnings[0]
    assert _arithmetic(None) == _arithmetic({"rows": 8, "batch": 0.0, "dtype": None}) == []


def test_a_search_among_embeddings_that_misses_some_is_said():
    known = {"column": "e", "rows": 100, "rows_without": 0, "shared_cells": 1.0, "undecided_groups": 0}
    assert _of_embeddings(None) == _of_embeddings(known) == []
    (missed,) = _of_embeddings(known | {"shared_cells": 0.93})
    assert "column e misses up to 7.0% of the images" in missed
    (apart,) = _of_embeddings(known | {"undecided_groups": 1200})
    assert apart.startswith("1,200 groups of near duplicates stayed apart")


@pytest.mark.parametrize("with_holdout", [False, True])
def test_calibration_says_how_good_it_is(tmp_path: Path, with_holdout: bool) -> None:
    held = [{**row, "phash": 10_000 + k} for k, row in enumerate(many(90, seed=9))]
    holdout = scores(*held) if with_holdout else None
    summary, _, analysis = summarized(tmp_path, scores(*rows()), holdout)
    assert analysis.calibration is not None
    assert summary["calibration"] == {
        "method": "held-out" if with_holdout else "cross-fitted",
        "features": list(REGRESSORS),
        "reference": None,
        "rows": 90 if with_holdout else 67,
        "shared": 0,
        "near_duplicates": 0,
        "one_colour": {"rows": 0, "held_out": 0},
        "r2": analysis.calibration.main.r2,
        "residual_spread": analysis.calibration.main.residual_spread,
        "outside_range": pc.sum(analysis.findings["outside_range"]).as_py(),
        "evidence": {
            "parts": {
                name: {
                    "r2": part.r2,
                    "residual_spread": part.residual_spread,
                    "unit": part.unit,
                    "weight": 0.5 if name == "noise_norm" else 1.0,
                }
                for name, part in analysis.calibration.parts.items()
            },
            "left_out": analysis.calibration.left_out,
        },
        "tail": None,  # it takes 300 held-out images
        "self_check": summary["calibration"]["self_check"],
    }
    check = summary["calibration"]["self_check"]
    assert (check is not None) == with_holdout
    if check:
        assert (check["rows"], check["splits_with_a_tail"], check["holds"]) == (90, 0, True)
        assert [share["p_value"] for share in check["shares"]] == [0.01, 0.001]
        assert check["flagged"] <= check["promised"] == 0.1
    assert list(summary["calibration"]["evidence"]["parts"]) == ["growth"]
    assert "no spread" in summary["calibration"]["evidence"]["left_out"]["loss"]  # it is the same in all these rows
    assert "does not measure" in summary["calibration"]["evidence"]["left_out"]["noise_norm"]
    assert summary["calibration"]["r2"] > 0.8
    assert (summary["holdout"] is None) != with_holdout


def test_without_calibration_there_is_none(tmp_path: Path) -> None:
    assert summarized(tmp_path, scores({}, {}, failed()))[0]["calibration"] is None


def test_what_was_audited_and_how(tmp_path: Path) -> None:
    summary, audit, _ = summarized(tmp_path, scores(*rows()), dtype="float64", measure={"preset": "paper"})
    assert summary["model"]["dtype"] == "float64"
    assert {name: summary["model"][name] for name in ("name", "kind", "hash", "parameters")} == {
        "name": MODEL.name,
        "kind": MODEL.kind,
        "hash": MODEL.hash,
        "parameters": MODEL.parameters,
    }
    assert summary["data"]["name"] == "digits"
    assert summary["config_digest"] == audit.frozen.config_digest
    assert (summary["measure"]["preset"], summary["measure"]["evaluations"]) == ("paper", 2)


def keys(value: Any, prefix: str = "") -> set[str]:
    """Paths of all keys of nested dictionaries."""
    if not isinstance(value, dict):
        return set()
    return {path for name, inner in value.items() for path in {prefix + name, *keys(inner, f"{prefix}{name}.")}}


@pytest.mark.parametrize("with_holdout", [False, True])
def test_the_page_finds_every_key_it_knows(tmp_path: Path, with_holdout: bool) -> None:
    known = pytest.importorskip("tests.support.report_data")
    holdout = scores(*many(60, seed=9)) if with_holdout else None
    summary, audit, analysis = summarized(tmp_path, scores(*rows()), holdout)
    # the levels of its measure are those of an audit by an older version
    wanted = known.summary(calibration=known.CALIBRATION, measure={"preset": "standard", "evaluations": 4})
    parts = "calibration.evidence."  # by name: which there are is the data's
    assert {key for key in keys({**wanted, "versions": {}}) if not key.startswith(parts)} <= keys(summary)
    page = render_report(summary, audit.scores, analysis.findings, Shown(), analysis.holdout)
    assert "UNet2DModel" in page.html


def test_it_is_json(tmp_path: Path) -> None:
    for table in (scores(*rows()), scores(failed())):
        summary = summarized(tmp_path, table, scores(*many(60, seed=9)))[0]
        assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def warnings(folder: Path, audited: list[dict[str, Any]], held: list[dict[str, Any]] | None) -> str:
    detection = summarized(folder, scores(*audited), None if held is None else scores(*held))[0]["detection"]
    return " ".join(detection["warnings"])


def test_a_good_held_out_set_needs_no_words(tmp_path: Path) -> None:
    marked = many(60)
    for index in range(30):
        marked[index]["growth"] += 100
    held = [{**row, "phash": 10_000 + k} for k, row in enumerate(many(200, seed=9))]
    assert warnings(tmp_path, marked, held) == ""


def test_held_out_images_that_could_not_serve(tmp_path: Path) -> None:
    new = [{**row, "phash": 10_000 + k} for k, row in enumerate(many(20, seed=9))]
    said = warnings(tmp_path, many(80), [*new, *many(80)[:40], *[failed()] * 5])
    assert "Of 65 held-out images 20 could be scored, do not look like audited ones and are not of one colour" in said
    assert "50 are needed, and 799 to flag a single image" in said


def test_near_duplicates_of_audited_images_do_not_calibrate(tmp_path: Path) -> None:
    """Were they taken for unknown ones, the ten that the model knows as well would hide those ten."""
    look = [{"phash": 500 + k, "mean": 0.0, "variance": 0.25} for k in range(10)]
    audited, held = many(300), [{**row, "phash": 10_000 + k} for k, row in enumerate(many(400, seed=9))]
    for index in range(10):
        audited[index] |= {**look[index], "growth": audited[index]["growth"] + 100}
        held[index] |= {**look[index], "growth": held[index]["growth"] + 100}
    summary, _, analysis = summarized(tmp_path, scores(*audited), scores(*held))
    assert (summary["calibration"]["rows"], summary["calibration"]["near_duplicates"]) == (390, 10)
    assert analysis.findings["memorized"].to_pylist()[:10] == [True] * 10
    assert "10 held-out images look like audited ones" in " ".join(summary["detection"]["warnings"])
    assert not any("look like an audited one" in said for said in summary["caveats"]), "a few change no verdict"
    assert analysis.holdout is not None
    assert analysis.holdout["evidence"].to_pylist()[:10] == [None] * 10
    apart = [{**row, "mean": -0.9} if index < 10 else row for index, row in enumerate(held)]
    assert summarized(tmp_path / "apart", scores(*audited), scores(*apart))[0]["calibration"]["rows"] == 400


def test_images_of_one_colour_neither_calibrate_nor_are_flagged(tmp_path: Path) -> None:
    """They stand out on both sides: as a null they would hide the ten images that the model knows."""
    colour = {"variance": 0.3, "total_variation": 0.0, "edge_density": 0.0, "phash": 1 << 63, "png_bytes": 90}
    audited, held = many(300), [{**row, "phash": 10_000 + k} for k, row in enumerate(many(400, seed=9))]
    for index in range(20):
        audited[index]["growth"] += 100
        held[index] |= {**colour, "growth": held[index]["growth"] + 150}
    for index in range(10, 20):
        audited[index] |= colour
    summary, _, analysis = summarized(tmp_path, scores(*audited), scores(*held))
    assert summary["calibration"]["rows"] == 380
    assert summary["calibration"]["one_colour"] == {"rows": 10, "held_out": 20}
    findings = {name: analysis.findings[name].to_pylist()[:20] for name in analysis.findings.column_names}
    assert findings["memorized"] == [True] * 10 + [False] * 10
    assert findings["evidence"][10:] == findings["evidence_growth"][10:] == [None] * 10
    assert findings["p_value"][10:] == findings["p_value_conformal"][10:] == [1.0] * 10
    assert findings["outside_range"][10:] == [False] * 10, "nothing is unknown of them: no gate has a doubt"
    assert "(audited rows: 10; held-out images: 20)" in " ".join(summary["detection"]["warnings"])
    assert not summary["caveats"]
    assert analysis.holdout is not None
    assert analysis.holdout["evidence"].to_pylist()[:20] == [None] * 20


@pytest.mark.parametrize("with_holdout", [True, False])
def test_where_all_images_are_of_one_colour_none_is_flagged(tmp_path: Path, with_holdout: bool) -> None:
    audited = [{**row, "growth": row["growth"] + 100, "variance": 0.0} for row in many(80)]
    held = scores(*({**row, "phash": 10_000 + k} for k, row in enumerate(many(100, seed=9)))) if with_holdout else None
    summary, _, analysis = summarized(tmp_path, scores(*audited), held)
    assert pc.sum(analysis.findings["memorized"]).as_py() in (0, None)
    assert analysis.findings["evidence"].null_count == 80
    if with_holdout:
        assert "(audited rows: 80; held-out images: 0)" in " ".join(summary["detection"]["warnings"])
    else:
        assert summary["calibration"] is None


def test_too_few_held_out_images_beside_those_of_one_colour(tmp_path: Path) -> None:
    held = [{**row, "phash": 10_000 + k} for k, row in enumerate(many(60, seed=9))]
    said = warnings(tmp_path, many(80), [{**row, "variance": 0.0} if k < 20 else row for k, row in enumerate(held)])
    assert "Of 60 held-out images 40 could be scored" in said


def test_a_hold_out_that_was_torn_from_its_near_duplicates_is_said(tmp_path: Path) -> None:
    audited = many(300)
    held = [{**row, "phash": 10_000 + k} for k, row in enumerate(many(300, seed=9))]
    for index in range(50):
        audited[index] |= {"phash": 500 + index, "mean": 0.0, "variance": 0.25}
        held[index] |= {"phash": 500 + index, "mean": 0.0, "variance": 0.25}
    caveats = summarized(tmp_path, scores(*audited), scores(*held))[0]["caveats"]
    assert any(said.startswith("50 of 300 held-out images are audited as well, or look like") for said in caveats)


@pytest.mark.parametrize(
    ("held", "why"),
    [
        ({"growth": 30.0}, "constant"),
        ({"loss": 0.0}, "saturated in one part"),
        ({"loss": float("nan")}, "NaN in one part"),
        ({"noise_norm": 2.0}, "measured in the held-out images alone"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_hold_outs_that_say_little_leave_the_verdict_to_the_rest(
    tmp_path: Path, held: dict[str, Any], why: str
) -> None:
    """Ten images stand out in growth and in loss; the held-out images are as they should not be in one column."""
    random = np.random.default_rng(0)
    audited, others = many(300), [{**row, "phash": 10_000 + k} for k, row in enumerate(many(400, seed=9))]
    for row in (*audited, *others):
        row["loss"] = float(np.exp(random.normal()))
    for row in audited[:10]:
        row["growth"], row["loss"] = row["growth"] + 100, row["loss"] * 1e-9
    others = [{**row, **held} for row in others]
    summary = summarized(tmp_path, scores(*audited), scores(*others))[0]
    detection, left_out = summary["detection"], summary["calibration"]["evidence"]["left_out"]
    assert detection["memorized"] >= 10, why
    if "growth" not in held:
        assert set(held) <= set(left_out), why
        assert left_out[next(iter(held))].startswith(("it was not measured in every", "most images show exactly")), why


def test_p_values_that_rest_on_audited_images_too_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also parts of findings that were judged with another tail of the audited images are judged anew."""
    monkeypatch.setattr(tails, "AUDITED_LEAST", 20)
    monkeypatch.setattr(tails, "LEVEL", -1.0)  # these made-up scores have no tail that anything fits
    with_tail, _, analysis = summarized(tmp_path, scores(*many(900)), scores(*many(400, seed=9)))
    found = analysis.calibration
    assert found is not None
    assert found.tail is not None
    assert found.tail.audited is not None
    assert with_tail["calibration"]["tail"]["audited_images"] == found.tail.audited.rows
    assert with_tail["detection"]["method"].startswith("p-values of the generalized Pareto tails of held-out and of")
    assert any("too, nearly all of which are taken for innocent" in said for said in with_tail["detection"]["warnings"])
    alone = replace(found, tail=replace(found.tail, audited=None))
    assert len({Judge(each, (), None, "growth").digest for each in (found, alone, found)}) == 2


def test_shared_images_are_counted(tmp_path: Path) -> None:
    assert "3 held-out images are in the audited set too" in warnings(
        tmp_path, many(80), [*many(90, seed=9), *many(80)[:3]]
    )


def test_a_sample_that_calibrates_all_others_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without held-out images the images of smallest hash calibrate, where there are very many."""
    for module in (summary_module, fitting):
        monkeypatch.setattr(module, "SAMPLE", 60)
    summary, _, analysis = summarized(tmp_path, scores(*many(200)))
    assert summary["calibration"]["rows"] == 60
    assert analysis.findings["q_value"].null_count == 0
    assert any("Of all distinct images 60 calibrated the others" in said for said in summary["detection"]["warnings"])
    few, _, _ = summarized(tmp_path, scores(*many(59)))
    assert not any("calibrated the others" in said for said in few["detection"]["warnings"])
