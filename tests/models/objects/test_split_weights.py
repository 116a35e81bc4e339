"""Networks whose weights are split over processes are refused: one process alone would wait for the others for ever."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

import volgrowth as vg
from volgrowth.errors import ModelError

SCHEDULER = DDPMScheduler()


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    """A process group of this process: weights are wrapped as in a training of many."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def network() -> Any:
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip


def split(how: str) -> Any:
    if how == "FSDP":
        return FullyShardedDataParallel(network(), device_id=torch.device("cpu"))
    if how == "DeepSpeed's stage 3":  # which marks weights so; the package itself needs a GPU's compiler
        model = network()
        model.conv_out.weight.ds_id = 0
        return model
    return fully_shard(network(), mesh=init_device_mesh("cpu", (1,)))


@pytest.mark.parametrize("how", ["FSDP", "FSDP or tensor parallelism", "DeepSpeed's stage 3"])
def test_weights_in_pieces_are_refused_with_the_way_out(how, digits, tmp_path, capsys):
    model = split(how)
    for given in (lambda: vg.adapt(model, scheduler=SCHEDULER), lambda: vg.score_images([model], digits[:2])):
        with pytest.raises(ModelError, match=rf"split over the processes of a training \({how}\)") as found:
            given()
        assert "full_state_dict=True" in str(found.value)
    audits = vg.AuditCallback(digits[:20], output=tmp_path / "audits", every=1, rows=10)
    assert audits.on_step(1, model) is None
    assert audits.on_step(2, network(), ema=model) is None
    assert ["are split over" in why for why in audits.failed.values()] == [True, True]
    assert capsys.readouterr().err.count("there is no audit, and the training goes on") == 2


def test_whole_weights_and_gathered_ones_are_taken():
    whole = network()
    whole.load_state_dict(
        get_model_state_dict(
            split("FSDP or tensor parallelism"), options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
    )
    for model in (whole, DistributedDataParallel(network())):
        assert vg.adapt(model, scheduler=SCHEDULER).image_shape == (1, 8, 8)
