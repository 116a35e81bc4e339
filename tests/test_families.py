"""Audits of every model family, end to end: tiny pipelines with random weights, on scikit-learn's digits."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

import volgrowth as vg
from tests.support.pipelines import CLASSES, FAMILY_NAMES, FLUX_RESOLUTION, TEXT_FAMILIES, build, unet2d
from volgrowth.audit.workers.seeding import seeded
from volgrowth.cli import run_command
from volgrowth.commands.audit import run_audit
from volgrowth.commands.verify import verify_audit
from volgrowth.config import PaperMeasure, StandardMeasure, VolumeMeasure
from volgrowth.errors import UsageError, VolgrowthError
from volgrowth.models import load_model
from volgrowth.sources import decode_image, encode_png, to_unit

ROWS = 24
WORDS = ("naught", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LATENT = dict.fromkeys(("dit", *TEXT_FAMILIES), (4, 8, 8)) | {"ldm": (3, 8, 8)}
SHAPELESS = ("sdxl", "flux")
"""Their encoders, of random weights, leave latents of which a blur removes no noise: no weights could learn them."""
GUIDANCE = 3.0


@pytest.fixture(scope="module")
def data(digits: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits with a class and a caption each: row 3 without, row 5 with one that CLIP cuts."""
    labels: list[int | None] = [row % CLASSES for row in range(ROWS)]
    captions: list[str | None] = [f"a {WORDS[row % CLASSES]}" for row in range(ROWS)]
    labels[3] = captions[3] = None
    captions[5] = "a five and very much more than the model can read of it"
    table = pa.table(
        {
            "image": [{"bytes": encode_png(image), "path": None} for image in digits[:ROWS]],
            "id": [f"digit-{row}" for row in range(ROWS)],
            "label": pa.array(labels, pa.int64()),
            "caption": pa.array(captions, pa.string()),
        }
    )
    path = tmp_path_factory.mktemp("families") / "digits.parquet"
    pq.write_table(table, path, row_group_size=7)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a family's pipeline, built when first asked for."""
    folder = tmp_path_factory.mktemp("pipelines")

    def model(family: str) -> Path:
        if not (folder / family).exists():
            build(family, folder / family)
        return folder / family

    return model


def settings(family: str) -> dict[str, Any]:
    """What a user of the family adds to the command."""
    chosen: dict[str, Any] = {"resolution": FLUX_RESOLUTION} if family == "flux" else {}
    if family in TEXT_FAMILIES:
        chosen |= {"caption_column": "caption", "guidance": GUIDANCE}
    if family == "dit":
        chosen |= {"class_column": "label", "guidance": GUIDANCE}
    return chosen


def audit(model: object, data: Path, output: Path, **changes: Any) -> Any:
    common: dict[str, Any] = {"id_column": "id", "engine": "local", "batch_size": 8, "shard_size": 10}
    config = vg.AuditConfig.build(model=str(model), data=str(data), output=str(output), **{**common, **changes})
    return run_audit(config, quiet=True)


@pytest.fixture(scope="module")
def audited(data: Path, models: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The audit of a family as its users do it, done when first asked for, and only read from."""
    done: dict[str, Any] = {}

    def audited(family: str) -> Any:
        if family not in done:
            done[family] = audit(models(family), data, tmp_path_factory.mktemp(family), **settings(family))
        return done[family]

    return audited


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_family_is_audited(family: str, audited: Any) -> None:
    found = audited(family)
    scores, model = found.scores, found.manifest["model"]
    assert scores["status"].unique().to_pylist() == ["ok"]
    latent = LATENT.get(family)
    assert model["latent_shape"] == (list(latent) if latent else None)
    assert model["image_shape"] == ([3, 16, 16] if latent else [3, 8, 8])
    check = found.summary["model_check"]
    assert (check["verdict"], check["images"]) == ("wrong", ROWS)
    assert (check["fix"] == "load the trained weights") == (family not in SHAPELESS)
    growth, conditional = scores["growth"].to_numpy(), family in TEXT_FAMILIES or family == "dit"
    assert np.isfinite(growth).all()
    assert len(np.unique(growth)) > ROWS // 2
    expected = StandardMeasure().evaluations + (StandardMeasure().unconditional_evaluations if conditional else 0)
    assert scores["nfe"].unique().to_pylist() == [expected] == [found.summary["measure"]["evaluations"]]
    if not conditional:
        assert scores["growth_contrast"].null_count == scores["tokens_cut"].null_count == ROWS
        return
    null, guided, contrast = (scores[f"growth_{name}"].to_numpy() for name in ("unconditional", "guided", "contrast"))
    np.testing.assert_allclose(contrast, growth - null, atol=1e-6)
    assert np.isfinite(guided).all()
    assert guided[3] == null[3]
    assert contrast[3] == 0  # no class and no caption is what the null condition is
    assert (np.delete(contrast, 3) != 0).all()
    page = found.store.read("report.html").decode()
    assert "Measured in latents of" in page
    assert "Conditioned on" in page


@pytest.mark.parametrize("family", ["sd1", "flux"])
def test_growth_is_that_of_the_conditional_flow_in_latents(
    family: str, data: Path, models: Any, tmp_path: Path
) -> None:
    """Measured by hand, one image and one caption at a time."""
    chosen = settings(family)
    found = audit(models(family), data, tmp_path, dtype="float64", **chosen)
    denoiser = load_model(str(models(family)), dtype="float64", resolution=chosen.get("resolution"))
    rows, level = pq.read_table(data).to_pylist(), torch.tensor(0.1, dtype=torch.float64)
    for row in (0, 3, 5, 17):
        pixels = decode_image(rows[row]["image"]["bytes"], (3, 16, 16), 10**6)
        latents = denoiser.embed(torch.from_numpy(to_unit(pixels)).double()[None])
        e = torch.randn(latents.shape[1:], generator=seeded(0, "noise", 0)).double()
        for flow, name in ((denoiser.given([rows[row]["caption"]]), "growth"), (denoiser, "growth_unconditional")):
            derivative = (flow.noise(latents + 0.1 * e, level) - flow.noise(latents, level)) / (0.1 * e.norm())
            grown = (e / e.norm() + 0.2 * derivative).norm().log().item()
            assert found.scores[name][row].as_py() == pytest.approx(grown, abs=1e-9)


@pytest.mark.parametrize("measure", [VolumeMeasure(num_levels=5, largest_level=20.0), PaperMeasure(num_steps=2)])
def test_other_presets_take_conditions_too(measure: Any, data: Path, models: Any, tmp_path: Path) -> None:
    found = audit(models("sd1"), data, tmp_path, measure=measure, **settings("sd1"))
    columns = {name: found.scores[name].to_numpy() for name in found.scores.column_names if name.startswith("growth")}
    np.testing.assert_allclose(
        columns["growth_contrast"], columns["growth"] - columns["growth_unconditional"], atol=1e-4
    )
    assert columns["growth_contrast"][3] == 0
    linear = columns["growth_unconditional"] + GUIDANCE * columns["growth_contrast"]
    close = np.abs(columns["growth_guided"] - linear).max() < 1e-3
    assert close == isinstance(measure, VolumeMeasure)  # volumes of tangents are not linear in the noise
    assert (
        found.scores["nfe"][0].as_py()
        == measure.evaluations + measure.unconditional_evaluations + measure.guided_evaluations
    )


def test_what_the_tokenizer_cuts_is_in_the_row(audited: Any) -> None:
    scores = audited("sd1").scores
    cut = scores["tokens_cut"].to_pylist()
    assert cut[5] > 0
    assert cut[3] is None  # the row without a caption
    assert cut[4] == 0
    counted = {"kind": "caption", "column": "caption", "audited": {"rows": ROWS, "without": 1}, "held_out": None}
    assert audited("sd1").summary["conditions"] == counted
    assert [row for row, marks in enumerate(scores["marks"].to_pylist()) if "caption_cut" in marks] == [
        row for row, tokens in enumerate(cut) if tokens
    ]


def test_scores_do_not_depend_on_batches_shards_or_the_engine(
    ray_session: None, audited: Any, data: Path, models: Any, tmp_path: Path
) -> None:
    first = audited("sd1").scores
    other = {"batch_size": 5, "shard_size": 24, "engine": "ray", "workers": 1}
    second = audit(models("sd1"), data, tmp_path / "b", **{**settings("sd1"), **other}).scores
    for name in ("growth", "growth_unconditional", "growth_guided", "loss"):
        np.testing.assert_allclose(first[name].to_numpy(), second[name].to_numpy(), atol=2e-4)


def test_without_a_caption_column_a_text_model_is_measured_unconditionally(
    audited: Any, data: Path, models: Any, tmp_path: Path
) -> None:
    conditional = audited("sd1").scores
    plain = audit(models("sd1"), data, tmp_path).scores
    assert plain["growth_contrast"].null_count == ROWS
    # they meet where no caption is
    assert plain["growth"][3].as_py() == pytest.approx(conditional["growth"][3].as_py(), abs=1e-4)
    assert plain["growth"][4].as_py() != conditional["growth"][4].as_py()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["ddpm", "sd1"])
def test_low_precision_networks(family: str, dtype: str, audited: Any, data: Path, models: Any, tmp_path: Path) -> None:
    low = audit(models(family), data, tmp_path, dtype=dtype, **settings(family)).scores["growth"].to_numpy()
    exact = audited(family).scores["growth"].to_numpy()
    # rates lie between 0 and the dimension, unless a network errs as much as these do
    dimension = np.prod(LATENT.get(family, (3, 8, 8)))
    assert 0 < np.abs(low - exact).max() < 0.02 * dimension
    assert np.corrcoef(low, exact)[0, 1] > 0.98


@pytest.mark.parametrize(("family", "samples"), [("ldm", 6), ("sd1", 6), ("dit", 6), ("sd3", 4), ("score-sde-ve", 4)])
def test_samples_are_drawn_and_decoded(family: str, samples: int, audited: Any, tmp_path: Path) -> None:
    shutil.copytree(audited(family).store.root, tmp_path / "out")
    verified = verify_audit(str(tmp_path / "out"), samples, engine="local", quiet=True)
    drawn = verified.store.read_table("verification/sample-00000.parquet")
    assert len(drawn) == samples
    picture = decode_image(drawn["image"][0].as_py()["bytes"], (3, 16, 16) if family in LATENT else (3, 8, 8), 10**6)
    assert picture.std() > 0
    assert verified.summary["verification"]["samples"] == samples


def test_classes_without_a_null(data: Path, tmp_path: Path) -> None:
    """A class-conditional UNet2DModel knows no image without a class: no contrast, and no score without one."""
    from diffusers import DDPMPipeline, DDPMScheduler

    torch.manual_seed(0)
    DDPMPipeline(unet2d(num_class_embeds=8), DDPMScheduler()).save_pretrained(tmp_path / "model")
    found = audit(tmp_path / "model", data, tmp_path / "out", class_column="label", max_failed=1.0).scores
    status = found["status"].to_pylist()
    assert [row for row in range(ROWS) if status[row] != "ok"] == [3, 8, 9, 18, 19]
    assert set(status) == {"ok", "wrong_condition"}
    assert found["error"][8].as_py() == "class 8 is none of the model's: expected 0 to 7"
    assert found["error"][3].as_py() == "the model knows no image without a class: expected a class column"
    assert found["growth_contrast"].null_count == ROWS
    assert pc.sum(pc.is_valid(found["growth"])).as_py() == ROWS - 5
    with pytest.raises(
        UsageError, match=r"cannot be evaluated without a class: expected class_column \(--class-column\)"
    ):
        audit(tmp_path / "model", data, tmp_path / "other")
    with pytest.raises(
        UsageError, match="does not support unconditional input, which guidance needs: leave guidance out"
    ):
        audit(tmp_path / "model", data, tmp_path / "other", class_column="label", guidance=2.0)


@pytest.mark.parametrize(
    ("family", "given", "message"),
    [
        ("ddpm", {"class_column": "label"}, "class_column label was given, and model .*ddpm takes no conditions"),
        ("sd1", {"class_column": "label"}, "class_column label was given, and model .*sd1 takes a caption_column"),
        ("dit", {"caption_column": "caption"}, "caption_column caption .* takes a class_column"),
        ("sd1", {"base": "."}, "base was given, and .*sd1 is a whole pipeline: leave it out"),
        ("ddpm", {"lora": __file__}, "expected one file, or a folder with one"),
        ("sd1", {"guidance": 2.0}, "guidance needs a condition: expected a class_column or caption_column"),
        ("sd1", {"class_column": "label", "caption_column": "caption"}, "are both given: expected the one"),
        (
            "ddpm",
            {"dtype": "bfloat16", "measure": {"preset": "paper"}},
            "difference over a radius of 0.05 is lost in the rounding of bfloat16: expected measure.derivative=jvp",
        ),
    ],
)
def test_what_does_not_fit_is_said_before_anything_runs(
    family: str, given: dict[str, Any], message: str, data: Path, models: Any, tmp_path: Path
) -> None:
    with pytest.raises(VolgrowthError, match=message):
        audit(models(family), data, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_the_command_line(data: Path, models: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["audit", str(models("sd1")), str(data), "--output", str(tmp_path / "out"), "--engine", "local"]
    options = ["--id-column", "id", "--caption-column", "caption", "--guidance", "7.5", "--set", "batch_size=8"]
    assert run_command([*command, *options]) == 0
    assert f"{ROWS} of {ROWS} images scored" in capsys.readouterr().out
    config = json.loads((tmp_path / "out" / "manifest.json").read_text())["config"]
    assert (config["caption_column"], config["guidance"]) == ("caption", 7.5)
