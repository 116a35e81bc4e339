"""`volgrowth report`: write the page for people from the tables of a finished audit."""

import json
import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from itertools import groupby
from math import prod

import pyarrow as pa

from volgrowth.analysis.policy import list_digest
from volgrowth.audit.output.listings import read_rows
from volgrowth.audit.output.lock import driving
from volgrowth.audit.output.result import (
    FIGURES_FOLDER,
    REDACTED_FILE,
    REPORT_FILE,
    SUMMARY_FILE,
    Audit,
    open_audit,
    open_stored,
)
from volgrowth.audit.output.unchanged import check_row, expected_hashes
from volgrowth.audit.sampling.sample_files import AT_ONCE as DRAWN_AT_ONCE
from volgrowth.audit.sampling.sample_files import FOLDER, SAMPLE
from volgrowth.errors import DataError, OutputError, UsageError
from volgrowth.plain import plain, print_plain
from volgrowth.report import ReportOrigin, ReportPage, Shown, choose_exhibits, render_report, thumbnail
from volgrowth.report.charts.numbers import FIGURES, duplicate_groups
from volgrowth.report.gallery.exhibits import of_rows
from volgrowth.report.page import CAP, FRAME, code_digest
from volgrowth.report.reading import ReportRows, read_report_rows
from volgrowth.sources import BadImage, decode_image
from volgrowth.storage.store import Store
from volgrowth.version import VERSION

SAMPLES_FILE = f"{FOLDER}/samples.parquet"

# Cards whose pictures are read before the next check that there is room for more, and bytes of that room: base64 adds a
# third.
CARDS_AT_ONCE = 250
ROOM = (CAP - FRAME) * 3 // 4


def report_audit(output: str, *, redact: bool = False, trust_output: bool = False) -> Audit:
    """Write report.html and figures/ again from the tables of a finished audit.

    If the data set is no longer there, or another account made the audit, the page has no pictures, and a line on
    stderr says so.

    If there is a report-redacted.html, it is written again too.

    Args:
        output: folder or URL of the audit.
        redact: write report-redacted.html alone: the page without pictures, to be handed on.
        trust_output: show pictures of the data set that the output names although another account, or another machine,
            made the audit.

    Returns:
        The audit.

    Raises:
        OutputError: there is no finished audit.
        UsageError: an older version wrote the tables, and they lack what the page shows.
    """
    open_audit(output, trust_output=trust_output)  # refused before the output is locked
    with driving(Store(output)) as lock:
        audit = open_stored(lock.fenced(), trust_output)
        write_report(audit, redact)
    return audit


def write_report(audit: Audit, redact: bool = False) -> None:
    """Write the page and its figures, and put the numbers of the figures into summary.json; see `report_audit`.

    Pages that are there, whole, and made from the same are left as they are. The page without pictures is a file of its
    own. Where there is one, it is written with the others, so that it says what they say; alone it leaves them.
    """
    rows = read_report_rows(audit)
    if not redact:
        _write_pages(audit, rows, redact)
    if redact or audit.store.exists(REDACTED_FILE):
        _write_pages(audit, rows, redact=True)


def _write_pages(audit: Audit, rows: ReportRows, redact: bool) -> None:
    """Write the page without pictures, or the other one and its figures, unless it would come out the same."""
    shown = _shown(audit, rows, redact)
    origin = _origin(audit, shown)
    digests, page = audit.summary.get("pages") or {}, REDACTED_FILE if redact else REPORT_FILE
    same = audit.summary.get(f"{'redacted' if redact else 'pages'}_origin") == origin
    if same and page in digests and _are_whole(audit.store, digests):
        return
    report = _rendered(audit, rows, shown)
    pages = {page: report.html.encode()}
    if not redact:
        pages |= {f"{FIGURES_FOLDER}/{name}": data for name, data in report.figures.items()}
    made = {name: sha256(data).hexdigest() for name, data in pages.items()}
    # first, so that pages which an interrupted command did not write differ from their digests, or have none
    if redact:
        audit.summary.update(pages={**digests, **made}, redacted_origin=origin)
    else:
        audit.summary.update(pages=made, pages_origin=origin, redacted_origin=None, figures=report.numbers)
    audit.store.write_json(SUMMARY_FILE, audit.summary)
    for name, data in pages.items():
        audit.store.write(name, data)
    if not redact:
        _delete_earlier(audit.store, report.figures.keys())


def _delete_earlier(store: Store, drawn: Collection[str]) -> None:
    """Delete figures of an earlier state of the audit, which has no numbers for them now."""
    known = {f"{figure}.{kind}" for figure in FIGURES for kind in ("png", "svg")}
    for name in known.intersection(store.names(FIGURES_FOLDER)).difference(drawn):
        store.delete(f"{FIGURES_FOLDER}/{name}")


def _rendered(audit: Audit, rows: ReportRows, shown: Shown) -> ReportPage:
    """Return the page; raises as `report_audit`."""
    about = ReportOrigin(_place(audit.store), list_digest(audit), rows.by_source, rows.by_class)
    try:
        return render_report(
            audit.summary, rows.scores, rows.findings, shown, audit.holdout_findings, rows.whole, about
        )
    except KeyError as error:
        url, earlier = audit.store.url, audit.summary.get("volgrowth", "of unknown version")
        raise UsageError(
            f"{url} was summarised by volgrowth {earlier}, which did not write what the report now shows "
            f"({error.args[0]}): to keep the scores, delete {url}/_SUCCESS and run the same `volgrowth audit` again"
        ) from error


def _origin(audit: Audit, shown: Shown) -> str:
    """Return a digest of all that the pages are made from: the summary stands for the tables it was written with."""
    made = ("figures", "pages", "pages_origin", "redacted_origin")
    numbers = {name: value for name, value in audit.summary.items() if name not in made}
    pictures = sha256(repr([sorted(shown.rows.items()), sorted(shown.samples.items())]).encode()).hexdigest()
    drawn_by = [VERSION, version("matplotlib"), code_digest(), _place(audit.store)]
    parts = [numbers, list(map(asdict, shown.exhibits)), shown.redacted, pictures, drawn_by]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _place(store: Store) -> str:
    """Return where an output lies, in words that do not depend on where the command was given."""
    return store.url if "://" in store.url else os.path.abspath(store.url)


def _are_whole(store: Store, pages: dict[str, str]) -> bool:
    """Say whether all pages are there with their digests."""
    return all(store.exists(name) and sha256(store.read(name)).hexdigest() == pages[name] for name in pages)


def _shown(audit: Audit, from_rows: ReportRows, redact: bool) -> Shown:
    """Return the images of the gallery, with as many pictures as the page has room for."""
    samples = audit.store.read_table(SAMPLES_FILE) if audit.summary.get("verification") else None
    scores, findings, whole = from_rows.scores, from_rows.findings, from_rows.whole
    chosen = choose_exhibits(scores, findings, from_rows.gallery, samples)
    if redact:
        return Shown(chosen, redacted=True)
    drawn: dict[int, bytes] = {}
    try:
        groups = (whole.duplicates if whole else duplicate_groups(findings))["largest"]
        rows = _thumbnails(audit, scores, {group["row"] for group in groups})
        for first in range(0, len(chosen), CARDS_AT_ONCE):
            some = chosen[first : first + CARDS_AT_ONCE]
            rows |= _thumbnails(audit, scores, {row for each in some for row in each.rows} - rows.keys())
            drawn |= _sample_thumbnails(audit, {each.sample.number for each in some if each.sample} - drawn.keys())
            if sum(map(len, [*rows.values(), *drawn.values()])) > ROOM:
                break
    except (DataError, OutputError) as error:
        print_plain(f"the report shows no pictures: {plain(str(error))}", error=True)
        return Shown(chosen)
    return Shown(chosen, rows, drawn)


def _thumbnails(audit: Audit, scores: pa.Table, rows: Iterable[int]) -> dict[int, bytes]:
    """Return a thumbnail of each row as the model saw it; rows that cannot be read any more are left out.

    `scores` hold these rows.

    Raises:
        DataError: a row holds another image than was scored.
    """
    shape, most, pictures = audit.frozen.image_shape, audit.manifest["config"]["max_pixels"], {}
    wanted = sorted(rows)
    scored = expected_hashes(of_rows(scores, wanted), audit.frozen.config["id_column"])
    for row in read_rows(audit.open_data(), wanted):
        if row.data is not None:
            check_row(row, scored)
        with suppress(BadImage):
            pictures[row.row] = thumbnail(decode_image(row.data, shape, most))
    return pictures


def _sample_thumbnails(audit: Audit, numbers: Iterable[int]) -> dict[int, bytes]:
    """Return thumbnails of the samples with these numbers that the verification drew."""
    shape = audit.frozen.image_shape
    pictures: dict[int, bytes] = {}
    for file, some in groupby(sorted(numbers), lambda number: number // DRAWN_AT_ONCE):
        table = audit.store.read_table(f"{FOLDER}/{SAMPLE}-{file:05d}.parquet").select(["number", "image"])
        drawn = {record["number"]: record["image"]["bytes"] for record in table.to_pylist()}
        pictures |= {number: thumbnail(decode_image(drawn[number], shape, prod(shape))) for number in some}
    return pictures
