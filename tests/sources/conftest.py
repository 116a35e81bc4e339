import pytest

from tests.support.samples import digits


@pytest.fixture(scope="session")
def images() -> list[bytes]:
    return digits(57)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(datasets_cache):
    pass
