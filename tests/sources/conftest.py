import datasets
import pytest

from .samples import digits


@pytest.fixture(scope="session")
def images() -> list[bytes]:
    return digits(57)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Data sets prepared by `load_dataset` go to a folder of the test run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        datasets.disable_progress_bars()
        yield
        datasets.enable_progress_bars()
