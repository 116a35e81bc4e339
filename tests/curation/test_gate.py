"""What `check` finds, when it cannot tell, and how it says so."""

import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest

from tests.curation.conftest import ROWS
from volgrowth.analysis.distinct import strongest_rows
from volgrowth.analysis.gate.forms import gate_junit, gate_markdown, gate_text
from volgrowth.analysis.gate.limit import Gate, _exceeds, check_limit
from volgrowth.audit.output.result import FINDINGS_FILE, Audit
from volgrowth.errors import UsageError
from volgrowth.storage.store import Store


@pytest.fixture
def judged(audited: Audit, tmp_path: Path) -> Callable[..., Audit]:
    """The finished audit with other q-values, as if so many images were held out; scores stay."""
    number = count()

    def judged(
        q_value: dict[int, float | None],
        held: int | None = 100_000,
        summary: dict[str, Any] | None = None,
        **columns: Any,
    ) -> Audit:
        findings = audited.findings
        values = [q_value.get(row, 1.0) for row in range(ROWS)]
        columns = {"q_value": values, "outside_range": [False] * ROWS, **columns}
        for name, column in columns.items():
            index = findings.column_names.index(name)
            findings = findings.set_column(index, findings.schema.field(name), pa.array(column, findings[name].type))
        place = findings.column_names.index("strongest")
        findings = findings.set_column(place, findings.schema.field(place), pa.array(strongest_rows(findings)))
        folder = tmp_path / f"judged-{next(number)}"
        shutil.copytree(audited.store.url, folder)
        audit = Audit(Store(str(folder)), audited.manifest)
        audit.store.write_table(FINDINGS_FILE, findings, {})
        if held is not None:
            detection = {**audited.summary["detection"], "null": "held-out", "calibration_rows": held}
            summary = {"detection": detection, **(summary or {})}
        audit.__dict__["summary"] = {**audited.summary, **(summary or {})}
        return audit

    return judged


# rows 60 to 63 are copies of row 3
COPIES = dict.fromkeys([3, 60, 61, 62, 63], 0.01)
PROOF = {"samples": 10_000, "rows": [3, 60, 61, 62, 63, 5]}


def outcome(found: Gate) -> str:
    return "passed" if found.passed else "failed" if found.decided else "cannot tell"


def test_copies_count_once_and_the_rate_decides(judged):
    found = check_limit(judged({**COPIES, 7: 0.04, 8: 0.06}), 0.05, 0.1)
    assert (found.flagged, found.found, found.judged, found.found_rows, found.unjudged_rows) == (2, 2, 60, 6, 0)
    assert found.passed
    assert [image["row"] for image in found.images] == [3, 7]
    assert check_limit(judged({**COPIES, 7: 0.04, 8: 0.06}), 0.06, 0.1).flagged == 3


def test_the_limit_itself_is_allowed(judged):
    audit = judged({**COPIES, 7: 0.04, 8: 0.04})
    assert check_limit(audit, 0.05, 3 / 60).passed
    assert check_limit(audit, 0.05, 0.05).passed
    assert not check_limit(audit, 0.05, 0.0499).passed
    assert check_limit(judged({}), 0.05, 0.0).passed


@pytest.mark.parametrize(("found", "of", "allowed"), [(29, 100, 0.29), (3, 5000, 0.0006), (48, 5000, 0.0096)])
def test_a_share_that_is_the_limit_is_within_it_for_the_verdict_and_for_its_doubts(found, of, allowed):
    """Products of these shares, as floating-point numbers, are less than the counts."""
    assert found > allowed * of
    assert not _exceeds(found, of, allowed)
    assert _exceeds(found + 1, of, allowed)


def test_at_the_limit_itself_doubts_are_heard(judged):
    """4 of 49 images, on an assumption; as floating-point numbers 4 / 49 times 49 is less than 4."""
    unjudged = dict.fromkeys(range(10, 22))
    audit = judged({**dict.fromkeys([*COPIES, 7, 8, 9], 0.01), **unjudged}, held=None)
    assert outcome(check_limit(audit, 0.05, 4 / 49)) == "cannot tell"
    assert outcome(check_limit(audit, 0.05, 3 / 49)) == "failed"


def test_samples_that_were_compared_with_an_earlier_state_are_a_doubt(judged):
    found = check_limit(judged({}, summary={"verification_outdated": True}), 0.05, 0.1)
    assert outcome(found) == "cannot tell"
    assert found.doubts[0].startswith("Samples that `volgrowth verify` drew were compared with this audit as it was")
    failed = check_limit(judged(COPIES, summary={"verification_outdated": True}), 0.05, 0.0)
    assert found.doubts[0] in failed.caveats, "more than is said may be there"
    assert found.doubts[0] not in found.caveats, "it is said once"


def test_a_cascade_bounds_its_loss_at_the_rate_of_the_audit_and_below(judged):
    cascade = {"flags_lost_at_most": 2, "recall_at_least": 0.95}
    audit = judged({}, summary={"cascade": cascade})
    assert outcome(check_limit(audit, 0.1, 0.1)) == "passed"
    assert outcome(check_limit(audit, 0.05, 0.1)) == "passed"
    found = check_limit(audit, 0.2, 0.1)
    assert outcome(found) == "cannot tell"
    assert "holds at rates up to 0.1, and not at --fdr 0.2" in found.doubts[0]


def test_proven_images_are_found_whether_flagged_or_not(judged):
    """The samples reproduced image 3, with its copies, and image 5, which is not flagged."""
    found = check_limit(judged(COPIES, summary={"verification": PROOF}), 0.05, 0.02)
    assert (found.flagged, found.proven, found.found, found.found_rows) == (1, 2, 2, 6)
    assert outcome(found) == "failed"
    assert "are flagged at a false-discovery rate of 0.05 (1) or reproduced by samples (2): more than" in found.sentence
    none = check_limit(judged({}, held=60, summary={"verification": PROOF}), 0.05, 0.0)
    assert (none.flagged, outcome(none)) == (0, "failed"), "no flag was possible, and the proof is enough"
    unjudged = judged({5: None}, summary={"verification": PROOF})
    assert check_limit(unjudged, 0.05, 0.0).found == 2, "a proven image needs no q-value"


def test_rows_that_were_not_judged_do_not_dilute(judged):
    outside = [row in (7, 8) for row in range(ROWS)]
    found = check_limit(judged({9: None, 7: 0.01, 10: 0.01}, outside_range=outside), 0.05, 0.0)
    assert (found.flagged, found.judged, found.unjudged_rows) == (1, 57, 3)


def test_a_limit_out_of_range_is_refused(judged):
    for fdr, allowed, option in (
        (0, 0, "--fdr 0"),
        (1, 0, "--fdr 1"),
        (0.1, -1, "--max-flagged -1"),
        (0.1, 2, "share"),
    ):
        with pytest.raises(UsageError, match=option):
            check_limit(judged({}), fdr, allowed)


def test_where_nothing_was_judged_the_gate_cannot_tell(judged):
    found = check_limit(judged(dict.fromkeys(range(ROWS)), held=None), 0.05, 1.0)
    assert outcome(found) == "cannot tell"
    assert found.doubts[0] == "No image could be judged: audit again with --holdout."


def test_an_assumed_rate_can_fail_but_not_pass(judged):
    found = check_limit(judged({}, held=None), 0.05, 0.1)
    assert outcome(found) == "cannot tell"
    assert "audit again with --holdout" in found.doubts[0]
    assert "`volgrowth verify` with 2,371 samples could prove" in found.doubts[-1]
    assert outcome(check_limit(judged(COPIES, held=None), 0.05, 0.0)) == "failed"
    assert outcome(check_limit(judged({}, held=None), 0.05, 1.0)) == "passed", "all images are allowed"


def test_too_few_held_out_images_cannot_tell_and_what_it_says_would_do_does(judged):
    """p >= 1/101, and k flags of 60 images need p <= 0.05 k / 60."""
    found = check_limit(judged({}, held=100), 0.05, 0.1)
    assert outcome(found) == "cannot tell"
    assert found.doubts[0] == (
        "With 100 held-out images fewer than 12 memorized ones cannot be flagged at --fdr 0.05, and 6 are allowed: "
        "hold out 171 images, or check with --max-flagged 0.184, or with --fdr 0.0849."
    )
    assert outcome(check_limit(judged({}, held=170), 0.05, 0.1)) == "cannot tell"
    assert outcome(check_limit(judged({}, held=171), 0.05, 0.1)) == "passed"
    assert outcome(check_limit(judged({}, held=100), 0.05, 0.184)) == "passed"
    assert outcome(check_limit(judged({}, held=100), 0.0849, 0.1)) == "passed"
    assert outcome(check_limit(judged({}, held=100), 0.05, 0.2)) == "passed"


def test_a_gate_says_which_evidence_it_takes_memorized_images_to_have(judged):
    found = judged({}, held=100)
    for assumed, said in (
        (5.0, " of evidence 5 (on the benchmark most reproduced images have more; altered copies may have less)"),
        (None, ""),
    ):
        found.summary["detection"] |= {"assumed_evidence": assumed}
        assert f"fewer than 12 memorized ones{said} cannot be flagged" in check_limit(found, 0.05, 0.1).doubts[0]


def test_a_cascade_that_may_have_lost_more_than_is_allowed_cannot_tell(judged):
    cascade = {"flags_lost_at_most": 4, "recall_at_least": 0.3}
    found = check_limit(judged(COPIES, summary={"cascade": cascade}), 0.05, 0.07)
    assert outcome(found) == "cannot tell"
    assert found.doubts[0].startswith("The cascade's screen may have lost up to 4 flags")
    assert outcome(check_limit(judged(COPIES, summary={"cascade": cascade}), 0.05, 0.09)) == "passed"


def test_many_images_without_a_verdict_cannot_be_told_of_unless_they_do_not_matter(judged):
    outside = [11 <= row < 15 for row in range(ROWS)]
    audit = judged({20: None, 21: None}, outside_range=outside)
    found = check_limit(audit, 0.05, 0.05)
    assert outcome(found) == "cannot tell"
    assert found.doubts[0].startswith("6 of 60 distinct images are not judged (2 without a score, 4 outside the")
    assert outcome(check_limit(audit, 0.05, 0.1)) == "passed", "even if all of them were memorized"
    audit.summary["run"]["max_failed"] = 0.1
    assert outcome(check_limit(audit, 0.05, 0.05)) == "passed", "the user allowed so many"


NASTY = '<script>|`*_[x](http://e)` \x00\n@team "&amp;" ﷐'


def test_the_junit_file_says_what_was_found(judged):
    ids = ["bad " + NASTY if row == 3 else str(row) for row in range(ROWS)]
    found = check_limit(judged(COPIES, image_id=ids), 0.05, 0.0)
    suites = ElementTree.fromstring(gate_junit(found))
    assert (suites.get("tests"), suites.get("failures"), suites.get("errors")) == ("1", "1", "0")
    failure = suites.find("testsuite/testcase/failure")
    assert failure is not None
    assert "1 of 60 distinct images (1.667%) are flagged" in str(failure.get("message"))
    passed = ElementTree.fromstring(gate_junit(check_limit(judged({}), 0.05, 0.0)))
    assert passed.get("failures") == "0"
    assert passed.find("testsuite/testcase/failure") is None
    undecided = ElementTree.fromstring(gate_junit(check_limit(judged({}, held=None), 0.05, 0.0)))
    assert (undecided.get("failures"), undecided.get("errors")) == ("0", "1")
    error = undecided.find("testsuite/testcase/error")
    assert error is not None
    assert "Without held-out images" in str(error.text)


def test_markdown_takes_names_as_they_are(judged):
    ids = [NASTY if row == 3 else str(row) for row in range(ROWS)]
    said = gate_markdown(check_limit(judged(COPIES, image_id=ids), 0.05, 0.0))
    assert said.startswith("### ❌ volgrowth check: failed")
    (line,) = [line for line in said.splitlines() if line.startswith("| 3 |")]
    assert r"\<script\>\|\`\*\_\[x\]\(http\:\/\/e\)\`" in line
    assert r"\@team" in line
    assert line.count(" | ") == 5
    assert gate_markdown(check_limit(judged({}), 0.05, 0.0)).startswith("### ✅ volgrowth check: passed")


def test_doubts_stand_before_all_else(judged):
    found = check_limit(judged({}, held=None), 0.05, 0.0)
    heading, verdict, doubt, *_ = gate_markdown(found).split("\n\n")
    assert heading == "### ⚠️ volgrowth check: cannot tell"
    assert "it cannot be told if more than the 0\\.000\\% allowed are memorized" in verdict
    assert doubt.startswith("> ⚠️ Without held\\-out images")
    assert gate_text(found).splitlines()[1].startswith("  but: Without held-out images")


def test_the_most_certain_are_named_and_the_others_counted(judged):
    random = np.random.default_rng(0)
    q_value: dict[int, float | None] = {row: float(random.uniform(0, 0.05)) for row in range(20, 50)}
    found = check_limit(judged(q_value), 0.05, 0.0)
    assert [image["row"] for image in found.images] == sorted(q_value, key=lambda row: q_value[row] or 0)[:20]
    assert "and 10 more" in gate_text(found)
    assert "The 20 most certain of 30" in gate_markdown(found)
