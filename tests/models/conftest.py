from collections.abc import Iterator

import pytest

from volgrowth.demo import training


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Networks here are tiny: more threads only wait for each other."""
    with training.one_thread():
        yield


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that asks the hub by mistake is told that there is none."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
