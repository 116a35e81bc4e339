"""Pipelines and networks that are loaded answer as their folders do."""

from typing import Any

import diffusers
import pytest
import torch
from torch.testing import assert_close

import volgrowth as vg
from tests.support.checkpoints import problem, unet
from tests.support.pipelines import FAMILY_NAMES, FLUX_RESOLUTION, build
from volgrowth.models.pipelines.schedulers import EDM_SCHEDULERS, FLOW_SCHEDULERS, TABLES

CONDITIONS: dict[str | None, list[Any]] = {"caption": ["a cat", None], "class": [1, 2], None: [None, None]}


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_loaded_pipeline_answers_as_its_folder(family, tmp_path):
    pipeline = build(family, tmp_path)
    small: dict[str, Any] = {"resolution": FLUX_RESOLUTION} if family == "flux" else {}
    shape = (3, FLUX_RESOLUTION, FLUX_RESOLUTION) if small else None
    here, there = vg.adapt(pipeline, image_shape=shape), vg.load_model(str(tmp_path), **small)
    assert (here.image_shape, here.pixel_shape, here.condition) == (
        there.image_shape,
        there.pixel_shape,
        there.condition,
    )
    if here.condition:
        here, there = (each.given(CONDITIONS[here.condition]) for each in (here, there))
    assert there.image_shape is not None
    y = torch.randn(2, *there.image_shape, generator=torch.Generator().manual_seed(0))
    for level in (0.1, 2.0):
        assert_close(here.noise(y, torch.tensor(level)), there.noise(y, torch.tensor(level)), rtol=1e-5, atol=1e-5)
    assert_close(here.sampling_levels(4), there.sampling_levels(4))


@pytest.mark.parametrize("name", [*TABLES[:3], "UniPCMultistepScheduler", EDM_SCHEDULERS[0], FLOW_SCHEDULERS[0]])
def test_a_network_with_a_scheduler_answers_as_its_folder(name, tmp_path):
    network, scheduler = unet(), getattr(diffusers, name)()
    network.save_pretrained(tmp_path / "unet")
    scheduler.save_pretrained(tmp_path / "scheduler")
    here, there = vg.adapt(network, scheduler=scheduler), vg.load_model(str(tmp_path / "unet"))
    y = torch.randn(2, 1, 8, 8)
    assert_close(here.noise(y, torch.tensor(0.4)), there.noise(y, torch.tensor(0.4)))
    assert not network.training


def test_what_a_network_does_not_say_is_asked_for():
    network, scheduler = unet(), diffusers.DDPMScheduler()
    assert "give the scheduler that added the noise" in problem(lambda: vg.adapt(network))
    assert "expected one of DDPMScheduler" in problem(
        lambda: vg.adapt(network, scheduler=diffusers.VQDiffusionScheduler(8))
    )
    assert "image_shape (1, 16, 8)" in problem(lambda: vg.adapt(network, scheduler=scheduler, image_shape=(1, 16, 8)))
    larger = vg.adapt(network, scheduler=scheduler, image_shape=(1, 16, 16))
    assert larger.image_shape == (1, 16, 16)
    unit = vg.adapt(network, scheduler=scheduler, value_range=(0, 1))
    y, level = torch.randn(2, 1, 8, 8), torch.tensor(0.6)
    signed = vg.adapt(network, scheduler=scheduler)
    assert_close(unit(y, level), 2 * signed((y + 1) / 2, level / 2) - 1)


def test_pipelines_of_other_kinds_and_precisions_are_refused(tmp_path):
    pipeline = build("sd1", tmp_path)
    pipeline.vae.half()
    assert "expected torch.float32 on the network's device" in problem(lambda: vg.adapt(pipeline))
    alone = pipeline.unet
    said = problem(lambda: vg.adapt(alone, scheduler=pipeline.scheduler))
    assert "give the whole StableDiffusionPipeline" in said
