"""Files that change while nobody looks: flipped bits, cut files, damaged side files, a data set of the same size."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from jobs.benchmark.faults.small_audit import Difference, FaultLine, SmallAudit, compare_rows, end_all, fragments
from volgrowth.audit.output.lock import LOCK
from volgrowth.errors import DamagedError
from volgrowth.sources import encode_png
from volgrowth.storage.store import Store

FLIPS, MENDED = 3_000, 4
FRAGMENT = "scores/part-00003.parquet"
# all PNG files of the changed data set have this size: what follows the end of a PNG is not read
IMAGE_BYTES = 400
HARMS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "garbage": lambda data: bytes(range(256)),
}


def flipped_bits(audit: SmallAudit) -> FaultLine:
    """Flip single bits of a fragment, in pages, headers, footer and seal; then let the audit mend some of them."""
    flips = 100 if audit.quick else FLIPS
    line = FaultLine(
        "a bit of a fragment flips",
        "each read is refused, or gives the same numbers; some are then mended by giving the command again",
    )
    output, random = audit.copy("flipped"), np.random.default_rng(1)
    store, data = Store(str(output)), (output / FRAGMENT).read_bytes()
    expected, size = store.read_table(FRAGMENT), 8 * len(data)
    # half of them in the last kilobyte, where the footer and its seal are
    bits = [*random.integers(0, size, flips // 2), *random.integers(size - 8 * 1024, size, flips - flips // 2)]
    for bit in bits:
        (output / FRAGMENT).write_bytes(_flipped(data, int(bit)))
        try:
            same = store.read_table(FRAGMENT).equals(expected, check_metadata=True)
        except DamagedError:
            same = True
        line.count(same, Difference(other=0 if same else len(expected)), f"bit {bit} of {FRAGMENT}")
    for index, bit in enumerate(bits[:: len(bits) // (1 if audit.quick else MENDED)]):
        (output / FRAGMENT).write_bytes(_flipped(data, int(bit)))
        if index % 2:
            (output / "_SUCCESS").unlink()
        audit.resumed(line, output)
    return line


def flipped_bits_of_json(audit: SmallAudit) -> FaultLine:
    """Flip single bits of manifest, summary and other JSON files."""
    line = FaultLine(
        "a bit of a JSON file flips", "manifest, summary, records: each read is refused or gives the same content"
    )
    output, random = audit.copy("flipped-json"), np.random.default_rng(2)
    store = Store(str(output))
    names = [path.name for path in sorted(output.glob("*.json"))]
    for name in names:
        data, expected = (output / name).read_bytes(), store.read_json(name)
        for bit in random.integers(0, 8 * len(data), (40 if audit.quick else 1_000) // len(names)):
            (output / name).write_bytes(_flipped(data, int(bit)))
            try:
                read = store.read_json(name)
                same = {key: read.get(key) for key in expected} == expected
            except DamagedError:
                same = True
            line.count(same, said=f"bit {bit} of {name}")
        (output / name).write_bytes(data)
    return line


def cut_fragments(audit: SmallAudit) -> FaultLine:
    """Cut fragments, empty or delete them, in a finished audit and in an unfinished one."""
    line = FaultLine(
        "a fragment is cut, empty or missing", "in finished and unfinished audits; the command is given again"
    )
    for finished in (False,) if audit.quick else (False, True):
        for share in (0.0,) if audit.quick else (0.0, 0.5, 0.999, None):
            output = audit.copy("cut", unfinished=not finished)
            path = output / FRAGMENT
            if share is None:
                path.unlink()
            else:
                path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
            audit.resumed(line, output)
    return line


def damaged_side_files(audit: SmallAudit) -> FaultLine:
    """Damage every other file of an output, and give the command again."""
    line = FaultLine(
        "a side file is empty, cut or garbage",
        "each file but fragments, in finished and unfinished audits: made again, or named in one sentence (exit 2)",
    )
    names = [_name(path, audit.undisturbed) for path in sorted(audit.undisturbed.rglob("*")) if path.is_file()]
    names = [name for name in names if not name.startswith(("scores/", "figures/")) and name != "_SUCCESS"]
    tries = [(name, harm) for name in names for harm in HARMS]
    for index, (name, harm) in enumerate(tries[::12] if audit.quick else tries):
        output = audit.copy("side", unfinished=index % 2 == 1)
        path = output / name
        path.write_bytes(HARMS[harm](path.read_bytes()))
        ended = audit.audit(output)
        named = ended.refused and Path(name).name in ended.said
        line.count(ended.code == 0 or named, audit.difference(output), f"{name} {harm}: {ended}")
    return line


def changed_data(audit: SmallAudit) -> FaultLine:
    """Replace a part of the images by others of the same size in bytes, and resume."""
    line = FaultLine(
        "the data set changes at the same size",
        "images of a folder are replaced: the resumed audit refuses and scores nothing, and goes on once they are back",
    )
    data, output = audit.folder / "images", audit.new("changed")
    data.mkdir(exist_ok=True)
    _write_images(data, audit.images)
    audit.audit(output, data=data)
    expected = fragments(output)
    (output / "_SUCCESS").unlink()
    (output / FRAGMENT).unlink()
    for step in (2,) if audit.quick else (2, 3, 5):
        changed = audit.images.copy()
        changed[::step] = 99 - changed[::step]
        _write_images(data, changed)
        ended = audit.audit(output, data=data)
        refused = ended.refused and "hold another image than was scored" in ended.said
        line.count(refused and not (output / FRAGMENT).exists(), said=ended.said)
    _write_images(data, audit.images)
    ended = audit.audit(output, data=data)
    line.count(ended.code == 0, compare_rows(fragments(output), expected), ended.said)
    return line


def damaged_lock(audit: SmallAudit) -> FaultLine:
    """Leave a damaged lock in unfinished audits, and give the command again: it watches if somebody writes the lock."""
    line = FaultLine("the lock is empty, cut or garbage", "taken over after watching for a driver that writes it again")
    with audit.caught(audit.new("locked"), 1) as driver:
        lock = (audit.folder / "locked" / LOCK).read_bytes()
        end_all(driver)
    outputs = [audit.copy(f"lock-{harm}", unfinished=True) for harm in HARMS]
    for output, harm in zip(outputs, HARMS.values(), strict=True):
        (output / FRAGMENT).unlink()
        (output / LOCK).write_bytes(harm(lock))
    drivers = [audit.start(output) for output in outputs]  # at once, since each watches for half a minute
    for output, driver in zip(outputs, drivers, strict=True):
        said, _ = driver.communicate()
        line.count(driver.returncode == 0, audit.difference(output), said)
    return line


def _write_images(folder: Path, images: np.ndarray) -> None:
    for row, image in enumerate(images):
        data = encode_png(image)
        (folder / f"{row:03}.png").write_bytes(data + bytes(IMAGE_BYTES - len(data)))


def _flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
