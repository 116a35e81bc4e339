"""What the report says of the arithmetic is what the operations were."""

from pathlib import Path
from typing import Any

import pytest
import torch

import volgrowth as vg
from tests.support.pipelines import build
from volgrowth.audit.scoring.arithmetic import describe_arithmetic
from volgrowth.audit.scoring.derivatives import tf32_allowed, true_float32
from volgrowth.audit.scoring.scorer import Scorer
from volgrowth.config import AuditConfig
from volgrowth.models import load_model
from volgrowth.sources import Row, encode_png

PIXELS = torch.zeros(3, 16, 16, dtype=torch.uint8).numpy()


def described(folder: Path, **settings: Any) -> dict[str, Any]:
    config = AuditConfig.build(model=str(folder), data="unused", output="unused", **settings)
    scorer = Scorer(load_model(str(folder), dtype=config.dtype), config)
    return describe_arithmetic(scorer, scorer.prepare([Row(0, "0", "", encode_png(PIXELS))]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with convolutions and attention."""
    folder = tmp_path_factory.mktemp("sd1")
    build("sd1", folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_precision_is_that_of_the_operations(folder: Path, dtype: str) -> None:
    found = described(folder, dtype=dtype)
    assert found["dtype"] == [dtype]
    assert found["tf32"] == []  # a CPU has none
    assert found["channels_last"] is False


def test_attention_is_the_kernel_that_ran(folder: Path) -> None:
    """The VAE's attention is watched too. Forward mode has attention of its own."""
    assert "flash" in described(folder)["attention"]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert described(folder)["attention"] == ["plain"]


def test_channels_last_is_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("volgrowth.models.pipelines.model_folder.channels_last", lambda family, device: True)
    assert described(folder)["channels_last"] is True


class Small(vg.GaussianDenoiser):
    image_shape = (3, 16, 16)


def test_a_network_without_convolutions_or_attention() -> None:
    scorer = Scorer(Small(0.0, 1.0), AuditConfig.build(model="unused", data="unused", output="unused"))
    found = describe_arithmetic(scorer, scorer.prepare([Row(0, "0", "", encode_png(PIXELS))]))
    assert found == {"dtype": [], "tf32": [], "attention": [], "channels_last": None}


def test_tf32_is_known_whichever_switch_allows_it() -> None:
    before = tf32_allowed()
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        assert tf32_allowed() == {"products": True, "convolutions": True}
        with true_float32():
            assert tf32_allowed() == {"products": False, "convolutions": False}
        torch.set_float32_matmul_precision("highest")
        assert tf32_allowed() == {"products": False, "convolutions": True}  # torch's default
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before["products"]
