"""What `check` finds, and how it says so."""

from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest

from tests.curation.conftest import ROWS
from volgrowth.analysis import gate
from volgrowth.analysis.caveats import list_caveats
from volgrowth.audit.output.result import Audit
from volgrowth.errors import OutputError, UsageError


@pytest.fixture
def judged(audited: Audit) -> Callable[..., Audit]:
    """The finished audit with other q-values; summary and scores stay."""

    def judged(q_value: dict[int, float | None], **columns: Any) -> Audit:
        findings = audited.findings
        values = [q_value.get(row, 1.0) for row in range(ROWS)]
        columns = {"q_value": values, "outside_range": [False] * ROWS, **columns}
        for name, column in columns.items():
            index = findings.column_names.index(name)
            findings = findings.set_column(index, findings.schema.field(name), pa.array(column, findings[name].type))
        audit = Audit(audited.store, audited.manifest)
        audit.__dict__["findings"] = findings
        return audit

    return judged


# rows 60 to 63 are copies of row 3
COPIES = dict.fromkeys([3, 60, 61, 62, 63], 0.01)


def test_copies_count_once_and_the_rate_decides(judged):
    found = gate.check_limit(judged({**COPIES, 7: 0.04, 8: 0.06}), 0.05, 0.1)
    assert (found.flagged, found.judged, found.flagged_rows, found.unjudged_rows) == (2, 60, 6, 0)
    assert found.passed
    assert [image["row"] for image in found.images] == [3, 7]
    assert gate.check_limit(judged({**COPIES, 7: 0.04, 8: 0.06}), 0.06, 0.1).flagged == 3


def test_the_limit_itself_is_allowed(judged):
    audit = judged({**COPIES, 7: 0.04, 8: 0.04})
    assert gate.check_limit(audit, 0.05, 3 / 60).passed
    assert gate.check_limit(audit, 0.05, 0.05).passed
    assert not gate.check_limit(audit, 0.05, 0.0499).passed
    assert gate.check_limit(judged({}), 0.05, 0.0).passed


def test_rows_that_were_not_judged_do_not_dilute(judged):
    outside = [row in (7, 8) for row in range(ROWS)]
    found = gate.check_limit(judged({9: None, 7: 0.01, 10: 0.01}, outside_range=outside), 0.05, 0.0)
    assert (found.flagged, found.judged, found.unjudged_rows) == (1, 57, 3)


def test_what_cannot_be_told_is_refused(judged):
    with pytest.raises(OutputError, match=r"no image of .* could be judged, so there is nothing to check"):
        gate.check_limit(judged(dict.fromkeys(range(ROWS))), 0.05, 0.0)
    for fdr, allowed, option in (
        (0, 0, "--fdr 0"),
        (1, 0, "--fdr 1"),
        (0.1, -1, "--max-flagged -1"),
        (0.1, 2, "share"),
    ):
        with pytest.raises(UsageError, match=option):
            gate.check_limit(judged({}), fdr, allowed)


def test_too_few_held_out_images_are_said(judged):
    audit = judged({})
    assert gate.check_limit(audit, 0.05, 0.0).notes == tuple(list_caveats(audit.summary)) != ()
    audit.__dict__["summary"] = {"detection": {"null": "held-out", "calibration_rows": 100}}
    (note,) = gate.check_limit(audit, 0.05, 0.0).notes
    # p >= 1/101, and k flags of 60 images need p <= 0.05 k / 60
    assert note.startswith("With 100 held-out images fewer than 12 memorized ones cannot be flagged")
    assert note.endswith("there are at most 0; 1199 held-out images would.")
    assert gate.check_limit(audit, 0.05, 0.2).notes == ()


NASTY = '<script>|`*_[x](http://e)` \x00\n@team "&amp;" ﷐'


def test_the_junit_file_says_what_was_found(judged):
    ids = ["bad " + NASTY if row == 3 else str(row) for row in range(ROWS)]
    found = gate.check_limit(judged(COPIES, image_id=ids), 0.05, 0.0)
    suites = ElementTree.fromstring(gate.gate_junit(found))
    assert (suites.get("tests"), suites.get("failures"), suites.get("errors")) == ("1", "1", "0")
    failure = suites.find("testsuite/testcase/failure")
    assert failure is not None
    assert "1 of 60 distinct images (1.667%) are flagged" in str(failure.get("message"))
    assert '<script>|`*_[x](http://e)` \\x00\n@team "&amp;"' in str(failure.text)
    passed = ElementTree.fromstring(gate.gate_junit(gate.check_limit(judged({}), 0.05, 0.0)))
    assert passed.get("failures") == "0"
    assert passed.find("testsuite/testcase/failure") is None


def test_markdown_takes_names_as_they_are(judged):
    ids = [NASTY if row == 3 else str(row) for row in range(ROWS)]
    said = gate.gate_markdown(gate.check_limit(judged(COPIES, image_id=ids), 0.05, 0.0))
    assert said.startswith("### ❌ volgrowth check: failed")
    (line,) = [line for line in said.splitlines() if line.startswith("| 3 |")]
    assert r"\<script\>\|\`\*\_\[x\]\(http\:\/\/e\)\`" in line
    assert r"\@team" in line
    assert line.count(" | ") == 4
    assert gate.gate_markdown(gate.check_limit(judged({}), 0.05, 0.0)).startswith("### ✅ volgrowth check: passed")


def test_the_most_certain_are_named_and_the_others_counted(judged):
    random = np.random.default_rng(0)
    q_value: dict[int, float | None] = {row: float(random.uniform(0, 0.05)) for row in range(20, 50)}
    found = gate.check_limit(judged(q_value), 0.05, 0.0)
    assert [image["row"] for image in found.images] == sorted(q_value, key=lambda row: q_value[row] or 0)[:20]
    assert "and 10 more" in gate.gate_text(found)
    assert "The 20 most certain of 30" in gate.gate_markdown(found)
