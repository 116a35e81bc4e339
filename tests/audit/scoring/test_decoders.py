"""Decoding in processes: the same columns as in this one, no hang when one dies, and no process that stays behind."""

import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from volgrowth.audit.scoring.decoders import DecoderDiedError, Decoders, _ask
from volgrowth.audit.scoring.scorer import Scorer
from volgrowth.config import AuditConfig
from volgrowth.models import load_model
from volgrowth.records import Failure
from volgrowth.sources import Row, encode_png

CONFIG = AuditConfig.build(model="m", data="d", output="o", batch_size=8)


def rows(images: np.ndarray) -> list[Row]:
    return [Row(k, f"{k}", "s", encode_png(image)) for k, image in enumerate(images)]


def bomb() -> bytes:
    """Return a PNG whose text chunk unpacks to far more than it holds."""
    image = encode_png(np.zeros((1, 8, 8), np.uint8))
    packed = b"k\0\0" + zlib.compress(bytes(1 << 27))
    chunk = b"zTXt" + packed
    return image[:33] + len(packed).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + image[33:]


def alive(pid: int) -> bool:
    """Say whether a process is there and not dead already."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_scores_and_refusals_are_those_of_threads(tiny_model, digits):
    items = rows(digits[:21])
    items[3:3] = [
        Row(100, "a", "s", b"junk"),
        Row(101, "b", "s", None, "gone"),
        Row(102, "c", "s", encode_png(np.zeros((1, 400, 400), np.uint8))),
        Row(103, "d", "s", bomb()),
    ]
    failures = {7: Failure("it ends its process")}
    config, denoiser = CONFIG.model_copy(update={"max_pixels": 100_000}), load_model(str(tiny_model))
    decoders = Decoders(2)
    found = Scorer(denoiser, config, describe=decoders.describe).score(items, failures)
    assert found.equals(Scorer(denoiser, config).score(items, failures))
    assert found["status"].to_pylist()[5] == "too_large"
    assert 1 <= len(decoders._running) <= 2


def test_a_process_that_is_killed_fails_its_rows_and_is_replaced(tiny_model, digits):
    decoders = Decoders(1)
    scorer = Scorer(load_model(str(tiny_model)), CONFIG, describe=decoders.describe)
    whole = scorer.score(rows(digits[:16]))
    (process,) = decoders._running
    process.send_signal(signal.SIGSTOP)
    stopped = [*rows(digits[:16])]

    def source():
        yield from stopped[:8]
        process.kill()  # while it has the first rows
        yield from stopped[8:]

    with pytest.raises(DecoderDiedError, match=r"ended with -9 at one of rows \d+ to \d+"):
        scorer.score(source())
    assert scorer.score(rows(digits[:16])).equals(whole)
    assert [each.pid for each in decoders._running] != [process.pid]


def test_an_error_of_the_decoder_is_raised_where_rows_were_wanted(digits):
    with pytest.raises(ValueError, match="image_shape"):
        Decoders(1).describe(rows(digits[:2]), {}, {}, (0, 8, 8), 1000, 1)


def test_processes_end_with_the_one_that_asks_even_when_it_is_killed(digits):
    code = """
import sys, time, numpy as np
from volgrowth.audit.scoring.decoders import Decoders
from volgrowth.sources import Row, encode_png
decoders = Decoders(1)
decoders.describe([Row(0, "0", "s", encode_png(np.zeros((1, 8, 8), np.uint8)))], {}, {}, (1, 8, 8), 1000, 1)
print(decoders._running[0].pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as asks:
        assert asks.stdout is not None
        child = int(asks.stdout.readline())
        assert alive(child)
        os.kill(asks.pid, signal.SIGKILL)
    limit = time.monotonic() + 20
    while alive(child) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not alive(child)


def test_what_a_codec_prints_is_not_taken_for_an_answer():
    code = """
from volgrowth.sources.pixels import described
described.describe_rows = lambda *asked: print("a warning") or ["answer"]
described.serve()
"""
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        assert _ask(process, ()) == ["answer"]
        assert _ask(process, ()) == ["answer"]
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == 0
