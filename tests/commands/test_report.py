"""`volgrowth report`: the page with pictures of the data set and of samples, figures, and their numbers."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import volgrowth as vg
from tests.support.page_parser import Page, parse
from volgrowth.cli import run_command
from volgrowth.commands.report import write_report
from volgrowth.commands.verify import verify_audit
from volgrowth.report.gallery.pictures import data_url, thumbnail

ROWS, SAMPLES = 150, 8


@pytest.fixture(scope="module")
def audited(tiny_model: Path, digit_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    data = shutil.copy(digit_file, folder / "digits.parquet")
    config = vg.AuditConfig.build(model=str(tiny_model), data=str(data), output=str(folder / "out"), engine="local")
    vg.run_audit(config, quiet=True)
    verify_audit(str(folder / "out"), SAMPLES, engine="local", quiet=True)
    return folder


@pytest.fixture
def out(audited: Path, tmp_path: Path) -> Path:
    """A copy to write to."""
    return Path(shutil.copytree(audited / "out", tmp_path / "out"))


def page(out: Path) -> Page:
    return parse((out / "report.html").read_text())


def test_the_page_shows_the_images_as_the_model_saw_them(out: Path, digits: np.ndarray) -> None:
    shown = {image["alt"]: image["src"] for image in page(out).all("img")}
    cards = {alt: src for alt, src in shown.items() if alt.startswith("Image of row ")}
    assert len(cards) == 60
    for alt, src in cards.items():
        assert src == data_url(thumbnail(digits[int(alt.removeprefix("Image of row "))]))


def test_samples_stand_beside_the_images_they_are_nearest_to(out: Path) -> None:
    audit = vg.open_audit(str(out))
    samples = audit.store.read_table("verification/samples.parquet").sort_by("distance").to_pylist()
    nearest = {record["nearest_row"]: record["number"] for record in reversed(samples)}
    shown = [image["alt"] for image in page(out).all("img") if image["alt"].startswith("Nearest sample of row ")]
    rows = {int(alt.rsplit(" ", 1)[1]) for alt in shown}
    gallery = {int(card["data-row"]) for card in page(out).all("article")}
    assert rows == gallery & set(nearest)
    assert rows
    for row in rows:
        assert f"no. {nearest[row]}, " in page(out).visible


def test_figures_and_their_numbers_lie_beside_the_page(out: Path) -> None:
    kinds = {"growth", "excess-growth", "complexity"}
    names = {path.name for path in (out / "figures").iterdir()}
    assert names >= {f"{kind}.{ending}" for kind in kinds for ending in ("png", "svg")}
    numbers = json.loads((out / "summary.json").read_text())["figures"]
    assert sum(numbers["growth"]["ordinary"]) + sum(numbers["growth"]["notable"]) == ROWS
    assert numbers["gallery"] == {"images": 60, "with_pictures": 60}


def test_redact_leaves_out_every_picture(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is a page of its own: the one with pictures, and its figures, stay as they are."""
    before = {path: path.read_bytes() for path in [out / "report.html", *(out / "figures").iterdir()]}
    assert run_command(["report", str(out), "--redact"]) == 0
    assert capsys.readouterr().out.strip() == str(out / "report-redacted.html")
    redacted = parse((out / "report-redacted.html").read_text())
    assert not redacted.all("img")
    assert len(redacted.all("article")) == 60
    assert "made without pictures" in redacted.visible
    assert str(out) not in redacted.visible
    assert {path: path.read_bytes() for path in before} == before
    assert run_command(["check-output", str(out)]) == 0
    capsys.readouterr()
    written = (out / "report-redacted.html").stat().st_mtime_ns
    assert run_command(["report", str(out), "--redact"]) == 0
    assert (out / "report-redacted.html").stat().st_mtime_ns == written, "nothing was drawn again"


def test_the_page_names_its_output_in_commands_and_counts_sources(out: Path) -> None:
    assert run_command(["report", str(out)]) == 0
    said = page(out).visible
    assert f"volgrowth verify {out} --samples {2 * SAMPLES}" in said
    assert re.search(r"digits\.parquet 150 0 0 0%", said)


def test_the_same_tables_give_the_same_files(out: Path) -> None:
    write_report(vg.open_audit(str(out)))  # its commands name the output where it lies now
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    write_report(vg.open_audit(str(out)))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_without_the_data_set_the_page_has_no_pictures_and_says_so(
    out: Path, audited: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = audited / "digits.parquet"
    data.rename(audited / "away")
    try:
        assert run_command(["report", str(out)]) == 0
    finally:
        (audited / "away").rename(data)
    assert "the report shows no pictures" in capsys.readouterr().err
    assert not page(out).all("img")
    assert "none could be read" in page(out).visible
    assert len(page(out).all("article")) == 60


def test_a_sample_whose_picture_is_gone_costs_no_page(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / "verification/sample-00000.parquet").unlink()
    assert run_command(["report", str(out)]) == 0
    assert "the report shows no pictures" in capsys.readouterr().err
