"""One function says what is flagged, proven and not judged, and the tables and counts of all commands agree with it."""

from pathlib import Path

import numpy as np

from tests.analysis.test_summary import summarized
from tests.support.tables import failed, many, scores
from volgrowth.analysis.as_numpy import as_mask
from volgrowth.analysis.comparison.matching import match_images
from volgrowth.analysis.deciding import decide_actions
from volgrowth.analysis.gate.limit import check_limit
from volgrowth.analysis.judging import judge
from volgrowth.analysis.parts.database import open_database
from volgrowth.analysis.policy import CurationPolicy
from volgrowth.report.charts.numbers import duplicate_groups


def test_commands_and_report_count_the_same_images(tmp_path: Path) -> None:
    """Of images with copies, images that failed, images outside the range, and images that samples reproduced."""
    measured = many(300)
    for row in range(20):
        measured[row]["growth"] += 100
    measured[200] = measured[0]
    measured[201] = failed("non_finite", content_hash=measured[1]["content_hash"])
    measured[210] |= {"png_bytes": 60_000, "variance": 9.0, "growth": 500.0}  # beyond all held-out images
    summary, audit, analysis = summarized(tmp_path, scores(*measured), scores(*many(400, seed=9)))
    findings, proof = analysis.findings, {"rows": [0, 200, 150], "samples": 10_000}
    vars(audit).update(summary={**summary, "verification": proof}, holdout_findings=analysis.holdout)
    known = judge(findings, proof)
    assert np.array_equal(known.flagged, as_mask(findings["memorized"]))
    assert not known.judged[[201, 210]].any()
    assert known.unjudged[[201, 210]].all()
    assert known.found[150]
    flagged = known.images(known.flagged)
    assert flagged == summary["detection"]["memorized"] == 20
    assert sum(band["flagged"] for band in duplicate_groups(findings)["by_rows"]) == flagged
    gate = check_limit(audit, 0.1, 0.0)
    assert (gate.flagged, gate.proven, gate.found) == (flagged, 2, flagged + 1)
    with open_database(0) as database:
        match_images(database, audit, audit)
        assert database.number("SELECT count(*) FROM matched WHERE flagged_a") == flagged + 1
    listed = decide_actions(findings, audit.scores.select(["source", "status"]), CurationPolicy(), "digest", proof)
    dropped = [row for row, action in enumerate(listed["action"].to_pylist()) if action == "drop"]
    assert {*np.flatnonzero(known.found).tolist()} <= {*dropped}, "with what is in their clusters"
    assert listed["action"][201].as_py() == "drop", "it shows a flagged image"
    assert listed["action"][210].as_py() == "review"
