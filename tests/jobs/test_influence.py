"""`jobs/influence.py`: from a finished audit to a table of ranks."""

import runpy
import shutil
import sys
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

import volgrowth as vg
from jobs.influence.__main__ import SCHEMA, TABLE, main, most_suspicious_rows, network_of
from tests.support.checkpoints import save_pipeline, unet
from tests.support.pipelines import build
from volgrowth.analysis.distinct import strongest_rows
from volgrowth.audit.output.lock import LOCK
from volgrowth.audit.output.result import open_audit
from volgrowth.commands.audit import run_audit
from volgrowth.demo.cases import to_tensor, write_image_parquet
from volgrowth.errors import ModelError
from volgrowth.models import load_model
from volgrowth.sources import encode_png
from volgrowth.storage import made_here

ROWS, BROKEN, COPIED, COPIES = 30, 4, 7, (27, 28, 29)
JOB = Path(__file__).parents[2] / "jobs/influence.py"


@pytest.fixture(scope="module")
def data(digits: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits; row 4 is no image, the last three are row 7 again."""
    encoded = [encode_png(image) for image in digits[:ROWS]]
    encoded[BROKEN] = b"no image"
    for row in COPIES:
        encoded[row] = encoded[COPIED]
    table = pa.table(
        {
            "image": [{"bytes": some, "path": None} for some in encoded],
            "id": [f"digit-{row}" for row in range(ROWS)],
            "label": [row % 10 for row in range(ROWS)],
            "caption": ["a " + "abcdefghij"[row % 10] for row in range(ROWS)],
        }
    )
    path = tmp_path_factory.mktemp("data") / "digits.parquet"
    pq.write_table(table, path)
    return path


def audit(model: object, data: Path, output: Path, **changes: Any) -> Path:
    settings: dict[str, Any] = {"id_column": "id", "engine": "local", "max_failed": 0.5, **changes}
    run_audit(vg.AuditConfig.build(model=str(model), data=str(data), output=str(output), **settings), quiet=True)
    return output


@pytest.fixture(scope="module")
def audited(tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return audit(tiny_model, data, tmp_path_factory.mktemp("audit") / "out")


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second checkpoint: a network of the same images with other weights."""
    folder = tmp_path_factory.mktemp("later") / "model"
    save_pipeline(folder, unet(seed=1))
    return folder


def table(out: Path, query: str) -> pa.Table:
    found = pq.read_table(out / TABLE)
    return found.filter(pc.equal(found["query"], query))


def test_every_row_is_ranked_for_every_query(
    audited: Path,
    tiny_model: Path,
    later: Path,
    digits: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture = tmp_path / "sample.png"
    picture.write_bytes(encode_png(digits[20]))
    checkpoints = ["--checkpoints", str(tiny_model), str(later), "--rates", "0.5", "2"]
    asked = [str(audited), *checkpoints, "--rows", "7", "--images", str(picture), "--levels", "5"]
    monkeypatch.setattr(sys, "argv", [str(JOB), *asked])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(JOB), run_name="__main__")
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    assert printed.out.splitlines()[-1] == f"table: {audited / TABLE}"
    written = pq.read_table(audited / TABLE)
    assert written.schema.equals(SCHEMA)
    assert written.num_rows == 2 * ROWS
    assert written.schema.metadata[b"checkpoints"].decode().splitlines() == [str(tiny_model), str(later)]
    ok = [row for row in range(ROWS) if row != BROKEN]
    for query, row in (("row 7", 7), ("sample.png", 20)):
        found = table(audited, query)
        assert found["row"].to_pylist() == list(range(ROWS))
        assert found["image_id"].to_pylist() == [f"digit-{row}" for row in range(ROWS)]
        for name in ("influence", "influence_normalised", "rank"):
            assert [row for row in range(ROWS) if found[name][row].as_py() is None] == [BROKEN]
        assert found["status"][BROKEN].as_py() == "undecodable"
        assert sorted(found["rank"].drop_null().to_pylist()) == list(range(1, ROWS))
        best = found["influence_normalised"].drop_null().to_numpy()
        assert found["rank"][ok[int(best.argmax())]].as_py() == 1
        assert found["influence"][row].as_py() > 0
    same = table(audited, "row 7")["influence_normalised"].to_numpy()[[COPIED, *COPIES]]
    assert np.ptp(same) < 1e-5 * same[0]
    direct = table(audited, "sample.png")["influence"].to_numpy()
    assert direct[20] == pytest.approx(by_hand(tiny_model, later, digits[20]), rel=1e-4)


def by_hand(first: Path, second: Path, pixels: np.ndarray) -> float:
    """Of an image on itself: sum of rates times |gradient of the mean loss|^2, by autograd."""
    generator, total, image = torch.Generator().manual_seed(0), 0.0, to_tensor(pixels[None])
    for folder, rate in ((first, 0.5), (second, 2.0)):
        denoiser = load_model(str(folder))
        network, levels = network_of(denoiser).requires_grad_(True), denoiser.sampling_levels(5)
        noises = torch.randn(len(levels), 1, *image.shape[1:], generator=generator)
        losses = [
            (denoiser.noise(image + level * noise, level) - noise).square().mean()
            for level, noise in zip(levels, noises, strict=True)
        ]
        gradients = torch.autograd.grad(torch.stack(losses).mean(), list(network.parameters()))
        total += rate * sum(part.square().sum().item() for part in gradients)
    return total


def test_the_audits_own_model_and_the_same_table_again(audited: Path, tmp_path: Path) -> None:
    assert main([str(audited), "--rows", "7", "--levels", "3"]) == 0
    first = pq.read_table(audited / TABLE)
    assert main([str(audited), "--rows", "7", "--levels", "3"]) == 0
    assert pq.read_table(audited / TABLE).equals(first)
    assert main([str(audited), "--rows", "7", "--levels", "3", "--width", "100000", "--batch-size", "1"]) == 0
    sketched = pq.read_table(audited / TABLE)
    difference = [np.array(some["influence_normalised"].drop_null()) for some in (first, sketched)]
    assert np.abs(difference[0] - difference[1]).max() < 4 * sqrt(2 / 100_000)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "has no flagged images: name rows (--rows) or files (--images)"),
        (["--rows", "30"], "row 30 is asked for: expected 0 to 29"),
        (["--rows", "4"], "row 4 is undecodable: expected a row with a score"),
        (["--images", "nowhere.png"], "nowhere.png cannot be read (No such file or directory): expected"),
        (["--images", __file__], "not an image of a known format"),
        (["--rows", "7", "--levels", "0"], "levels is 0: expected 1 or more"),
        (["--rows", "7", "--rates", "1", "2"], "2 rates were given: expected one for each of the checkpoints"),
        (["--rows", "7", "--checkpoints", "/nowhere"], "/nowhere"),
    ],
)
def test_what_cannot_start_is_said(
    audited: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(audited), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_what_another_account_made_has_to_be_trusted(
    audited: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (audited / TABLE).unlink(missing_ok=True)
    monkeypatch.setattr(made_here, "_remembered", set())
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert main([str(audited), "--rows", "7", "--levels", "2"]) == 2
    assert "measuring influence would use what it names" in capsys.readouterr().err
    assert not (audited / TABLE).exists()
    assert main([str(audited), "--rows", "7", "--levels", "2", "--trust-output"]) == 0
    assert not (audited / LOCK).exists()


def test_names_from_data_are_printed_and_never_obeyed(
    tiny_model: Path, digits: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, image = tmp_path / "named.parquet", tmp_path / "::error:: \x1b[2J.png"
    write_image_parquet(data, digits[:4], ["::warning::a\nb", "\x1b[2Jc", "d", "e"])
    image.write_bytes(encode_png(digits[0]))
    out = audit(tiny_model, data, tmp_path / "out", id_column="name", trust_model=True)
    assert main([str(out), "--images", str(image), "--levels", "2"]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert not [line for line in said.splitlines() if line.startswith("::") or line == "b"]
    assert "\\x1b[2Jc" in said


def test_a_checkpoint_of_other_images(audited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_pipeline(tmp_path / "model", unet(sample_size=16))
    assert main([str(audited), "--rows", "7", "--checkpoints", str(tmp_path / "model")]) == 2
    assert "is of images (1, 16, 16): expected the audit's (1, 8, 8)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("family", "column"), [("sd1", {"caption_column": "caption"}), ("dit", {"class_column": "label"})]
)
def test_latents_and_conditions(family: str, column: dict[str, str], data: Path, tmp_path: Path) -> None:
    """A row's gradient is taken under its own condition."""
    build(family, tmp_path / "model")
    out = audit(tmp_path / "model", data, tmp_path / "out", **column)
    assert main([str(out), "--rows", "7", "--levels", "2"]) == 0
    found = table(out, "row 7")["influence_normalised"].to_numpy()
    copies = found[[COPIED, *COPIES]]
    assert found[27] == pytest.approx(found[7], rel=1e-4)
    assert copies[1:].min() > 0
    assert found[28] != pytest.approx(found[7], rel=1e-6)  # the same image, described otherwise


def test_the_flagged_are_asked_for_by_default(audited: Path, tmp_path: Path) -> None:
    shutil.copytree(audited, tmp_path / "out")
    opened = open_audit(str(tmp_path / "out"))
    findings = opened.findings
    flags = [row in (7, 12, *COPIES) for row in range(ROWS)]
    columns = {name: findings[name] for name in findings.column_names}
    order = [{12: 2.0, 7: 1.0}.get(row, 0.0) for row in range(ROWS)]
    judged = {"q_value": [0.01 if flag else 1.0 for flag in flags], "outside_range": [False] * ROWS}
    columns |= {name: pa.array(values, findings[name].type) for name, values in judged.items()}
    columns |= {name: pa.array(order) for name in ("excess_growth", "evidence")}
    table = pa.table(columns)
    stands = pa.array(strongest_rows(table))
    opened.store.write_table("findings.parquet", pa.table({**columns, "strongest": stands}), {})
    assert most_suspicious_rows(opened) == [12, 7]  # the others are row 7 again


class Two(vg.Denoiser):
    """Holds two modules."""

    def __init__(self) -> None:
        self.first, self.second = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)


def test_which_module_is_meant_must_be_clear() -> None:
    with pytest.raises(ModelError, match="a Two holds 2 torch modules: expected one, whose parameters were trained"):
        network_of(Two())
