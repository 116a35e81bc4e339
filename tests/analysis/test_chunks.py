import numpy as np
import pytest

from volgrowth.analysis import chunks
from volgrowth.analysis.chunks import for_chunks


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 95])
def test_chunks_divide_the_rows(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 10)
    seen = np.zeros(count, int)

    def work(chunk: slice) -> None:
        assert chunk.stop - chunk.start <= 10
        seen[chunk] += 1

    for_chunks(count, work)
    assert seen.tolist() == [1] * count


def test_what_a_chunk_raises_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 10)

    def work(chunk: slice) -> None:
        if chunk.start == 20:
            raise ValueError("the third chunk")

    with pytest.raises(ValueError, match="the third chunk"):
        for_chunks(95, work)
