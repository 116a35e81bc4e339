import pytest


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that asks the hub by mistake is told that there is none."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
