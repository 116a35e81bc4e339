"""A gate for CI, which fails if an audit found more memorized images than are allowed, and its result in three forms.

The gate counts distinct images, as the error rate does: rows that the model sees as the same pixels are one image. An
image is flagged if its q_value is at most the rate, and judged if it has a score and is within the calibration's range.
The gate compares the share flagged / judged with the share that is allowed.
"""

import re
from dataclasses import dataclass
from math import floor
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.as_numpy import as_floats
from volgrowth.analysis.calibration.error_rates import fewest_flags, rows_needed
from volgrowth.analysis.caveats import list_caveats
from volgrowth.analysis.distinct import first_rows
from volgrowth.analysis.findings import check_columns
from volgrowth.audit.output.result import Audit
from volgrowth.errors import OutputError, UsageError

LISTED = 20
"""The most flagged images that are named."""

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")


@dataclass(frozen=True)
class Gate:
    """The result of a gate.

    Attributes:
        name: URL of the audit.
        data: name of the data set.
        model: name of the model.
        fdr: false-discovery rate at which images are flagged.
        max_flagged: largest share of the judged images that may be flagged.
        flagged: number of distinct images that are flagged.
        judged: number of distinct images that are judged.
        rows: number of rows of the data set.
        flagged_rows: number of rows of flagged images.
        unjudged_rows: number of rows that are not judged.
        images: the `LISTED` most certain flagged images: row, image_id, excess_growth, q_value and copies of each.
        notes: warnings, in sentences.
    """

    name: str
    data: str
    model: str
    fdr: float
    max_flagged: float
    flagged: int
    judged: int
    rows: int
    flagged_rows: int
    unjudged_rows: int
    images: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]

    @property
    def share(self) -> float:
        """Share of the judged images that is flagged."""
        return self.flagged / self.judged

    @property
    def passed(self) -> bool:
        """True if no larger share is flagged than is allowed."""
        return self.share <= self.max_flagged

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        return (
            f"{self.flagged:,} of {self.judged:,} distinct images ({self.share:.3%}) are flagged as memorized at a "
            f"false-discovery rate of {self.fdr:.3g}: {'within' if self.passed else 'more than'} the "
            f"{self.max_flagged:.3%} allowed"
        )


def check_limit(audit: Audit, fdr: float, max_flagged: float) -> Gate:
    """Compare the share of flagged images of a finished audit with the share that is allowed.

    Args:
        audit: finished and calibrated.
        fdr: false-discovery rate at which images are flagged, in (0, 1).
        max_flagged: largest allowed share of flagged images among the judged ones, in [0, 1].

    Raises:
        UsageError: `fdr` or `max_flagged` is out of range.
        OutputError: no image could be judged, so that passing would mean nothing.
    """
    if not 0 < fdr < 1:
        raise UsageError(f"--fdr {fdr:g}: expected above 0 and below 1")
    if not 0 <= max_flagged <= 1:
        raise UsageError(f"--max-flagged {max_flagged:g}: expected a share, from 0 to 1")
    findings = audit.findings
    q_value = as_floats(findings["q_value"])
    judged = np.isfinite(q_value) & ~pc.fill_null(findings["outside_range"], True).to_numpy().astype(bool)
    if not judged.any():
        raise OutputError(
            f"no image of {audit.store.url} could be judged, so there is nothing to check: audit it with --holdout"
        )
    check_columns(findings, audit.store.url, "identical")
    first, flagged = first_rows(findings), judged & (q_value <= fdr)
    distinct = int((judged & first).sum())
    return Gate(
        name=audit.store.url,
        data=audit.frozen.data.name,
        model=audit.frozen.model.name,
        fdr=fdr,
        max_flagged=max_flagged,
        flagged=int((flagged & first).sum()),
        judged=distinct,
        rows=len(findings),
        flagged_rows=int(flagged.sum()),
        unjudged_rows=int((~judged).sum()),
        images=_most_certain(findings.filter(pa.array(flagged & first))),
        notes=tuple(_notes(audit, distinct, fdr, max_flagged)),
    )


def _most_certain(found: pa.Table) -> tuple[dict[str, Any], ...]:
    found = found.sort_by([("q_value", "ascending"), ("excess_growth", "descending")]).slice(0, LISTED)
    return tuple(found.select(["row", "image_id", "excess_growth", "q_value", "copies"]).to_pylist())


def _notes(audit: Audit, judged: int, fdr: float, max_flagged: float) -> list[str]:
    detection = audit.summary["detection"]
    if detection["null"] == "cross-fitted":
        return list_caveats(audit.summary)
    held, allowed = detection["calibration_rows"], floor(max_flagged * judged)
    fewest = fewest_flags(judged, held, fdr)
    if fewest <= allowed + 1:
        return []
    return [
        f"With {held} held-out images fewer than {fewest} memorized ones cannot be flagged at this rate: passing does "
        f"not show that there are at most {allowed}; {rows_needed(judged, allowed + 1, fdr)} held-out images would."
    ]


def gate_text(gate: Gate) -> str:
    """Write the result for a terminal."""
    images = [
        f"  row {image['row']}: {image['image_id']}, excess growth {image['excess_growth']:.3g}, "
        f"q {image['q_value']:.2g}, {image['copies']} in its cluster"
        for image in gate.images
    ]
    more = [f"  and {gate.flagged - len(gate.images):,} more"] if gate.flagged > len(gate.images) else []
    unjudged = (
        f"{gate.flagged_rows:,} of {gate.rows:,} rows are of flagged images; {gate.unjudged_rows:,} were not judged"
    )
    return "\n".join([gate.sentence, unjudged, *images, *more])


def gate_markdown(gate: Gate) -> str:
    """Write the result as GitHub-flavoured Markdown, such as for the summary of a job."""
    facts = {
        "audit": _escaped(gate.name),
        "model": _escaped(gate.model),
        "data": _escaped(gate.data),
        "rows of flagged images": f"{gate.flagged_rows:,} of {gate.rows:,}",
        "rows not judged": f"{gate.unjudged_rows:,}",
    }
    lines = [
        f"### {'✅' if gate.passed else '❌'} volgrowth check: {'passed' if gate.passed else 'failed'}",
        f"{gate.sentence}.",
        "\n".join(["| | |\n|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]),
    ]
    if gate.images:
        of = f"The {len(gate.images)} most certain of {gate.flagged:,}" if gate.flagged > LISTED else "Flagged images"
        table = ["| row | image | excess growth | q | in its cluster |", "|--:|---|--:|--:|--:|"]
        table += [
            f"| {each['row']} | {_escaped(each['image_id'])} | {each['excess_growth']:.3g} | {each['q_value']:.2g} "
            f"| {each['copies']} |"
            for each in gate.images
        ]
        lines += [f"{of}:", "\n".join(table)]
    lines += [f"> {note}" for note in gate.notes]
    return "\n\n".join(lines)


def gate_junit(gate: Gate) -> bytes:
    """Write the result as a JUnit file of one test, which CI systems show, in UTF-8."""
    counts = {"tests": "1", "failures": str(int(not gate.passed)), "errors": "0", "skipped": "0"}
    suites = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": "volgrowth check", **counts})
    case = ElementTree.SubElement(suite, "testcase", {"classname": "volgrowth.check", "name": _xml(gate.data)})
    said = _xml("\n".join([gate_text(gate), *gate.notes]))
    if gate.passed:
        ElementTree.SubElement(case, "system-out").text = said
    else:
        ElementTree.SubElement(case, "failure", {"message": _xml(gate.sentence), "type": "memorized"}).text = said
    return ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)


def _xml(text: str) -> str:
    """Escape the characters that XML cannot hold."""
    return _NOT_XML.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _escaped(text: str) -> str:
    """Escape punctuation, so that Markdown and HTML take every character as it is."""
    return _PUNCTUATION.sub(r"\\\1", " ".join(text.split()))
