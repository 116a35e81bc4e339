from tests.sources.conftest import _own_cache, images

__all__ = ["_own_cache", "images"]
