"""The device of a worker in this process, with Apple's GPU as torch would tell of it on a Mac; none is here."""

import pytest
import torch

import volgrowth as vg
from volgrowth.audit.engine.local import device_here
from volgrowth.commands import doctor


@pytest.mark.parametrize(("share", "device"), [(None, "cpu"), (0, "cpu"), (1, "mps")])
def test_an_apple_gpu_is_used_where_it_is_asked_for(share, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device_here(share) == device
    assert any(found.name == "Apple GPU (MPS)" for found in doctor._devices())


def test_what_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(vg.EngineError, match="was to have 1 GPUs and there is none here"):
        device_here(1)
    assert not any(found.name == "Apple GPU (MPS)" for found in doctor._devices())
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(vg.EngineError, match="float64, which Apple's GPU does not have"):
        device_here(1, "float64")
    assert device_here(0, "float64") == "cpu"
