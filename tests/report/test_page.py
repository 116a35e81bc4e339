import copy
import itertools
import json
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.support.page_parser import Page, parse
from tests.support.report_data import (
    CALIBRATION,
    DETECTION,
    NO_COUNTS,
    RUN,
    TRUTH,
    full_report,
    html_of,
    many,
    record,
    shown,
    summary,
    tables,
    thumbnails,
)
from volgrowth.report import Exhibit, NearestSample, Shown, render_report, thumbnail
from volgrowth.report.formats import score
from volgrowth.report.gallery.pictures import data_url
from volgrowth.report.page import CAP
from volgrowth.report.reading import EXAMPLES

HOSTILE = "\"'</script></style></title><script>alert(1)</script><img src=https://evil.example/x onerror=alert(1)>"
BIDI = "photo\u202egnp.exe"


def page_of(records: list[dict[str, Any]], shown: list[int] | None = None, **changes: Any) -> Page:
    scores, findings = tables(records)
    rows = [r["row"] for r in records if r["status"] == "ok"] if shown is None else shown
    return parse(html_of(summary(len(records), **changes), (scores, findings), rows))


def full_page() -> str:
    return full_report().html


def test_nothing_is_fetched() -> None:
    html = full_page()
    page = parse(html)
    assert page.all("img")
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form", "audio", "video"}
        for name in {"src", "href", "xlink:href", "srcset", "action", "poster", "data"} & set(attributes):
            assert attributes[name].startswith(("#", "data:image/png;base64,")), attributes
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert "http://" not in html
    assert "https://" not in html


def test_a_browser_is_told_to_fetch_nothing_and_to_run_only_the_pages_own_script() -> None:
    html = full_page()
    policies = [m["content"] for m in parse(html).all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert "default-src 'none'" in policies[0]
    assert not re.search(r"script-src[^;]*unsafe", policies[0])
    assert html.count("<script") == 1


def test_ids_are_unique_and_references_resolve() -> None:
    page = parse(full_page())
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for _, a in page.elements if a.get("href", "").startswith("#")]
    targets += [a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a]
    targets += re.findall(r"url\(#([^)]+)\)", full_page())
    assert targets
    assert set(targets) <= set(ids)


def test_headings_are_in_order() -> None:
    levels = [int(tag[1]) for tag, _ in parse(full_page()).elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_pictures_and_figures_have_words() -> None:
    page = parse(full_page())
    assert all(image["alt"] for image in page.all("img"))
    figures = page.all("svg")
    assert len(figures) == 6
    assert all(figure["role"] == "img" and figure["aria-label"] for figure in figures)


def test_every_thumbnail_is_there_highest_excess_first_and_nulls_last() -> None:
    records = [
        record(0, excess_growth=None),
        record(1, excess_growth=1.0),
        record(2, excess_growth=float("nan")),
    ]
    records += [record(3, excess_growth=-5.0), record(4, excess_growth=9.0), record(5, excess_growth=99.0)]
    page = page_of(records, shown=[0, 1, 2, 3, 4])
    alts = [image["alt"] for image in page.all("img")]
    assert alts == [f"Image of row {row}" for row in (4, 1, 3, 0, 2)]
    assert [image["src"] for image in page.all("img")] == [
        page_of([record(row)]).all("img")[0]["src"] for row in (4, 1, 3, 0, 2)
    ]


def test_identical_images_share_a_card_that_names_all_their_rows() -> None:
    records = [record(row, cluster=0, content_hash=2**64 - 1, excess_growth=float(row)) for row in range(5)]
    records += [record(7, content_hash=None), record(8, content_hash=None)]
    page = page_of(records, shown=[1, 3, 7, 8])
    assert sorted(image["alt"] for image in page.all("img")) == [f"Image of row {row}" for row in (3, 7, 8)]
    assert "5 copies" in page.visible
    assert "0, 1, 2, 3, 4" in page.visible


def test_a_long_list_of_copies_is_cut_and_says_so() -> None:
    page = page_of([record(row, cluster=0, content_hash=1) for row in range(100)])
    assert len(page.all("img")) == 1
    assert "39 and 60 more" in page.visible


def test_copies_that_are_not_identical_are_said_apart() -> None:
    near = {"cluster": 0, "copies": 4}
    page = page_of(
        [
            record(row, content_hash=content, excess_growth=-float(row), **near)
            for row, content in enumerate((1, 1, 2, 3))
        ]
    )
    assert [card["data-row"] for card in page.all("article")] == ["0"]
    assert "2 copies" in page.visible
    assert "2 near duplicates" in page.visible


def test_a_thumbnail_of_an_unknown_row_is_an_error() -> None:
    scores, findings = tables([record(0)])
    with pytest.raises(ValueError, match="row 7"):
        render_report(summary(1), scores, findings, shown([0, 7]))


def hostile_everywhere(value: Any) -> Any:
    """The same structure with every string replaced, but for those whose meaning the page knows."""
    if isinstance(value, dict):
        return {k: hostile_everywhere(v) for k, v in value.items()}
    if isinstance(value, list):
        return [hostile_everywhere(v) for v in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_strings_stay_text() -> None:
    records = [
        record(0, image_id=HOSTILE, source=HOSTILE, marks=[HOSTILE]),
        record(1, image_id=HOSTILE, source=HOSTILE, status="undecodable", error=HOSTILE),
    ]
    scores, findings = tables(records)
    hostile = hostile_everywhere(
        summary(
            2,
            counts={**NO_COUNTS, "rows": 2, "ok": 1, "undecodable": 1},
            calibration=copy.deepcopy(CALIBRATION),
            detection={**DETECTION, "warnings": [HOSTILE]},
            holdout={"name": "h", "split": "t", "rows": 1, "fingerprint": "f"},
            verification=copy.deepcopy(TRUTH),
        )
    )
    hostile["versions"][HOSTILE] = HOSTILE
    hostile["measure"][HOSTILE] = [HOSTILE]
    html = html_of(hostile, (scores, findings), [0])
    page = parse(html)
    assert html.count("<script") == 1
    assert len(page.all("script")) == len(page.all("style")) == len(page.all("title")) == 1
    assert len(page.all("img")) == 1
    assert not [name for _, a in page.elements for name in a if name.startswith("on")]
    assert page.visible.count("<script>alert(1)</script>") > 15


def test_direction_overrides_are_spelled_out() -> None:
    records = [record(0, image_id=BIDI, source=BIDI), record(1, status="crashed", error="\u2066\0\x1b[31m")]
    data = {"name": BIDI, "split": None, "rows": 2, "fingerprint": "f"}
    scores, findings = tables(records)
    html = html_of(summary(2, data=data), (scores, findings), [0])
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", html)
    assert "photo[U+202E]gnp.exe" in parse(html).visible
    assert "[U+2066][U+0000][U+001B][31m" in parse(html).visible


@pytest.mark.parametrize("rows", [0, 1, 2])
@pytest.mark.parametrize("status", ["ok", "undecodable"])
def test_tiny_audits_render(rows: int, status: str) -> None:
    ok = rows if status == "ok" else 0
    counts = {**NO_COUNTS, "rows": rows, "ok": ok, "undecodable": rows - ok}
    records = [record(row, status=status) for row in range(rows)]
    page = page_of(records, counts=counts)
    assert len(page.all("img")) == ok
    assert_no_leak(page)


def test_missing_numbers_are_dashes() -> None:
    nothing: dict[str, Any] = {
        "run": dict.fromkeys([*RUN, "evaluations"], None) | {"device": "cpu"},
        "calibration": {**dict.fromkeys(CALIBRATION, None), "r2": float("nan"), "features": []},
        "detection": dict.fromkeys(DETECTION, None) | {"warnings": []},
        "verification": {
            "samples": 0,
            "reproduced_images": 0,
            "rows": [],
            "raw": {"auroc": None, "tpr_at_1_fpr": None},
            "calibrated": {"auroc": None, "tpr_at_1_fpr": None},
            "rule": "",
            "sampler": "",
            "flagged": 0,
            "flagged_reproduced": 0,
            "precision_interval": [0.0, 1.0],
            "unhit_rows": [],
            "returns": None,
            "warnings": [],
        },
        "duplicates": dict.fromkeys(["clusters", "rows_in_clusters", "largest"], None),
    }
    empty = dict.fromkeys(["growth", "expected_growth", "excess_growth", "loss", "png_bytes"], None)
    page = page_of([record(0, **empty), record(1, growth=float("nan"), loss=float("inf"))], **nothing)
    assert_no_leak(page)


def test_nothing_missing_shows_on_a_full_page() -> None:
    assert_no_leak(parse(full_page()))


def assert_no_leak(page: Page) -> None:
    # "none" is an English word, "None" is Python's
    assert not re.search(r"\b(?:None|(?i:nan|inf|null|undefined))\b", page.visible)


def test_without_held_out_images_the_page_promises_nothing() -> None:
    page = page_of([record(0), record(1)])
    assert "2 images ranked, none judged" in page.visible
    assert "promises no error rate" in page.visible
    assert "--holdout" in page.visible


def test_with_held_out_images_the_verdict_names_the_error_rate() -> None:
    page = parse(full_page())
    assert "2 images are flagged as memorized" in page.visible
    assert "false discovery rate of 10%" in page.visible
    assert "few held-out images" in page.visible
    assert "--holdout" not in page.visible


def test_measured_truth_is_in_the_verdict() -> None:
    page = page_of([record(k) for k in range(4)], verification=TRUTH)
    seen = page.visible
    assert "The model reproduces 1 training image" in seen
    assert "93% of them at 1% false alarms (AUROC 0.996); raw growth finds 7% (AUROC 0.891)" in seen
    assert sorted(a["data-row"] for a in page.all("article") if "reproduced" in a["data-is"]) == ["1", "2"]
    assert str(TRUTH["rule"]) in seen


def test_failures_of_every_status_are_shown_and_cut() -> None:
    page = parse(full_page())
    assert "worker died" in page.visible
    assert page.visible.count("cannot identify image") == EXAMPLES // 2
    facts, records = summary(3), [record(k) for k in range(3)]
    facts["failures"] = {
        "audited": {
            "rows": 2,
            "reasons": [{"rows": 2, "status": "undecodable", "row": 1, "source": "a#1", "error": "why <b>"}],
            "other_rows": 0,
        },
        "held_out": None,
    }
    said = parse(html_of(facts, tables(records), [0])).visible
    assert "2 rows undecodable, such as row 1 (a#1): why <b>" in said


def test_the_tables_may_be_ordered_differently() -> None:
    records = [record(row, png_bytes=100 * (row + 1)) for row in range(6)]
    scores, findings = tables(records)
    reversed_ = findings.take(np.arange(6)[::-1])
    one, two = (html_of(summary(6), (scores, each), [1, 4]) for each in (findings, reversed_))
    assert [i["alt"] for i in parse(one).all("img")] == [i["alt"] for i in parse(two).all("img")]

    def dots(html: str) -> list[tuple[str, str]]:
        return sorted((use["x"], use["y"]) for use in parse(html).all("use") if "complexity" in use["href"])

    assert dots(one) == dots(two)


def test_the_same_input_gives_the_same_bytes() -> None:
    assert full_page() == full_page()


def test_the_size_does_not_follow_the_number_of_rows() -> None:
    scores, findings = many(100_000)
    html = html_of(summary(100_000), (scores, findings), list(range(0, 400, 2)))
    assert len(html.encode()) < 3_000_000
    assert len(parse(html).all("article")) == 200
    assert "Shows 1,500 of 50,000 ordinary images" in parse(html).visible


def test_a_flagged_image_stands_beside_its_sample_its_control_and_its_near_duplicates() -> None:
    page = parse(full_page())
    alts = {image["alt"]: image["src"] for image in page.all("img")}
    rows, samples = thumbnails([10, 20]), thumbnails([5])
    assert alts["Nearest sample of row 0"] == data_url(samples[5])
    assert alts["Control of row 0"] == data_url(rows[20])
    assert alts["Near duplicate of row 0"] == data_url(rows[10])
    assert "Nearest sample no. 5, a copy, distance 0.250" in page.visible
    assert re.search(r"Control row 20, excess [+−]\d", page.visible)
    assert "Near duplicate row 10" in page.visible
    assert "none: each was nearer to another image" in page.visible  # row 1, flagged, and no sample came near


def test_a_redacted_page_has_no_pictures_and_all_the_words() -> None:
    page = parse(full_report(rows={}, samples={}, redacted=True).html)
    assert not page.all("img")
    assert "data:image" not in full_report(rows={}, samples={}, redacted=True).html
    assert "made without pictures" in page.visible
    assert "Control row 20" in page.visible
    assert "Row 39" in page.visible


def test_a_page_whose_pictures_could_not_be_read_says_so() -> None:
    page = parse(full_report(rows={}, samples={}).html)
    assert not page.all("img")
    assert "0 cards of 39 have pictures: none could be read" in page.visible


def test_cards_carry_what_they_are_filtered_and_sorted_by() -> None:
    articles = {a["data-row"]: a for a in parse(full_page()).all("article")}
    assert len(articles) == 39
    assert "10" not in articles, "a near duplicate of row 0"
    assert articles["0"]["data-is"].split() == ["memorized", "copied", "precursor"]
    assert articles["1"]["data-is"].split() == ["memorized", "reproduced", "unhit", "single", "precursor"]
    assert articles["4"]["data-is"] == "marked"
    assert float(articles["0"]["data-hits"]) == 7
    assert float(articles["0"]["data-copies"]) == 2
    assert "data-hits" not in articles["5"]
    options = [option["value"] for option in parse(full_page()).all("option")]
    assert {"memorized", "reproduced", "unhit", "marked", "excess:-1", "row:1"} <= set(options)
    assert "outside" not in options  # a filter that no card would pass


def test_five_thousand_flagged_images_stay_under_the_cap() -> None:
    """Each with pictures that compress no better than photographs do, and names longer than are shown."""
    rows, rng = 5000, np.random.default_rng(0)
    scores, findings = many(3 * rows)
    whole = np.arange(3 * rows)
    flags = pa.array(whole < rows)
    findings = findings.set_column(findings.schema.get_field_index("memorized"), "memorized", flags)
    for name in ("cluster", "identical"):
        findings = findings.set_column(findings.schema.get_field_index(name), name, pa.array(whole))
    long = pa.array(["<&>" * 200] * len(whole))
    scores = scores.set_column(scores.schema.get_field_index("source"), "source", long)
    scores = scores.set_column(
        scores.schema.get_field_index("content_hash"), "content_hash", pa.array(whole, pa.uint64())
    )
    photo = thumbnail(rng.integers(0, 256, (3, 24, 24), dtype=np.uint8).repeat(8, 1).repeat(8, 2))
    exhibits = [Exhibit(k, (rows + k,), 2 * rows + k, NearestSample(k, 1.0, False)) for k in range(rows)]
    pictures = Shown(exhibits, dict.fromkeys(range(3 * rows), photo), dict.fromkeys(range(rows), photo))
    detection = {**DETECTION, "memorized": rows, "memorized_rows": rows}
    report = render_report(summary(3 * rows, detection=detection), scores, findings, pictures)
    assert len(report.html.encode()) < CAP
    assert report.html.count("<article") == report.numbers["gallery"]["images"] == rows
    assert 100 < report.numbers["gallery"]["with_pictures"] < rows
    assert f"{report.numbers['gallery']['with_pictures']} cards of 5,000 have pictures" in report.html


def test_the_numbers_of_the_figures_are_handed_over_as_json() -> None:
    report = full_report()
    numbers = json.loads(json.dumps(report.numbers, allow_nan=False))
    assert sum(numbers["growth"]["ordinary"]) + sum(numbers["growth"]["notable"]) == 59
    assert sum(numbers["growth"]["held_out"]) == sum(numbers["evidence"]["held_out"]) == 50
    assert numbers["levels"]["pairs"] == 2
    assert [band["images"] for band in numbers["duplicates"]["by_rows"]] == [58, 1]
    assert numbers["duplicates"]["largest"] == [{"row": 0, "rows": 2, "images": 2, "flagged": 1}]
    assert numbers["gallery"] == {"images": 39, "with_pictures": 39}


def test_evidence_is_shown_with_the_line_at_which_flags_begin() -> None:
    page, flagged = full_report(), [record(k)["excess_growth"] / 3 for k in range(3)]
    assert page.numbers["evidence"]["flags_begin"] == pytest.approx(min(flagged))
    (drawn,) = (svg["aria-label"] for svg in parse(page.html).all("svg") if "evidence" in svg["aria-label"])
    assert f"Flags begin at {score(min(flagged))}." in drawn
    assert "here the sum of what loss and noise norm show beyond" in page.html
    assert "is no part of this audit&#39;s evidence" in page.html or "is no part of this audit's evidence" in page.html


def test_without_flags_there_is_no_line_and_without_evidence_no_figure_of_it() -> None:
    records = [record(row, evidence=row / 10) for row in range(50)]
    found = {"calibration": CALIBRATION, "detection": {**DETECTION, "memorized": 0}}
    report = render_report(summary(50, **found), *tables(records), shown([0]))
    assert report.numbers["evidence"]["flags_begin"] is None
    assert "No image is flagged, so that there is no line" in report.html
    scores, findings = tables([record(row) for row in range(50)])
    for older in (findings, findings.drop_columns(["evidence"])):  # not calibrated, or of a version without evidence
        report = render_report(summary(50), scores, older, shown([0]))
        assert "evidence.svg" not in report.figures
        assert "stand apart on the right of the second figure." in report.html


def test_a_card_says_which_parts_speak_and_the_contrast_of_a_condition() -> None:
    known = {"evidence": 4.0, "evidence_loss": 5.25, "evidence_noise_norm": -0.5}
    said = html_of(
        summary(2, calibration=CALIBRATION), tables([record(0, **known, growth_contrast=1.5), record(1)]), [0]
    )
    assert "evidence of loss +5.25, noise norm −0.500" in said
    assert "noise norm counts" not in said  # an audit of an earlier version, whose parts have no weight
    parts = {"loss": {"weight": 1.0, "unit": 2.0, "residual_spread": 2.0}, "noise_norm": {"weight": 0.5}}
    for unit, method in ((1.0, "cross-fitted"), (1.5, "held-out")):
        parts["noise_norm"] |= {"unit": unit, "residual_spread": 1.0}
        weighted = {**CALIBRATION, "method": method, "evidence": {"parts": parts, "left_out": {}}}
        page = html_of(summary(2, calibration=weighted), tables([record(0, **known), record(1)]), [0])
        assert "evidence of loss +5.25, noise norm −0.250" in page
        assert "here the weighted sum of what loss and noise norm show" in page
        said_units = " ".join(page.split())
        assert f"in units of the {'audited' if method == 'cross-fitted' else 'held-out'} images' spread" in said_units
        assert ("or of their upper tail's where that is wider" in said_units) == (unit > 1)
        assert "and added up; noise norm counts half. The gallery" in said_units
    assert re.search(r"<dt>contrast</dt><dd>\+1.50", said)
    assert "<dt>contrast</dt>" not in html_of(summary(2), tables([record(0), record(1)]), [0, 1])


def test_every_figure_is_a_file_too() -> None:
    names = {"evidence", "growth", "excess-growth", "complexity", "levels", "returns"}
    files = full_report().figures
    assert set(files) == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert all(files[f"{name}.png"].startswith(b"\x89PNG") for name in names)
    assert all(b"<svg" in files[f"{name}.svg"] and b"var(--" not in files[f"{name}.svg"] for name in names)
    assert files == full_report().figures


def test_figures_count_near_duplicates_once() -> None:
    records = [record(row, cluster=row // 5 * 5, content_hash=row, png_bytes=200) for row in range(50)]
    report = render_report(summary(50), *tables(records), shown([0]))
    assert sum(report.numbers["growth"]["ordinary"]) == report.numbers["complexity"]["ordinary"] == 10
