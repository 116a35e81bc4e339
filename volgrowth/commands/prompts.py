"""`volgrowth prompts`: score captions alone, without images, and flag those that steer the model unusually far."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import compress
from numbers import Real
from typing import Any

import numpy as np
import pyarrow as pa

from volgrowth.analysis.calibration.error_rates import FDR
from volgrowth.analysis.captions import FINDINGS, MeasuredCaptions, judge_captions, neutral_captions
from volgrowth.analysis.policy import store_of
from volgrowth.audit.output.lock import driving
from volgrowth.audit.output.manifest import MANIFEST, SUCCESS
from volgrowth.audit.output.result import FINDINGS_FILE, REPORT_FILE, SUMMARY_FILE
from volgrowth.config import BATCH_SIZE, AuditConfig
from volgrowth.errors import DataError, ModelError, OutputError, UsageError
from volgrowth.plain import plain, print_plain
from volgrowth.records import ModelInfo
from volgrowth.report.formats import plural
from volgrowth.report.prompts import prompts_title, render_prompts
from volgrowth.storage.csv_files import CsvTable
from volgrowth.storage.store import Store
from volgrowth.version import VERSION

LOADING = ("revision", "subfolder", "base", "lora", "resolution", "dtype")
"""Arguments of `load_model` that a caller may give."""
TABLE_FILE, FLAGGED_FILE = "findings.csv", "flagged.txt"


@dataclass(frozen=True)
class PromptAudit:
    """The findings about captions in their output.

    Attributes:
        store: the files of the output.
        findings: one row per caption, in the order of the file.
        summary: the numbers of the page, with what limits them in `caveats`.
    """

    store: Store
    findings: pa.Table
    summary: dict[str, Any]


@dataclass(frozen=True)
class _Captions:
    """Captions, and of each the line that it stands in: its number, from 1 on, and its text with all that surrounds it.

    What was left aside is counted.
    """

    name: str
    lines: tuple[int, ...]
    texts: tuple[str, ...]
    written: tuple[str, ...]
    blank: int

    @property
    def digest(self) -> str:
        """A digest of the lines, which decide the captions."""
        return hashlib.sha256(json.dumps([self.lines, self.written]).encode()).hexdigest()

    @property
    def sentences(self) -> list[str]:
        """What was read and left aside, for a terminal."""
        aside = plural(self.blank, "blank line") if self.blank else "nothing"
        return [f"opened: {plural(len(self.texts), 'caption')} of {plain(self.name)}", f"left aside: {aside}"]


def audit_prompts(
    model: str,
    captions: str | Sequence[str],
    output: str,
    neutral: str | Sequence[str] | None = None,
    *,
    fdr: float = FDR,
    seed: int = 0,
    quiet: bool = False,
    **loading: Any,
) -> PromptAudit:
    """Score captions alone, without images, and flag those that steer a model of captions unusually far.

    The score is the contrast at pure noise (`volgrowth.audit.scoring.contrast`), calibrated on neutral captions of the
    same length. The network is evaluated in this process, on a GPU if there is one.

    Args:
        model: the name of a model that takes captions.
        captions: a text file of captions in UTF-8, one a line, or its URL; or the captions themselves. A line ends at a
            line feed, with or without a carriage return before it, and at nothing else. Blanks around a caption, and a
            byte order mark, are not part of it.
        output: folder or URL for the findings; the same call finds them there.
        neutral: captions to compare with, likewise: best those of images that the model was not trained on. By default
            plain descriptions that come with volgrowth.
        fdr: rate of false discoveries at which captions are flagged.
        seed: of the noise.
        quiet: print nothing.
        **loading: further arguments of `load_model`: `revision`, `subfolder`, `base`, `lora`, `resolution`, `dtype`.

    Returns:
        The findings.

    Raises:
        DataError: a file is no text, or holds no captions, or a caption is no text of one line.
        ModelError: the model cannot be loaded, or takes no captions.
        OutputError: the output holds something else.
        UsageError: an argument is unknown, of a wrong type or out of range, or too few neutral captions are left to
            compare with.
    """
    _check(model, output, fdr, seed, loading)
    ours = _captions(captions, "captions")
    plain_ones = _captions(neutral_captions() if neutral is None else neutral, "neutral")
    if not quiet:
        print_plain("\n".join(ours.sentences))
    known = _inspected(model, loading)
    asked = [VERSION, known.hash, ours.digest, plain_ones.digest, fdr, seed, loading.get("dtype")]
    origin = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    store = Store(output)
    with driving(store) as lock:
        fenced = lock.fenced()
        if _is_there(fenced, origin):
            if not quiet:
                print_plain("finished before, nothing was measured")
            return PromptAudit(store, store.read_table(FINDINGS_FILE), store.read_json(SUMMARY_FILE))
        measured = _measured(model, loading, ours, plain_ones, seed, quiet)
        findings, numbers = judge_captions(ours.lines, measured[0], measured[1], neutral is None, fdr)
        summary = {
            **{"volgrowth": VERSION, "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")},
            **{"origin": origin, "model": asdict(known), "file": ours.name, "blank_lines": ours.blank, "seed": seed},
            **numbers,
            **measured[2],
        }
        _write(fenced, findings, summary, ours.written)
    return PromptAudit(store, findings, summary)


def unscored_share(audit: PromptAudit) -> float:
    """Return the share of the captions that have no score."""
    return 1 - audit.summary["scored"] / audit.summary["captions"]


def prompt_lines(audit: PromptAudit) -> list[str]:
    """Return what `volgrowth prompts` prints about its findings."""
    summary, report = audit.summary, audit.store.path(REPORT_FILE)
    scored = f"{summary['scored']} of {summary['captions']} captions scored; report: {report}"
    return [scored, prompts_title(summary), *(f"  but: {plain(caveat)}" for caveat in summary["caveats"])]


def _check(model: Any, output: Any, fdr: Any, seed: Any, loading: dict[str, Any]) -> None:
    """Raise a UsageError for arguments of a wrong type, unknown ones, and values out of range."""
    if unknown := loading.keys() - set(LOADING):
        raise UsageError(f"audit_prompts has no argument {min(unknown)}: beside its own it takes {', '.join(LOADING)}")
    if isinstance(fdr, bool) or not isinstance(fdr, Real):
        raise UsageError(f"fdr is {fdr!r}: expected a number above 0 and below 1")
    if not 0 < float(fdr) < 1:
        raise UsageError(f"fdr {fdr:g}: expected above 0 and below 1")
    AuditConfig.build(model=model, data="captions", output=output, seed=seed, **loading)


def _captions(given: str | Sequence[str], called: str) -> _Captions:
    name, written = (given, _file_lines(given)) if isinstance(given, str) else (called, _given_lines(given, called))
    kept = []
    for number, line in enumerate(written, 1):
        _check_line(line, f"line {number} of {name}" if isinstance(given, str) else f"caption {number} of {name}")
        if text := (line.removeprefix("\ufeff") if number == 1 else line).strip():
            kept.append((number, text, line))
    if not kept:
        raise DataError(f"{name} holds no captions: expected at least one line of text")
    numbers, captions, lines = zip(*kept, strict=True)
    return _Captions(name, numbers, captions, lines, len(written) - len(kept))


def _file_lines(file: str) -> list[str]:
    """Return the lines of a text file as grep sees them: each ends at a line feed, and keeps all that is before it."""
    store, name = store_of(os.path.expanduser(file))
    if not store.exists(name):
        raise DataError(f"{file} is not there: expected a text file of captions, one a line")
    try:
        lines = store.read(name).decode().split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no text in UTF-8 (byte {error.start}): expected captions, one a line") from None
    return lines[:-1] if lines[-1] == "" else lines  # what a last line end ends is no line


def _given_lines(given: Iterable[str], called: str) -> list[str]:
    """Return captions that were given themselves, without a line end after them."""
    if isinstance(given, bytes | Mapping) or not isinstance(given, Iterable):
        raise DataError(f"{called} is {given!r}: expected the name of a text file, or a list of strings")
    lines = list(given)
    if wrong := [line for line in lines if not isinstance(line, str)]:
        raise DataError(f"{called} hold {wrong[0]!r}: expected strings")
    return [line.removesuffix("\n") for line in lines]


def _check_line(line: str, where: str) -> None:
    """Refuse what is no line of text: a list of flagged captions has one a line, and grep takes NUL for no text."""
    wrong = "a line feed" if "\n" in line else "a NUL byte" if "\0" in line else None
    if wrong is None and any("\ud800" <= letter <= "\udfff" for letter in line):
        wrong = "half of a surrogate pair"
    if wrong:
        raise DataError(f"{where} has {wrong} in it: expected text in UTF-8, one caption a line")


def _inspected(model: str, loading: dict[str, Any]) -> ModelInfo:
    """Describe the model, and check that it takes captions; a ModelError if not."""
    from volgrowth.models.load import inspect_model  # loads torch

    info = inspect_model(model, **{name: value for name, value in loading.items() if name != "dtype"})
    if info.condition != "caption" or not info.has_null:
        takes = f"takes a {info.condition}" if info.condition else "takes no conditions"
        raise ModelError(
            f"model {model} {takes}: expected one that takes captions, with and without one, such as Stable Diffusion"
        )
    return info


def _is_there(store: Store, origin: str) -> bool:
    """Return whether the output holds the findings that were asked for; an OutputError if it holds something else."""
    other = [name for name in (MANIFEST, SUMMARY_FILE) if store.exists(name)]
    if other == [SUMMARY_FILE] and store.read_json(SUMMARY_FILE).get("origin") == origin:
        return store.exists(SUCCESS)
    if other:
        what = "an audit of images" if MANIFEST in other else "the findings about other captions, or of another model"
        raise OutputError(f"{store.url} holds {what}: give a new folder")
    return False


def _measured(
    model: str, loading: dict[str, Any], ours: _Captions, neutral: _Captions, seed: int, quiet: bool
) -> tuple[MeasuredCaptions, MeasuredCaptions, dict[str, Any]]:
    """Load the model and measure both sets of captions, each distinct one once; and say what that took."""
    from volgrowth.audit.engine.local import device_here  # loads torch
    from volgrowth.audit.engine.progress import AuditProgress
    from volgrowth.audit.scoring.contrast import DRAWS, EVALUATIONS, caption_contrasts, first_level
    from volgrowth.models.load import load_model
    from volgrowth.signals import check_interrupted

    device = device_here(None)
    denoiser = load_model(model, device=device, **loading)
    distinct = list(dict.fromkeys([*ours.texts, *neutral.texts]))
    if problem := next(filter(None, map(denoiser.problem, distinct)), None):
        raise ModelError(problem)
    progress = AuditProgress(len(distinct), 1, workers=1, quiet=quiet, doing="measuring", unit="captions")

    def told(done: int) -> None:
        check_interrupted()
        progress.move(progress.within + done)
        progress.show()

    with progress:
        contrast = caption_contrasts(denoiser, distinct, seed, BATCH_SIZE, told)
        progress.advance(len(distinct), int(np.isnan(contrast).sum()))
    of = dict(zip(distinct, zip(contrast.tolist(), denoiser.overflow(distinct), strict=True), strict=True))

    def measured(captions: _Captions) -> MeasuredCaptions:
        contrasts, cut = zip(*(of[text] for text in captions.texts), strict=True)
        return MeasuredCaptions(captions.texts, np.array(contrasts), cut)

    facts = {
        "draws": DRAWS,
        "noise_level": first_level(denoiser),
        "evaluations": EVALUATIONS * len(distinct),
        "device": device,
    }
    return measured(ours), measured(neutral), facts


def _write(store: Store, findings: pa.Table, summary: dict[str, Any], written: Sequence[str]) -> None:
    """Write the tables, the list and the page, and last of all the marker that they are there.

    The list has the lines of flagged captions as they are `written`, with blanks and carriage returns, so that
    `grep -Fxf` finds them in the file.
    """
    store.write_table(FINDINGS_FILE, findings, {"origin": summary["origin"]})
    with store.open_new(TABLE_FILE) as file, CsvTable(file, FINDINGS) as table:
        table.write(findings)
    flagged = dict.fromkeys(compress(written, findings["flagged"].to_pylist()))
    store.write(FLAGGED_FILE, "".join(f"{line}\n" for line in flagged).encode())
    store.write_json(SUMMARY_FILE, summary)
    store.write(REPORT_FILE, render_prompts(findings, summary).encode())
    store.write(SUCCESS, b"")
