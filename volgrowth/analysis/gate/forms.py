"""The result of a gate as text for a terminal, as Markdown and as a JUnit file."""

import re
from xml.etree import ElementTree

from volgrowth.analysis.gate.limit import LISTED, Gate
from volgrowth.plain import plain

ANNOTATIONS = 10
"""As many as GitHub shows of one step."""
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")


def gate_text(gate: Gate) -> str:
    """Write the result for a terminal: the verdict first, then what limits it, then what was found."""
    images = [
        f"  row {image['row']}: {plain(image['image_id'])}, evidence {_figure(image['evidence'], '.3g')}, "
        f"q {_figure(image['q_value'], '.2g')}, {image['copies']} in its cluster{_hits(image['verified_hits'])}"
        for image in gate.images
    ]
    more = [f"  and {gate.found - len(gate.images):,} more"] if gate.found > len(gate.images) else []
    unjudged = f"{gate.found_rows:,} of {gate.rows:,} rows are of these images; {gate.unjudged_rows:,} were not judged"
    limits = [f"  but: {said}" for said in (*gate.doubts, *gate.caveats)]
    return "\n".join([gate.sentence, *limits, unjudged, *images, *more])


def gate_markdown(gate: Gate) -> str:
    """Write the result as GitHub-flavoured Markdown, such as for the summary of a job."""
    facts = {
        "audit": _escaped(gate.name),
        "model": _escaped(gate.model),
        "data": _escaped(gate.data),
        "rows of found images": f"{gate.found_rows:,} of {gate.rows:,}",
        "rows not judged": f"{gate.unjudged_rows:,}",
    }
    sign, outcome = ("✅", "passed") if gate.passed else ("❌", "failed") if gate.decided else ("⚠️", "cannot tell")
    lines = [
        f"### {sign} volgrowth check: {outcome}",
        f"**{_escaped(gate.sentence)}.**",
        *(f"> ⚠️ {_escaped(said)}" for said in (*gate.doubts, *gate.caveats)),
        "\n".join(["| | |\n|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]),
    ]
    if gate.images:
        of = f"The {len(gate.images)} most certain of {gate.found:,}" if gate.found > LISTED else "Found images"
        table = ["| row | image | evidence | q | samples that hit | in its cluster |", "|--:|---|--:|--:|--:|--:|"]
        table += [
            f"| {each['row']} | {_escaped(each['image_id'])} | {_figure(each['evidence'], '.3g')} "
            f"| {_figure(each['q_value'], '.2g')} | {_figure(each['verified_hits'], 'd')} | {each['copies']} |"
            for each in gate.images
        ]
        lines += [f"{of}:", "\n".join(table)]
    return "\n\n".join(lines)


def gate_annotations(gate: Gate) -> list[str]:
    """Write the result as workflow commands of GitHub Actions, which it shows as annotations: it takes ten of a step.

    The verdict comes first, then what limits it, then the most certain of the found images.
    """
    verdict = "notice" if gate.passed else "error" if gate.decided else "warning"
    images = [
        f"row {image['row']}: {image['image_id']}, evidence {_figure(image['evidence'], '.3g')}, "
        f"q {_figure(image['q_value'], '.2g')}, {image['copies']} in its cluster{_hits(image['verified_hits'])}"
        for image in gate.images
    ]
    lines = [
        (verdict, "volgrowth check", gate.sentence),
        *(("warning", "volgrowth check", said) for said in (*gate.doubts, *gate.caveats)),
        *(("warning", "memorized image", said) for said in images),
    ]
    return [f"::{kind} title={title}::{plain(said).replace('%', '%25')}" for kind, title, said in lines[:ANNOTATIONS]]


def gate_junit(gate: Gate) -> bytes:
    """Write the result as a JUnit file of one test, which CI systems show, in UTF-8.

    More than allowed is a failure; a gate that cannot tell is an error.
    """
    failed, undecided = gate.decided and not gate.passed, not gate.decided
    counts = {"tests": "1", "failures": str(int(failed)), "errors": str(int(undecided)), "skipped": "0"}
    suites = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": "volgrowth check", **counts})
    case = ElementTree.SubElement(suite, "testcase", {"classname": "volgrowth.check", "name": _xml(plain(gate.data))})
    said = _xml(gate_text(gate))
    if gate.passed:
        ElementTree.SubElement(case, "system-out").text = said
    else:
        name, kind = ("failure", "memorized") if failed else ("error", "undecided")
        ElementTree.SubElement(case, name, {"message": _xml(gate.sentence), "type": kind}).text = said
    return ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)


def _figure(value: float | None, form: str) -> str:
    """Write a number; a dash for one that an image does not have."""
    return "–" if value is None else format(value, form)


def _hits(hits: int | None) -> str:
    return f", hit by {hits:,} samples" if hits else ""


def _xml(text: str) -> str:
    """Escape the characters that XML cannot hold."""
    return _NOT_XML.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _escaped(text: str) -> str:
    """Escape punctuation, so that Markdown and HTML take every character as it is."""
    return _PUNCTUATION.sub(r"\\\1", plain(" ".join(text.split())))
