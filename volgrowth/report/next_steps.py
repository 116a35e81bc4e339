"""The commands that a reader of a report gives next, spelled for the output that the report is of."""

import shlex
from typing import NamedTuple

from volgrowth.analysis.calibration.error_rates import FDR
from volgrowth.report.words import Summary, has_error_rate

SAMPLES = 2500
"""Samples of a first verification: so many find most copies."""


class NextStep(NamedTuple):
    """A command, and what it is good for."""

    command: str
    purpose: str


def list_name(audit: str) -> str:
    """Return the name of the list that the page downloads; `audit` is the audit's name in its lists."""
    return f"volgrowth-{audit[:8] or 'list'}.csv"


def next_steps(summary: Summary, output: str, audit: str) -> list[NextStep]:
    """Return the next commands in the order in which they are given.

    Args:
        summary: the content of `summary.json`.
        output: folder or URL of the audit.
        audit: the audit's name in its lists.
    """
    if not summary["counts"]["ok"]:
        return []
    detection, out = summary["detection"], shlex.quote(output)
    steps = [_proof(summary, out)]
    if detection:
        rate = f"{detection['fdr'] or FDR:g}"
        action = "dedupe" if detection["memorized_duplicated"] else "drop"
        kept = (
            "keeps one row of each flagged image and drops its copies" if action == "dedupe" else "drops flagged rows"
        )
        steps += [
            NextStep(
                f"volgrowth curate {out} --list {list_name(audit)} --apply curated",
                "reads the list that this page gives, and writes a copy of the data set without what you dropped",
            ),
            NextStep(
                f"volgrowth curate {out} --fdr {rate} --action {action} --list by-rate.csv",
                f"makes a list without this page, by the rate alone: {kept}",
            ),
            NextStep(
                f"volgrowth check {out} --fdr {rate} --max-flagged 0.001",
                "ends with 1 in continuous integration if more than 0.1% of the images are flagged or proven"
                + ("" if has_error_rate(summary) else ", and with 2, since without held-out images it cannot tell"),
            ),
        ]
    return steps


def _proof(summary: Summary, out: str) -> NextStep:
    """Return the command that proves flags, or proves more."""
    truth = summary.get("verification")
    if not truth:
        return NextStep(f"volgrowth verify {out} --samples {SAMPLES}", "draws samples: what they reproduce is proven")
    samples = truth["samples"] or SAMPLES
    if truth["flagged"] and truth["flagged_reproduced"] == truth["flagged"]:
        purpose = "keeps the samples drawn, and measures how often the model makes each proven image"
        return NextStep(f"volgrowth verify {out} --samples {samples} --rates", purpose)
    return NextStep(
        f"volgrowth verify {out} --samples {2 * samples}", "draws as many samples again, which may prove further images"
    )
