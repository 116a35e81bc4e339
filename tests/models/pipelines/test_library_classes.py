"""Classes of diffusers are the same ones however they are imported; each case is a process of its own."""

import inspect
import subprocess
import sys

import diffusers
import pytest

from volgrowth.models.pipelines.library_classes import PLAIN_PIPELINES, class_of_diffusers, pipeline_arguments

LIGHT = """
import sys
from volgrowth.models.pipelines.library_classes import class_of_diffusers, mark_blocks, _unmarked
kind = class_of_diffusers("UNet2DModel")
kind(sample_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
     down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
assert class_of_diffusers("DDPMScheduler")().config.num_train_timesteps == 1000
assert class_of_diffusers("NoSuchModel") is None
heavy = {"peft", "transformers.modeling_utils", "torch._dynamo", "diffusers.models.unets.unet_2d_condition"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
FURTHER = {
    "a name of a package": "from diffusers.models.unets import UNet1DModel, UNet2DModel as it; assert it is kind",
    "all names of a package": "from diffusers.models.transformers import *; DiTTransformer2DModel",
    "a class of the library": "import diffusers as d; assert d.UNet2DModel is kind; d.StableDiffusionPipeline",
    "another module": "from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel",
    "the compiler": "import torch._dynamo.config; torch._dynamo.allow_in_graph",
    "marked blocks": "assert _unmarked; mark_blocks(); assert not _unmarked and 'torch._dynamo' in sys.modules",
}


@pytest.mark.parametrize("further", FURTHER.values(), ids=FURTHER)
def test_a_network_is_imported_without_the_others_which_come_when_they_are_asked_for(further):
    ran = subprocess.run([sys.executable, "-c", LIGHT + further], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_a_library_that_was_imported_before_is_left_as_it_is():
    assert class_of_diffusers("UNet2DModel") is diffusers.UNet2DModel
    assert class_of_diffusers("NoSuchModel") is None


@pytest.mark.parametrize("name", [*PLAIN_PIPELINES, "LDMPipeline"])
def test_the_arguments_of_a_pipeline_are_its_own(name):
    known = set(inspect.signature(getattr(diffusers, name).__init__).parameters) - {"self"}
    assert pipeline_arguments(name) == known
