"""Inputs that somebody made to do harm: bombs, configurations of networks of any size, ids that are commands."""

import csv
import json
import os
import struct
import tarfile
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.benchmark.faults.small_audit import FaultLine, SmallAudit, command, fragments
from jobs.benchmark.processes import resident_mib
from volgrowth.demo.cases import write_image_parquet
from volgrowth.records import Status
from volgrowth.sources import encode_png

BOMB_ROWS = range(20, 28)
SPARSE_BYTES, VALUE_BYTES, SIDE = 20 * 10**9, 100 * 10**6, 60_000
# what an audit of a bomb may add to the memory that this process had at its peak
MOST_MIB = 1_024
IDS = ("::error::pwned", "\x1b[31mred", "##[error]x", "=1+1", "@SUM(1)", "a\u202egnp", "two\n::error::lines", "\r::x")
FORBIDDEN = ("::", "##[")
CONFIGURATIONS: dict[str, object] = {
    "block_out_channels": [65_536, 65_536],
    "sample_size": 60_000,
    "layers_per_block": 10**6,
}


def bombs(audit: SmallAudit) -> FaultLine:
    """Audit images that are small on disk and huge in memory."""
    line = FaultLine(
        "bombs among the images",
        f"a sparse tar member of 20 GB, Parquet of 100 MB values, PNG of {SIDE:,} x {SIDE:,} pixels: rows with a "
        f"reason, all others scored, less than {MOST_MIB:,} MiB of memory more",
    )
    writers = [_sparse_tar, _huge_pixels] if audit.quick else [_sparse_tar, _huge_pixels, _huge_values]
    for writer in writers:
        data, output = audit.new(f"bomb{writer.__name__}"), audit.new("bombed")
        data.mkdir()
        writer(data, [encode_png(image) for image in audit.images])
        before = _peak()
        ended = audit.audit(output, "--max-failed", "0.2", "--set", f"max_bytes={VALUE_BYTES // 10}", data=data)
        grown = _peak() - before
        states = fragments(output)["status"].to_pylist()[BOMB_ROWS.start : BOMB_ROWS.stop]
        refused = len(states) == len(BOMB_ROWS) and Status.OK.value not in states
        said = f"{writer.__name__} {ended.code} {grown:.0f} MiB {states} {ended.said}"
        line.count(ended.code == 0 and refused and grown < MOST_MIB, audit.difference(output, BOMB_ROWS), said)
    return line


def model_bombs(audit: SmallAudit) -> FaultLine:
    """Audit models whose configuration asks for a network or images of any size."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    line = FaultLine(
        "bombs among the models", "65,536 channels, images 60,000 pixels wide, a million layers: refused (exit 2)"
    )
    network = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    model = audit.new("model")
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(model)
    path = model / "unet" / "config.json"
    saved = json.loads(path.read_text())
    for name, value in CONFIGURATIONS.items():
        path.write_text(json.dumps({**saved, name: value}))
        before = _peak()
        ended = command(["audit", str(model), str(audit.data), "--output", str(audit.new("none")), "--engine", "local"])
        line.count(ended.refused and _peak() - before < MOST_MIB, said=f"{name}: {ended}")
    return line


def evil_ids(audit: SmallAudit) -> FaultLine:
    """Audit images whose ids are commands to a CI system, a terminal or a spreadsheet."""
    line = FaultLine(
        "ids that are commands",
        "`::error::`, escapes of terminals, formulas: audit, check, curate and report print none of them as such, and "
        "ids read back the same",
    )
    data, output, table = audit.new("evil"), audit.new("evil-out"), audit.folder / "evil.csv"
    data.mkdir()
    names = [IDS[row % len(IDS)] + str(row) for row in range(len(audit.images))]
    write_image_parquet(data / "0.parquet", audit.images, names)
    given = [
        audit.arguments(output, "--id-column", "name", data=data),
        ["check", str(output), "--markdown"],
        ["check", str(output)],
        ["curate", str(output), "--top-k", "40", "--list", str(table)],
        ["curate", str(output), "--list", str(table)],
        ["report", str(output)],
    ]
    for arguments in given:
        ended = command(arguments)
        line.count(_is_harmless(ended.said) and "Traceback" not in ended.said, said=f"{arguments[0]}: {ended}")
    ids = fragments(output)["image_id"].to_pylist()
    line.count(ids == names, audit.difference(output), "ids of the fragments")
    with table.open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    line.count(not any(cell.startswith(("=", "@")) for cell in cells), said="cells of the list")
    return line


def _is_harmless(said: str) -> bool:
    """Return whether no line is a command, and no character a control."""
    lines = said.split("\n")
    return not any(line.lstrip().startswith(FORBIDDEN) or not _visible(line) for line in lines)


def _visible(line: str) -> bool:
    return all(character.isprintable() or character == "\t" for character in line)


def _sparse_tar(folder: Path, images: list[bytes]) -> None:
    """Write a tar whose bombs are sparse members: one block of data, at the end of 20 GB."""
    with (folder / "0.tar").open("wb") as file:
        for row, image in enumerate(images):
            member = tarfile.TarInfo(f"{row:03}.png")
            member.size = len(image)
            if row in BOMB_ROWS:
                file.write(_sparse_header(member) + bytes(512))
            else:
                file.write(member.tobuf(tarfile.GNU_FORMAT) + image + bytes(-len(image) % 512))
        file.write(bytes(1024))


def _sparse_header(member: tarfile.TarInfo) -> bytes:
    member.type, member.size = tarfile.GNUTYPE_SPARSE, 512
    head = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    for place, number in ((386, SPARSE_BYTES - 512), (398, 512), (483, SPARSE_BYTES)):
        head[place : place + 12] = b"\x80" + number.to_bytes(11, "big")
    # the checksum counts its own eight bytes as blanks
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def _huge_values(folder: Path, images: list[bytes]) -> None:
    """Write Parquet of a few kB whose bombs are 100 MB of zeros each."""
    huge = bytes(VALUE_BYTES)
    cells = [huge if row in BOMB_ROWS else image for row, image in enumerate(images)]
    pq.write_table(pa.table({"image": pa.array(cells, pa.binary())}), folder / "0.parquet", compression="zstd")


def _huge_pixels(folder: Path, images: list[bytes]) -> None:
    """Write Parquet whose bombs are PNG files of few bytes and very many pixels."""
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(10**6))) + _chunk(b"IEND")
    )
    cells = [bomb if row in BOMB_ROWS else image for row, image in enumerate(images)]
    pq.write_table(pa.table({"image": pa.array(cells, pa.binary())}), folder / "0.parquet")


def _chunk(kind: bytes, data: bytes = b"") -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def _peak() -> float:
    return resident_mib(os.getpid(), peak=True)
