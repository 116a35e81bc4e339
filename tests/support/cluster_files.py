"""The files of the deployment, read for the tests."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
import yaml
from packaging.utils import canonicalize_name

from volgrowth.cli import app
from volgrowth.version import VERSION

ROOT = Path(__file__).parent.parent.parent
CLUSTER = ROOT / "cluster"
README = (CLUSTER / "README.md").read_text()
IMAGE = re.compile(r"\S+/volgrowth:" + re.escape(VERSION))


def pins(path: Path) -> dict[str, str]:
    """Versions by package, from a constraints file."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if line)}


PINS = pins(ROOT / "constraints.txt")
IMAGE_PINS = pins(CLUSTER / "constraints.txt")


def instructions(keyword: str) -> list[str]:
    """What stands after a keyword of the Dockerfile, for each time it is used."""
    text = re.sub(r"^\s*#.*\n", "", (CLUSTER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [line.partition(" ")[2] for line in lines if line.startswith(f"{keyword} ")]


def environment() -> dict[str, str]:
    """ENV of the Dockerfile."""
    return dict(part.split("=", 1) for line in instructions("ENV") for part in shlex.split(line))


def rayjob() -> dict[str, dict[str, Any]]:
    """The manifests of rayjob.yaml, by kind."""
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all((CLUSTER / "rayjob.yaml").read_text())}


def launcher(cloud: str) -> dict[str, Any]:
    """What `ray up` is given."""
    return yaml.safe_load((CLUSTER / f"{cloud}.yaml").read_text())


def policy(name: str) -> list[dict[str, Any]]:
    """The statements of a policy of AWS."""
    return json.loads((CLUSTER / name).read_text())["Statement"]


def gcp_role(name: str) -> list[str]:
    """The permissions of a custom role of GCP."""
    return yaml.safe_load((CLUSTER / f"gcp-{name}-role.yaml").read_text())["includedPermissions"]


def commands() -> list[str]:
    """What the README has people type."""
    blocks = re.findall(r"^```\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    return [line.strip() for block in blocks for line in block.splitlines()]


def leaves(tree: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """Every value of nested dicts and lists, with the keys that lead there."""
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, (*path, key))
    else:
        yield path, tree


def audit_options(command: str) -> dict[str, Any]:
    """The options of a call of jobs/audit.py in the image, as the command line reads them; it exits on a wrong one."""
    python, script, *arguments = shlex.split(command)
    job = Path(script).relative_to("/opt/volgrowth")
    assert python == "python"
    assert (ROOT / job).is_file()
    assert f"{job.parent} /opt/volgrowth/{job.parent}" in instructions("COPY")
    cli: Any = typer.main.get_command(app)
    return cli.commands[job.stem].make_context(job.stem, arguments).params
