"""Captions alone: the contrast has its closed form, what steers is flagged, and nothing is passed over in silence."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv as csv
import pytest
import torch
from torch import Tensor

import volgrowth as vg
from tests.support.pipelines import build
from volgrowth.analysis.captions import MeasuredCaptions, judge_captions, neutral_captions
from volgrowth.audit.scoring.contrast import DRAWS, caption_contrasts, first_level
from volgrowth.audit.workers.seeding import seeded
from volgrowth.cli import run_command
from volgrowth.errors import UsageError, VolgrowthError

# the source of a model of captions in closed form: each adds a constant to the expected noise, the famous ones more
STEERED = """
import zlib
import torch
import volgrowth as vg

class Steered(vg.Denoiser):
    image_shape, condition, push = (1, 4, 4), "caption", 0.0

    def noise(self, y, noise_level):
        return y / (1 + noise_level ** 2).sqrt() + torch.as_tensor(self.push, dtype=y.dtype).reshape(-1, 1, 1, 1)

    def __call__(self, y, noise_level):
        return y - noise_level * self.noise(y, noise_level)

    def given(self, values):
        under = Steered()
        under.push = [steer(value) for value in values]
        return under

    def problem(self, value):
        return None

    def sampling_levels(self, steps):
        return torch.linspace(0.1, 100.0, steps + 1, dtype=torch.float64)

def steer(caption):
    if "broken" in caption:
        return float("nan")
    chance = zlib.crc32(caption.encode()) / 2 ** 32
    return (0.05 + 0.01 * chance) * (5 if "famous" in caption else 1)

def load(device, dtype):
    return Steered()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "steered_by_captions.py").write_text(STEERED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


MODEL = "factory:steered_by_captions:load"


def ordinary(count: int) -> list[str]:
    return [f"an ordinary caption, number {place}" for place in range(count)]


def test_what_steers_is_flagged_and_written_where_users_look(folder, capsys):
    lines = [*ordinary(30), "", "a famous painting", "=1+1 is famous", "a famous painting", "  "]
    (folder / "captions.txt").write_text("\n".join(lines) + "\n")
    command = ["prompts", MODEL, "captions.txt", "--output", "out"]
    assert run_command(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "opened: 33 captions of captions.txt left aside: 2 blank lines" in said
    assert "33 of 33 captions scored; report: " in said
    assert "2 captions of 32 are flagged as memorized" in said
    assert "plain ones that come with volgrowth" in said
    rows = csv.read_csv("out/findings.csv").to_pylist()
    assert [row["line"] for row in rows] == [*range(1, 31), 32, 33, 34]
    assert [row["line"] for row in rows if row["flagged"]] == [32, 33, 34]
    assert rows[31]["caption"] == "'=1+1 is famous"
    assert all(0 < row["p_value"] <= row["q_value"] <= 1 for row in rows)
    assert Path("out/flagged.txt").read_text() == "a famous painting\n=1+1 is famous\n"
    summary = json.loads(Path("out/summary.json").read_text())
    assert (summary["captions"], summary["tests"], summary["flagged"]) == (33, 32, 2)
    page = Path("out/report.html").read_text()
    assert "2 captions of 32 are flagged as memorized" in page
    assert all(caveat[:60] in page for caveat in summary["caveats"])
    # the same command finds what is there, and other captions are refused
    written = Path("out/findings.parquet").stat().st_mtime_ns
    assert run_command(command) == 0
    assert "finished before, nothing was measured" in capsys.readouterr().out
    assert Path("out/findings.parquet").stat().st_mtime_ns == written
    (folder / "captions.txt").write_text("\n".join(lines[1:]))
    assert run_command(command) == 2
    assert "holds the findings about other captions" in capsys.readouterr().err
    assert run_command(["report", "out"]) == 2
    assert "holds no audit" in capsys.readouterr().err


def test_the_list_of_flagged_captions_finds_their_lines_in_the_file_and_no_others(folder, capsys):
    """With a byte order mark, carriage returns, blanks, and characters at which Python alone ends a line."""
    famous = [
        "\ufeffa famous painting\r",
        "  a famous painting ",
        "a famous painting",
        "a famous\u2028painting\r",
        "a famous\x0bphoto\x85of\x1cme",
        "\ta famous\rtower\x0c\r",
    ]
    lines = [famous[0], *ordinary(30), " \r", *famous[1:], famous[1]]
    (folder / "captions.txt").write_bytes("\n".join(lines).encode())
    assert run_command(["prompts", MODEL, "captions.txt", "--output", "out"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "opened: 37 captions of captions.txt left aside: 1 blank line" in said
    found = vg.audit_prompts(MODEL, "captions.txt", "out", quiet=True).findings.to_pylist()
    assert [row["line"] for row in found if row["flagged"]] == [1, *range(33, 39)]
    assert [row["caption"] for row in found if row["flagged"]] == [
        *["a famous painting"] * 3,
        *("a famous\u2028painting", "a famous\x0bphoto\x85of\x1cme", "a famous\rtower", "a famous painting"),
    ]
    grep = ["grep", "-Fx", "-v", "-f", "out/flagged.txt", "captions.txt"]
    left = subprocess.run(grep, capture_output=True, check=True).stdout.decode()
    assert left.split("\n") == [*ordinary(30), " \r", ""]
    assert Path("out/flagged.txt").read_bytes() == "".join(f"{line}\n" for line in famous).encode()
    # the same captions in lines that are written otherwise need a list of their own
    (folder / "captions.txt").write_bytes("\n".join(lines).replace("\r", "").encode())
    assert run_command(["prompts", MODEL, "captions.txt", "--output", "out"]) == 2


def test_captions_that_were_read_with_their_line_ends_are_taken(folder):
    given = ["a famous painting\n", "another\r\n", *ordinary(20)]
    assert vg.audit_prompts(MODEL, given, "out", quiet=True).findings["caption"].to_pylist()[:2] == [
        "a famous painting",
        "another",
    ]
    assert Path("out/flagged.txt").read_bytes() == b"a famous painting\n"


def test_captions_that_give_no_number_are_said_and_change_the_exit_code(folder, capsys):
    (folder / "captions.txt").write_text("\n".join([*ordinary(20), "a broken caption"]))
    (folder / "broken.txt").write_text("a broken caption")
    assert run_command(["prompts", MODEL, "captions.txt", "--output", "out"]) == 3
    printed = capsys.readouterr()
    assert "20 of 21 captions scored" in printed.out
    assert "of the neutral captions have no score, and calibrated nothing" in " ".join(printed.out.split())
    assert "1 of the captions have no score" in " ".join(printed.out.split())
    assert "4.8% of the captions have no score, more than 1%" in printed.err
    assert run_command(["prompts", MODEL, "broken.txt", "--output", "broken"]) == 3
    assert "No caption could be scored" in capsys.readouterr().out
    last = csv.read_csv("out/findings.csv").to_pylist()[-1]
    assert (last["status"], last["score"], last["flagged"]) == ("non_finite", None, None)


WRONG: dict[str, tuple[bytes, list[str], str]] = {
    "nothing": (b"\n \n", [], "holds no captions"),
    "no text either": (
        b"a caption\na\0 \0c\0",
        [],
        "line 2 of captions.txt has a NUL byte in it: expected text in UTF-8",
    ),
    "no text": (b"\xff\xfe caption", [], "is no text in UTF-8 (byte 0)"),
    "no file": (b"a caption", ["--neutral", "missing.txt"], "missing.txt is not there"),
    "rate": (b"a caption", ["--fdr", "1"], "fdr 1: expected above 0 and below 1"),
    "too few neutral": (b"a caption", ["--neutral", "captions.txt"], "0 of 1 neutral captions could be measured"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_is_refused_in_a_sentence(name, folder, capsys):
    content, options, sentence = WRONG[name]
    (folder / "captions.txt").write_bytes(content)
    assert run_command(["prompts", MODEL, "captions.txt", "--output", "out", *options]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
    assert not Path("out/findings.parquet").exists()


def test_a_model_that_takes_no_captions_is_refused(tiny_model, tmp_path):
    with pytest.raises(VolgrowthError, match="takes no conditions: expected one that takes captions"):
        vg.audit_prompts(str(tiny_model), ["a caption"], str(tmp_path / "out"), quiet=True)


def test_an_audit_of_images_is_not_written_over(folder, capsys):
    (folder / "out").mkdir()
    (folder / "out/manifest.json").write_text("{}")
    with pytest.raises(VolgrowthError, match="holds an audit of images: give a new folder"):
        vg.audit_prompts(MODEL, ["a caption"], "out", ordinary(60), quiet=True)


def test_neutral_captions_of_ones_own_take_the_place_of_those_of_the_package(folder):
    found = vg.audit_prompts(MODEL, ["a famous one", *ordinary(3)], "out", ordinary(400), quiet=True)
    assert found.summary["neutral"] == 397
    assert found.summary["neutral_shared"] == 3
    assert not any("come with volgrowth" in caveat for caveat in found.summary["caveats"])
    assert any("3 of the captions stand among the neutral ones" in caveat for caveat in found.summary["caveats"])
    assert found.findings["flagged"].to_pylist() == [True, False, False, False]


@pytest.mark.parametrize("family", ["sd1", "sd3"])
def test_the_contrast_is_that_of_the_definition(family, tmp_path):
    build(family, tmp_path / "model")
    denoiser = vg.load_model(str(tmp_path / "model"))
    captions = ["a cat", "two dogs in a park", "a cat", "the sea"]
    found = caption_contrasts(denoiser, captions, 0, 3)
    level = first_level(denoiser)
    expected = []
    for caption in captions:
        under, total = denoiser.given([caption]), 0.0
        for draw in range(DRAWS):
            z = torch.randn(denoiser.image_shape or (), generator=seeded(0, "caption", draw))
            y, at = ((1 + level**2) ** 0.5 * z)[None], torch.tensor(level, dtype=torch.float64)
            with torch.no_grad():
                total += (under.noise(y, at) - denoiser.noise(y, at)).square().mean().sqrt().item()
        expected.append(total / DRAWS)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert found[0] == pytest.approx(found[2], rel=1e-5)
    assert np.isfinite(found).all()
    assert (found > 0).all()


def test_a_caption_that_adds_a_constant_has_its_size_as_contrast(folder):
    denoiser = vg.load_model(MODEL)
    heard = list[int]()
    found = caption_contrasts(denoiser, ["one", "two famous", "broken"], 0, 2, heard.append)
    pushes: Tensor = torch.tensor(denoiser.given(["one", "two famous"]).push)  # type: ignore[attr-defined]
    np.testing.assert_allclose(found[:2], pushes, rtol=1e-4)
    assert np.isnan(found[2])
    assert heard == [2, 1]


def measured(captions: Sequence[str], contrast: np.ndarray) -> MeasuredCaptions:
    return MeasuredCaptions(captions, contrast, [0] * len(captions))


def contrasts(captions: Sequence[str], seed: int) -> np.ndarray:
    """Longer captions steer further, and so do some by chance."""
    words = np.array([len(caption.split()) for caption in captions])
    return 0.02 * words * np.exp(0.2 * np.random.default_rng(seed).standard_normal(len(captions)))


def test_innocent_captions_are_flagged_no_more_often_than_promised_whatever_their_length() -> None:
    words = np.random.default_rng(0).integers(2, 20, 1200)
    texts = [" ".join(["word"] * count) + f" {place}" for place, count in enumerate(words)]
    neutral = measured(texts[:600], contrasts(texts[:600], 1))
    ours = contrasts(texts[600:], 2)
    ours[:5] *= 6
    table, numbers = judge_captions(range(1, 601), measured(texts[600:], ours), neutral, False, 0.1)
    flagged = np.flatnonzero(table["flagged"].to_numpy(zero_copy_only=False))
    assert set(range(5)) <= set(flagged)
    assert len(flagged) <= 8
    innocent = table["p_value"].to_numpy()[5:]
    assert abs((innocent <= 0.1).mean() - 0.1) < 0.05
    long = words[605:] > 10
    assert abs((innocent[long] <= 0.2).mean() - (innocent[~long] <= 0.2).mean()) < 0.1
    assert numbers["flagged"] == len(flagged)


def test_what_limits_the_flags_is_said():
    neutral = [f"neutral {place}" for place in range(60)]
    ours = [*(f"caption {place}" for place in range(100)), " ".join(["long"] * 50)]
    found = MeasuredCaptions(ours, contrasts(ours, 3), [0] * 100 + [7])
    _, numbers = judge_captions(range(101), found, measured(neutral, contrasts(neutral, 4)), True, 0.1)
    said = " ".join(numbers["caveats"])
    assert "With 60 neutral captions fewer than 17 of 101 captions cannot be flagged" in said
    assert "1 of the captions are longer than every neutral one" in said
    assert "1 of the captions have more tokens than the model reads" in said
    few: dict[str, Any] = {"lines": [1], "measured": measured(["a"], np.ones(1)), "shipped": False, "fdr": 0.1}
    with pytest.raises(UsageError, match=r"49 of 49 neutral captions could be measured .* expected at least 50"):
        judge_captions(neutral=measured(neutral[:49], np.ones(49)), **few)
    table, _ = judge_captions(neutral=measured(neutral[:50], np.ones(50)), **few)
    assert table["flagged"].to_pylist() == [False]  # a model that all captions steer alike says nothing


def test_the_captions_of_the_package_are_plain_lines():
    shipped = neutral_captions()
    assert len(shipped) == len(set(shipped)) == 600
    assert all(line == line.strip() and line.isascii() and line for line in shipped)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": 5}, "setting model"),
        ({"output": None}, "setting output"),
        ({"seed": "x"}, "setting seed"),
        ({"lora": 5}, "setting lora"),
        ({"quux": 1}, "audit_prompts has no argument quux: beside its own it takes revision,"),
        ({"fdr": "a"}, "fdr is 'a': expected a number above 0 and below 1"),
        ({"captions": 5}, "captions is 5: expected the name of a text file, or a list of strings"),
        ({"captions": ["a", None]}, "captions hold None: expected strings"),
        (
            {"captions": ["a", "b\nc"]},
            "caption 2 of captions has a line feed in it: expected text in UTF-8, one caption",
        ),
        ({"captions": ["a\0"]}, "caption 1 of captions has a NUL byte in it"),
        ({"neutral": ["a \ud800"]}, "caption 1 of neutral has half of a surrogate pair in it"),
        ({"neutral": b"abc"}, "neutral is b'abc': expected the name of a text file"),
    ],
)
def test_arguments_of_a_wrong_type_are_refused_in_a_sentence(given, said, tmp_path):
    arguments = {"model": "model", "captions": ["a"], "output": str(tmp_path / "out"), "quiet": True, **given}
    with pytest.raises(VolgrowthError) as found:
        vg.audit_prompts(**arguments)
    assert said in str(found.value)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "out").exists()
