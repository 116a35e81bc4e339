"""Entries of configurations: what changes the output's meaning is used or refused, what nothing knows is listed."""

import json
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from tests.support.checkpoints import edit, problem, save_pipeline, unet
from tests.support.pipelines import build
from volgrowth.models import inspect_model, load_model
from volgrowth.models.parameterizations import Scheduled
from volgrowth.models.pipelines.schedulers import SCHEDULERS, SchedulerConfig
from volgrowth.models.pipelines.settings import MEANING, OF_AVERAGES, OLD_NAMES, SAMPLING, arguments

ROOT = Path(__file__).parents[3]


def read(folder: Path, **content: Any) -> SchedulerConfig:
    path = folder / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "DDPMScheduler", **content}))
    return SchedulerConfig(path)


def meaning(config: SchedulerConfig) -> tuple[str, tuple[float, float]]:
    assert isinstance(config.parameterization, Scheduled)
    return config.parameterization.prediction_type, config.parameterization.noise_levels


def test_every_setting_of_diffusers_schedulers_is_known_and_shown() -> None:
    """A new version of diffusers that brings a new setting fails here, so that somebody decides what it means."""
    all_of_them = set().union(*(arguments(getattr(diffusers, name)) for name in SCHEDULERS))
    assert all_of_them <= {*MEANING, *SAMPLING}
    assert not {*MEANING} & {*SAMPLING}
    text = (ROOT / "docs/models.md").read_text()
    rows = dict(re.findall(r"^\| (\w[^|]*?) \| (.*) \|$", text[text.index("## Settings") :], re.MULTILINE))
    shown = {name: set(re.findall(r"`(\w+)`", rows[name])) for name in ("used", "old names", "of samplers", "averages")}
    tables = {"used": MEANING, "old names": OLD_NAMES, "of samplers": SAMPLING, "averages": OF_AVERAGES}
    assert shown == {name: set(table) for name, table in tables.items()}


OLD: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"predict_epsilon": False}, {"prediction_type": "sample"}),
    ({"predict_epsilon": True}, {"prediction_type": "epsilon"}),
    ({"predict_epsilon": False, "prediction_type": "sample"}, {"prediction_type": "sample"}),
    ({"predict_epsilon": None}, {"prediction_type": "epsilon"}),
    ({"timesteps": 100}, {"num_train_timesteps": 100}),
    ({"timesteps": 3, "trained_betas": [0.1, 0.2, 0.3]}, {"num_train_timesteps": 3, "trained_betas": [0.1, 0.2, 0.3]}),
    ({"timestep_values": None, "tensor_format": "pt"}, {}),
    ({"num_train_timesteps": 4, "timestep_values": [0, 1, 2, 3]}, {"num_train_timesteps": 4}),
    ({"num_train_timesteps": 4, "timesteps": [3, 2, 1, 0]}, {"num_train_timesteps": 4}),
]


@pytest.mark.parametrize(("old", "new"), OLD)
def test_old_names_mean_what_todays_do(tmp_path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    assert meaning(read(tmp_path, **old)) == meaning(read(tmp_path, **new))


def test_an_old_scheduler_gives_the_denoiser_of_todays(tmp_path: Path) -> None:
    """Not to one as if it predicted the noise, which is how such models were measured before."""
    save_pipeline(tmp_path, prediction_type="sample", num_train_timesteps=100)
    y, level = torch.randn(2, 1, 8, 8), torch.tensor(0.7)
    expected = load_model(str(tmp_path))(y, level)
    path = tmp_path / "scheduler/scheduler_config.json"
    edit(path, "prediction_type", "num_train_timesteps", predict_epsilon=False, timesteps=100)
    assert torch.equal(load_model(str(tmp_path))(y, level), expected)
    assert inspect_model(str(tmp_path)).unknown_settings == ()


EULER, UNIPC, DDIM = "EulerDiscreteScheduler", "UniPCMultistepScheduler", "DDIMScheduler"
PNDM, FLOW = "PNDMScheduler", "FlowMatchEulerDiscreteScheduler"
# what is refused, and its nearest neighbour that is right
REFUSED: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    (
        {"predict_epsilon": False, "prediction_type": "epsilon"},
        "has predict_epsilon false and prediction_type 'epsilon', which contradict each other",
        {"predict_epsilon": True, "prediction_type": "epsilon"},
    ),
    ({"predict_epsilon": "no"}, "has predict_epsilon 'no': expected true or false", {"predict_epsilon": False}),
    (
        {"timesteps": 100, "num_train_timesteps": 1000},
        "has timesteps 100 and num_train_timesteps 1000, which contradict each other",
        {"timesteps": 100, "num_train_timesteps": 100},
    ),
    (
        {"num_train_timesteps": 4, "timesteps": [0, 250, 500, 750], "trained_betas": [0.1, 0.2, 0.3, 0.4]},
        "has timesteps [0, 250, 500, 750]: expected labels 0 to 4 - 1; for a network that was trained on others write",
        {"num_train_timesteps": 4, "timesteps": [0, 1, 2, 3], "trained_betas": [0.1, 0.2, 0.3, 0.4]},
    ),
    (
        {"timestep_values": [0, 4, 8]},
        "has timestep_values [0, 4, 8]: expected labels",
        {"num_train_timesteps": 3, "timestep_values": [0, 1, 2]},
    ),
    (
        {"trained_betas": [0.1, 0.2, 0.3]},
        "has 3 trained_betas and num_train_timesteps 1000: expected one for each step",
        {"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3},
    ),
    (
        {"_class_name": PNDM, "rescale_betas_zero_snr": True},
        "sets rescale_betas_zero_snr to true, which PNDMScheduler would pass over, though",
        {"_class_name": DDIM, "rescale_betas_zero_snr": True},
    ),
    (
        {"_class_name": UNIPC, "timestep_type": "continuous", "prediction_type": "v_prediction"},
        'sets timestep_type to "continuous", which UniPCMultistepScheduler would pass over',
        {"_class_name": EULER, "timestep_type": "continuous", "prediction_type": "v_prediction"},
    ),
    (
        {"_class_name": DDIM, "use_flow_sigmas": True},
        "sets use_flow_sigmas to true, which DDIMScheduler would pass over",
        {"_class_name": UNIPC, "use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    ),
    (
        {"_class_name": EULER, "sigma_data": 0.5},
        "sets sigma_data to 0.5, which EulerDiscreteScheduler would pass over",
        {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5},
    ),
    (
        {"_class_name": FLOW, "trained_betas": [0.1, 0.2], "num_train_timesteps": 2},
        "sets trained_betas to [0.1, 0.2], which FlowMatchEulerDiscreteScheduler would pass over",
        {"_class_name": FLOW, "trained_betas": None},
    ),
    (
        {"_class_name": FLOW, "prediction_type": "v_prediction"},
        "has prediction_type 'v_prediction': expected one of flow_prediction",
        {"_class_name": FLOW, "prediction_type": "flow_prediction"},
    ),
    (
        {"_class_name": DDIM, "invert_sigmas": True},
        "sets invert_sigmas to true, which DDIMScheduler would pass over",
        {"_class_name": DDIM, "invert_sigmas": False},
    ),
    ({"beta_end": float("inf")}, "has beta_end inf: expected a finite number", {"beta_end": 0.03}),
    ({"beta_end": float("nan")}, "it holds NaN where a number belongs", {"beta_end": 0.03}),
    (
        {"num_train_timesteps": 10**10},
        "has num_train_timesteps 10000000000: expected a number of 2 to 100000 steps",
        {"num_train_timesteps": 4000},
    ),
    ({"num_train_timesteps": True}, "has num_train_timesteps True: expected", {"num_train_timesteps": 2}),
]


@pytest.mark.parametrize(("wrong", "message", "right"), REFUSED)
def test_settings_that_are_refused(tmp_path: Path, wrong: dict[str, Any], message: str, right: dict[str, Any]) -> None:
    said = problem(read, tmp_path, **wrong)
    assert message in said
    assert str(tmp_path / "scheduler_config.json") in said
    read(tmp_path, **right)


def test_settings_of_samplers_change_nothing(tmp_path: Path) -> None:
    """Limits that diffusers itself writes as -Infinity are among them."""
    config = diffusers.DPMSolverMultistepScheduler()
    config.save_pretrained(tmp_path)
    assert "-Infinity" in (tmp_path / "scheduler_config.json").read_text()
    plain = SchedulerConfig(tmp_path / "scheduler_config.json")
    edit(tmp_path / "scheduler_config.json", use_karras_sigmas=True, thresholding=True, clip_sample=True, shift=3.0)
    changed = SchedulerConfig(tmp_path / "scheduler_config.json")
    assert meaning(changed) == meaning(plain)
    assert changed.unknown_settings() == []


def test_what_nothing_knows_is_listed(tmp_path: Path) -> None:
    save_pipeline(tmp_path)
    before = inspect_model(str(tmp_path))
    edit(tmp_path / "scheduler/scheduler_config.json", snr_gamma=5.0, empty=None, _private=1)
    edit(tmp_path / "unet/config.json", decay=0.9999, optimization_step=500, my_blocks=["a"] * 40)
    edit(tmp_path / "model_index.json", prior=["diffusers", "Prior"], safety_checker=[None, None])
    info = inspect_model(str(tmp_path))
    blocks = json.dumps(["a"] * 40)[:60]
    assert info.unknown_settings == (
        "scheduler/scheduler_config.json: snr_gamma=5.0",
        f"unet/config.json: my_blocks={blocks}...",
        f'{tmp_path.name}/model_index.json: prior=["diffusers", "Prior"]',
    )
    assert before.unknown_settings == ()
    assert info.lines() == [
        f"model: settings that nothing knows were ignored: {', '.join(info.unknown_settings)}",
    ]


def test_dit_under_its_class_of_before_is_the_same_network(tmp_path: Path) -> None:
    build("dit", tmp_path)
    y, level = torch.randn(2, 4, 8, 8), torch.tensor(0.7)
    expected = load_model(str(tmp_path)).noise(y, level)
    edit(tmp_path / "transformer/config.json", _class_name="Transformer2DModel", attention_type="default")
    info = inspect_model(str(tmp_path))
    assert (info.kind, info.unknown_settings) == ("DiTTransformer2DModel", ())
    assert torch.equal(load_model(str(tmp_path)).noise(y, level), expected)
    edit(tmp_path / "transformer/config.json", norm_type="ada_norm_single")
    assert "holds Transformer2DModel, which volgrowth does not know" in problem(inspect_model, str(tmp_path))


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    save_pipeline(tmp_path, unet())
    edit(tmp_path / "unet/config.json", quantization_config={"quant_method": "bitsandbytes"})
    assert "holds quantised weights (config.json has quantization_config)" in problem(inspect_model, str(tmp_path))
