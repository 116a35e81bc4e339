import mmap
from pathlib import Path

import pyarrow as pa
import pytest


@pytest.fixture
def huge_ids(tmp_path: Path) -> pa.ChunkedArray:
    """Three ids of 2.4 GB together, which take no memory: one hole in a file, mapped."""
    size, path = 800_000_000 // mmap.PAGESIZE * mmap.PAGESIZE, tmp_path / "hole"
    with path.open("wb") as file:
        file.truncate(size)
    with pa.memory_map(str(path)) as file:
        offsets = pa.array([0, size], pa.int32()).buffers()[1]
        one = pa.StringArray.from_buffers(1, offsets, file.read_buffer())
    return pa.chunked_array([one, one, one])
