"""Outputs that somebody else made: what their manifest names is neither run nor opened."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from jobs.benchmark.faults.small_audit import Ended, FaultLine, SmallAudit
from jobs.benchmark.processes import in_repository
from volgrowth.storage.sealing import opened_json, sealed_json

MODULE_NAME = "somebody_elses_model"


def forged_outputs(audit: SmallAudit) -> FaultLine:
    """Run commands on an audit whose manifest names a module beside them and other data; undo a forged receipt."""
    line = FaultLine(
        "an output is somebody else's",
        "its manifest names code and data, a receipt names a folder: verify, report, curate --apply and --undo run "
        "none, copy none and remove none without --trust-output",
    )
    there = audit.new("forged-here")
    there.mkdir()
    ran = there / "ran"
    (there / f"{MODULE_NAME}.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    output = audit.copy("forged")
    _forge(output / "manifest.json", MODULE_NAME, str(_folder_of_others(audit)))
    copied = audit.new("forged-copy")
    for arguments in (
        ["verify", str(output), "--samples", "8", "--engine", "local"],
        ["curate", str(output), "--top-k", "3", "--apply", str(copied)],
    ):
        ended = _in_folder(there, arguments)
        kept = not ran.exists() and not copied.exists()
        line.count(ended.refused and "--trust-output" in ended.said and kept, said=f"{arguments[0]}: {ended}")
    ended = _in_folder(there, ["report", str(output)])  # it may do without pictures
    line.count(ended.code in (0, 2) and "Traceback" not in ended.said and not ran.exists(), said=f"report: {ended}")
    precious = audit.new("precious")
    precious.mkdir()
    (precious / "mine.txt").write_text("kept")
    (precious / ".curation.json").write_text(json.dumps({"files": {"mine.txt": "0"}, "data": "x", "rows": 1}))
    ended = _in_folder(there, ["curate", "--undo", str(precious)])
    line.count(ended.refused and (precious / "mine.txt").exists(), said=f"undo: {ended}")
    return line


def _forge(path: Path, module: str, data: str) -> None:
    manifest: dict[str, Any] = opened_json(path.read_bytes())
    manifest["model"]["name"] = manifest["config"]["model"] = f"factory:{module}:make"
    manifest["data"]["name"] = manifest["config"]["data"] = data
    path.write_bytes(sealed_json(manifest))


def _folder_of_others(audit: SmallAudit) -> Path:
    """Return a copy of the data set at another place, as if it were private."""
    private = audit.new("private")
    private.mkdir()
    for path in audit.data.iterdir():
        (private / path.name).write_bytes(path.read_bytes())
    return private


def _in_folder(folder: Path, arguments: list[str]) -> Ended:
    """Run a command in a process of its own, whose working directory is `folder`."""
    program = Path(sys.executable).parent / "volgrowth"
    found = subprocess.run(
        [program, *arguments],
        cwd=folder,
        env=in_repository(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return Ended(found.returncode, found.stdout)
