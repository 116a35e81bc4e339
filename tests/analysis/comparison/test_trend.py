"""Several audits in their order: what each found, what was new, and what cannot be compared."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.curation.conftest import Run, _own_cache, run  # noqa: F401
from tests.support.samples import digits, write_folder
from volgrowth.audit.output.result import open_audit
from volgrowth.cli import run_command
from volgrowth.commands.trend import trend_audits
from volgrowth.errors import UsageError

IMAGES = digits(12)
Checkpoints = Callable[..., str]


@pytest.fixture
def checkpoint(run: Run, tmp_path: Path) -> Checkpoints:  # noqa: F811
    """Makes an audit that flags some rows of 14 images, of which row 12 is a copy of row 1, and 13 one of row 2."""

    def checkpoint(
        name: str,
        flagged: Sequence[int],
        proven: Sequence[int] | None = None,
        data: str = "data",
        distance: str = "pixels",
        **given: Any,
    ) -> str:
        folder = tmp_path / data
        if not folder.exists():
            write_folder(folder, [*IMAGES, IMAGES[1], IMAGES[2]])
        out = tmp_path / name
        run(folder, out, **given)
        findings = pq.read_table(out / "findings.parquet")
        cluster = {12: 1, 13: 2}
        same = [cluster.get(row, row) for row in range(len(findings))]
        columns = {
            "q_value": [0.01 if each in flagged else 1.0 for each in same],
            "p_value": [0.01 if each in flagged else 1.0 for each in same],
            "outside_range": [False] * len(findings),
            "cluster": same,
            "strongest": [row == each for row, each in enumerate(same)],
        }
        for column, values in columns.items():
            place = findings.column_names.index(column)
            field = findings.schema.field(column)
            findings = findings.set_column(place, field, pa.array(values, field.type))
        pq.write_table(findings, out / "findings.parquet")
        summary = json.loads((out / "summary.json").read_text())
        del summary["sha256"]
        proof = None if proven is None else {"rows": [*proven], "samples": 100 * len(proven), "distance": distance}
        summary |= {"detection": {"null": "held-out"}, "verification": proof}
        (out / "summary.json").write_text(json.dumps(summary))
        return str(out)

    return checkpoint


def test_what_is_found_new_and_gone_is_counted_by_images(checkpoint):
    """Row 12 is the copy of row 1, so that what it finds is not new."""
    outs = [checkpoint("a", [1, 3]), checkpoint("b", [1, 4], [5, 4]), checkpoint("c", [3, 2])]
    trend = trend_audits(outs)
    assert [astuple(each)[2:] for each in trend.checkpoints] == [
        (12, 2, None, 2, 2, None),
        (12, 2, 2, 3, 2, 1),
        (12, 2, None, 2, 1, 3),
    ]
    assert sum("was not verified" in note for note in trend.notes) == 2
    assert sum("another" in note for note in trend.notes) == 0


def test_found_images_are_counted_by_source_and_by_class(checkpoint):
    """Rows 0 to 11 are images of their own, of which 3 has no class; the second audit was not told of classes."""
    classes = {"classes": ["a", "b", "b", None, *"a" * 10], "class_column": "label"}
    outs = [checkpoint("a", [1, 3], **classes), checkpoint("b", [1]), checkpoint("c", [2, 1, 4], **classes)]
    trend = trend_audits(outs)
    assert trend.by_class is not None
    assert [astuple(group) for group in trend.by_class.listed] == [
        ("b", 2, (1, None, 2)),
        ("a", 9, (0, None, 1)),
        ("", 1, (1, None, 0)),
    ]
    assert astuple(trend.by_class.all) == ("", 12, (2, None, 3))
    assert trend.by_source is not None
    assert [astuple(group) for group in trend.by_source.listed] == [("", 12, (2, 1, 3))]
    assert trend_audits([outs[1], checkpoint("d", [1])]).by_class is None


def test_the_command_writes_one_page_and_names_what_cannot_be_compared(checkpoint, tmp_path, capsys):
    outs = [checkpoint("a", [1], [1]), checkpoint("b <script>", [1, 2], [2], data="other")]
    page = tmp_path / "pages/trend.html"
    assert run_command(["trend", *outs, "--page", str(page)]) == 0
    said, html = capsys.readouterr().out, page.read_text()
    assert said.splitlines()[0].split() == ["checkpoint", "memorized", "proven", "new", "gone", "judged"]
    assert said.splitlines()[2].split()[-5:] == ["2", "1", "1", "0", "12"]
    assert "2 images found at the last of 2 checkpoints, 1 at the first" in html
    assert "&lt;script&gt;" in html
    assert "b <script>" not in html
    write_folder(tmp_path / "more", IMAGES[:11])
    assert run_command(["trend", outs[0], str(tmp_path / "nowhere"), "--page", str(page)]) == 2


def test_audits_of_other_data_are_named(run, checkpoint, tmp_path):  # noqa: F811
    write_folder(tmp_path / "fewer", IMAGES)
    out = run(tmp_path / "fewer", tmp_path / "few").store.url
    notes = trend_audits([checkpoint("a", [1]), out]).notes
    assert any(f"{out} has another data set than" in note for note in notes)
    assert any(f"{out} was not calibrated: it could flag nothing" in note for note in notes)


def test_audits_that_were_verified_in_other_ways_are_named(checkpoint):
    """By another distance or another number of samples; the first one that was verified is what others differ from."""
    outs = [checkpoint("a", [1]), checkpoint("b", [1], [5, 4]), checkpoint("c", [1], [5, 2])]
    assert not any("with 200 samples" in note for note in trend_audits(outs).notes)
    outs += [checkpoint("d", [1], [5, 4], distance="perceptual"), checkpoint("e", [1], [5])]
    notes = [note for note in trend_audits(outs).notes if "was verified with" in note]
    ways = ["200 samples by --distance perceptual", "100 samples by --distance pixels"]
    for note, out, way in zip(notes, outs[3:], ways, strict=True):
        assert f"{outs[1]} was verified with 200 samples by --distance pixels, and {out} with {way}: " in note


def test_audits_under_other_conditions_and_settings_are_named(checkpoint):
    classes: dict[str, Any] = {"classes": ["a"] * 14, "class_column": "label"}
    outs = [checkpoint("a", [1]), checkpoint("b", [1], **classes), checkpoint("c", [1], dtype="bfloat16")]
    notes = [note for note in trend_audits(outs).notes if "was not verified" not in note]
    assert f"Growth is measured without conditions in {outs[0]} and under classes in {outs[1]}: " in notes[0]
    assert f"(dtype is float32 in {outs[0]} and bfloat16 in {outs[2]}): numbers may differ" in notes[1]


def test_what_trend_refuses(checkpoint, tmp_path):
    one, other = checkpoint("a", [1]), checkpoint("b", [1])
    for outs, given, said in (
        ([one], {}, "needs two different audits or more"),
        ([one, one], {}, "needs two different audits or more"),
        ([one, f"{one}/"], {}, "needs two different audits or more"),
        ([one, other], {"page": f"{one}/report.html"}, "is a file of the audit in .*: give another name"),
        ([one, other], {"fdr": 0.0}, "--fdr 0: expected above 0"),
        ([one, other], {"page": str(tmp_path / "page.txt")}, "expected a file name that ends in .html"),
    ):
        with pytest.raises(UsageError, match=said):
            trend_audits(outs, **given)
    for page in (tmp_path / "report.html", Path(one) / "trend.html"):
        assert len(trend_audits([one, other], str(page), fdr=0.005).checkpoints) == 2


def test_no_command_writes_over_a_file_of_an_audit(checkpoint, tmp_path, capsys):
    one = checkpoint("a", [1])
    before = {path: path.read_bytes() for path in Path(one).iterdir() if path.is_file()}
    for command in (
        ["curate", one, "--top-k", "0", "--list", f"{one}/findings.parquet"],
        ["diff", one, one, "--table", f"{one}/findings.parquet"],
        ["check", one, "--fdr", "0.1", "--max-flagged", "0.1", "--junit", f"{one}/summary.json"],
    ):
        assert run_command(command) == 2, command
        assert "is a file of the audit in" in " ".join(capsys.readouterr().err.split()), command
    assert {path: path.read_bytes() for path in Path(one).iterdir() if path.is_file()} == before
    assert run_command(["curate", one, "--top-k", "0", "--list", str(tmp_path / "findings.parquet")]) == 0


def test_findings_as_csv(checkpoint, tmp_path):
    audit = open_audit(checkpoint("a", [1]))
    audit.write_csv(str(tmp_path / "findings.csv"))
    with open(tmp_path / "findings.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    table = audit.to_arrow()
    assert {*rows[0]} == {*table.column_names}
    assert [int(row["row"]) for row in rows] == list(range(14))
    assert [row["memorized"] for row in rows] == [
        str(each).lower() if each is not None else "" for each in table["memorized"].to_pylist()
    ]
    assert [json.loads(row["rates"] or "null") for row in rows] == table["rates"].to_pylist()
    with pytest.raises(UsageError, match=r"ends in \.csv"):
        audit.write_csv(str(tmp_path / "findings.txt"))
