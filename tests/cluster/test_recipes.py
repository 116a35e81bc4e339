"""The image for CPUs and the conda recipe: not built by the tests, they agree with the project."""

import re
import shlex
import tomllib
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.cluster_files import CLUSTER, PINS, ROOT
from volgrowth.version import VERSION

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RECIPE: dict[str, Any] = yaml.safe_load((CLUSTER / "conda-recipe.yaml").read_text())
FILE = re.sub(r"\\\n\s*", "", (CLUSTER / "Dockerfile.cpu").read_text())
# what conda-forge calls otherwise
CONDA = {
    "torch": "pytorch",
    "duckdb": "python-duckdb",
    "huggingface-hub": "huggingface_hub",
    "matplotlib": "matplotlib-base",
    "ray": "ray-core",
}


def said(instruction: str) -> list[str]:
    return re.findall(rf"^{instruction} (.*)$", FILE, re.MULTILINE)


def test_the_image_copies_what_is_there_and_no_more():
    copied = {source for line in said("COPY") for source in line.split()[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    ignored = (CLUSTER / "Dockerfile.cpu.dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert {PROJECT["readme"], *PROJECT["license-files"]} <= copied


def test_the_image_installs_extras_that_exist_at_pinned_versions():
    installed = [word for line in said("RUN") if "pip install" in line for word in shlex.split(line)]
    assert f"torch=={PINS['torch']}" in installed
    [extras] = re.findall(r"/tmp/volgrowth\[(.*)\]", " ".join(installed))
    for extra in extras.split(","):
        for one in map(Requirement, PROJECT["optional-dependencies"][extra]):
            assert one.specifier.contains(PINS[canonicalize_name(one.name)]), one
    assert "PIP_CONSTRAINT=/opt/volgrowth/constraints.txt" in said("ARG")


def test_the_image_runs_the_command_as_a_user_without_rights():
    assert said("ENTRYPOINT") == ['["volgrowth"]']
    assert "volgrowth" in PROJECT["scripts"]
    assert said("USER") == ["1000"]
    assert any("--uid 1000 " in line for line in said("RUN"))
    assert f"volgrowth:{VERSION} " in FILE


def test_the_conda_package_needs_what_the_project_needs():
    needed = {CONDA.get(one.name, one.name): str(one.specifier) for one in map(Requirement, PROJECT["dependencies"])}
    python, *run = RECIPE["requirements"]["run"]
    assert dict(line.split() for line in run) == needed
    assert python == f"python {PROJECT['requires-python']}"
    assert set(CONDA) <= {Requirement(one).name for one in PROJECT["dependencies"]}


def test_the_conda_package_is_this_version_of_this_project():
    assert RECIPE["context"]["version"] == VERSION
    assert RECIPE["package"]["name"] == PROJECT["name"]
    [entry] = RECIPE["build"]["python"]["entry_points"]
    assert dict([entry.split(" = ")]) == PROJECT["scripts"]
    assert RECIPE["about"] == {
        "summary": PROJECT["description"],
        "license": PROJECT["license"],
        "license_file": PROJECT["license-files"][0],
    }
    assert (CLUSTER / RECIPE["source"]["path"] / "pyproject.toml").is_file()
