"""The Dockerfile. The image itself is not built here: that needs Docker and registries."""

import re
import shlex
import tomllib
from importlib.metadata import requires, version

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.cluster_files import CLUSTER, IMAGE_PINS, PINS, ROOT, environment, instructions
from volgrowth.version import VERSION

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTALLED = [word for line in instructions("RUN") if "pip install" in line for word in shlex.split(line)]
EXTRAS = re.findall(r"/tmp/volgrowth\[(.*)\]", " ".join(INSTALLED))[0].split(",")


@pytest.mark.parametrize("name", ["ray", "torch"])
def test_versions_are_those_of_the_tests(name):
    written = [Requirement(word) for word in INSTALLED if re.match(rf"{name}\b", word)]
    assert [str(requirement.specifier) for requirement in written] == [f"=={PINS[name]}"]
    assert version(name).partition("+")[0] == PINS[name]


def test_the_pins_of_the_image_agree_with_those_of_the_tests():
    assert {name: PINS[name] for name in PINS.keys() & IMAGE_PINS} == {
        name: IMAGE_PINS[name] for name in PINS.keys() & IMAGE_PINS
    }


def test_everything_asked_for_is_pinned_to_a_version_that_will_do():
    """pip resolved all of it, what these need in turn too, when cluster/constraints.txt was made."""
    asked = [*PROJECT["dependencies"], *(one for extra in EXTRAS for one in PROJECT["optional-dependencies"][extra])]
    asked += [word for word in INSTALLED if re.match(r"boto3|google", word)]
    asked += [one for one in requires("ray") or [] if "extra" not in one or 'extra == "default"' in one]
    wanted = [Requirement(one) for one in asked]
    wanted = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": "default"})]
    assert len(wanted) > 40
    together = {**IMAGE_PINS, **PINS}
    for one in wanted:
        pinned = together.get(canonicalize_name(one.name))
        assert pinned, one
        assert one.specifier.contains(pinned, prereleases=True), f"{one} is pinned to {pinned}"


def test_pip_is_told_of_both_lists():
    told = [shlex.split(line)[0].partition("=")[2].split() for line in instructions("ARG") if "PIP_CONSTRAINT" in line]
    copied = {source for line in instructions("COPY") for source in line.split()[:-1]}
    assert told == [["/opt/volgrowth/constraints.txt", "/opt/volgrowth/cluster/constraints.txt"]]
    assert {"constraints.txt", "cluster/constraints.txt"} <= copied


def test_python_is_the_one_the_pins_are_for():
    [base] = instructions("FROM")
    python = re.fullmatch(r"python:(3\.\d+)-slim-\w+", base)
    assert python
    assert f"on Python {python[1]}" in (ROOT / "constraints.txt").read_text().splitlines()[0]
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python[1])


def test_what_is_copied_is_there_and_all_else_stays_out():
    sources = {source for line in instructions("COPY") for source in line.split()[:-1]}
    first, *rest = [
        line for line in (CLUSTER / "Dockerfile.dockerignore").read_text().split("\n") if line[:1] not in "#"
    ]
    assert first == "*"
    assert {line[1:] for line in rest if line.startswith("!")} == sources
    assert all((ROOT / source).exists() for source in sources)
    assert {PROJECT["readme"], *PROJECT["license-files"]} <= sources


def test_a_user_without_rights_who_needs_a_token():
    assert int(instructions("USER")[-1]) > 0
    assert f"--uid {instructions('USER')[-1]} " in " ".join(instructions("RUN"))
    assert environment()["RAY_AUTH_MODE"] == "token"
    assert environment()["HOME"] == "/home/ray"
    assert not re.search(r"KEY|SECRET|TOKEN|PASSWORD", " ".join(environment()))


def test_nothing_stands_in_the_way_of_the_cluster_launcher():
    """It runs `IMAGE bash` with login shells, copies by rsync and starts workers by ssh."""
    assert not instructions("ENTRYPOINT")
    assert not instructions("EXPOSE")
    assert "PATH" not in environment()
    assert {"openssh-client", "procps", "rsync"} <= set(" ".join(instructions("RUN")).split())


def test_the_tag_is_the_version_everywhere():
    for file in CLUSTER.iterdir():
        tags = re.findall(r"volgrowth:([\w.]+)", re.sub(r"factory:\w+:\w+", "", file.read_text()))
        assert set(tags) <= {VERSION}, file
