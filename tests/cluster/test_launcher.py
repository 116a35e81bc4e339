"""What `ray up` is given, checked by the Ray that is installed: its schema, its defaults, its command line.

The nodes of gcp.yaml were checked once against the type Instance of Google's discovery document (compute v1), which
the tests do not have; those of aws.yaml are launched in test_aws.
"""

import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from ray.autoscaler._private import node_launcher
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.sdk import get_docker_host_mount_location
from ray.scripts.scripts import start

from tests.support.cluster_files import IMAGE, README, environment, gcp_role, instructions, launcher, leaves

CLOUDS = ["aws", "gcp"]


@pytest.fixture(params=CLOUDS)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return launcher(request.param)


def started(commands: list[str]) -> dict[str, Any]:
    """The options of the only `ray start` among commands, as Ray reads them; it exits on a wrong one."""
    [command] = [command for command in commands if "ray start" in command]
    words = shlex.split(command.partition("ray start ")[2])
    return start.make_context("start", words).params


@pytest.mark.parametrize("cloud", CLOUDS)
def test_ray_accepts_it_and_would_not_accept_anything(cloud):
    validate_config(prepare_config(launcher(cloud)))
    wrongs: list[dict[str, Any]] = [
        {"docker": {"tag": "1"}},
        {"auth": {"ssh_key": "x"}},
        {"max_workers": "8"},
        {"workers": {}},
    ]
    for wrong in wrongs:
        with pytest.raises(jsonschema.ValidationError):
            validate_config(prepare_config({**launcher(cloud), **wrong}))


def test_dashboard_and_jobs_are_on_loopback_and_a_token_is_needed(config):
    head, worker = started(config["head_start_ray_commands"]), started(config["worker_start_ray_commands"])
    assert head["head"]
    assert head["dashboard_host"] == "127.0.0.1"
    assert head["autoscaling_config"] == "~/ray_bootstrap_config.yaml"
    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}"
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        [command] = [command for command in commands if "ray start" in command]
        assert command.startswith("export RAY_AUTH_MODE=token;")


def test_the_token_is_where_the_image_looks_and_only_its_user_reads_it(config):
    [(mounted, local)] = config["file_mounts"].items()
    assert mounted == f"{environment()['HOME']}/.ray/auth_token"
    assert local == "~/.ray/auth_token"
    on_host = get_docker_host_mount_location(config["cluster_name"]) + mounted
    own, close, *others = [command for command in config["initialization_commands"] if on_host in command]
    assert own == f"sudo chown {instructions('USER')[-1]} {on_host}"
    assert close == f"sudo chmod 600 {on_host}"
    assert not others


def test_no_secret_stands_on_a_command_line(config):
    """Command lines are seen by everyone on a machine, and stand in the launcher's log."""
    logins = [shlex.split(command) for command in config["initialization_commands"] if "docker login" in command]
    assert all("--password-stdin" in words for words in logins)
    for path, value in leaves(config):
        assert not re.search(r"--password(?!-stdin)|-p \$|auth_token=|RAY_AUTH_TOKEN=", str(value)), path
        assert "chmod 644" not in str(value)


def test_the_image_is_ours_from_a_registry_that_the_node_logs_in_to(config):
    image = config["docker"]["image"]
    assert IMAGE.fullmatch(image)
    assert any(image.partition("/")[0] in shlex.split(command) for command in config["initialization_commands"])
    assert not config["setup_commands"] + config["head_setup_commands"] + config["worker_setup_commands"]


def test_nodes_are_reached_by_the_platform_and_not_by_a_port(config):
    assert config["provider"]["use_internal_ips"] is True
    assert config["auth"]["ssh_proxy_use_node_id"] is True
    assert re.match(
        r"aws ssm start-session .*--target %h|gcloud .*start-iap-tunnel %h %p", config["auth"]["ssh_proxy_command"]
    )
    assert "security_group" not in config["provider"]


def test_an_idle_head_and_workers_from_zero(config):
    head, workers = config["available_node_types"][config["head_node_type"]], config["available_node_types"]["spot-gpu"]
    assert head["resources"] == {"CPU": 0}
    assert (workers["min_workers"], workers["max_workers"]) == (0, config["max_workers"])
    assert workers["resources"]["GPU"] == 1
    assert config["provider"]["cache_stopped_nodes"] is False


def test_no_credentials(config):
    for path, value in leaves(config):
        assert not re.search(r"credential|secret|password", str(path[-1]), re.IGNORECASE)
        assert not re.search(r"AKIA|PRIVATE KEY", str(value)), path
    assert "ssh_private_key" not in config["auth"]  # Ray makes a key of its own


def test_nodes_on_gcp():
    nodes = {name: node["node_config"] for name, node in launcher("gcp")["available_node_types"].items()}
    for node in nodes.values():  # Ray adds an external address to a node without interfaces
        assert [set(interface) for interface in node["networkInterfaces"]] == [{"subnetwork"}]
        assert len(node["serviceAccounts"]) == 1
    emails = {name: node["serviceAccounts"][0]["email"].partition("@")[0] for name, node in nodes.items()}
    assert emails == {"head": "volgrowth-head", "spot-gpu": "volgrowth-worker"}
    google = "https://www.googleapis.com/auth"
    scopes = {name: set(node["serviceAccounts"][0]["scopes"]) for name, node in nodes.items()}
    assert scopes == {
        "head": {f"{google}/compute", f"{google}/devstorage.read_write"},
        "spot-gpu": {f"{google}/devstorage.read_write"},
    }
    assert "scheduling" not in nodes["head"]
    assert nodes["spot-gpu"]["scheduling"]["provisioningModel"] == "SPOT"
    assert nodes["spot-gpu"]["scheduling"]["instanceTerminationAction"] == "DELETE"
    zone = launcher("gcp")["provider"]["availability_zone"]
    assert all(zone in Path(node["disks"][0]["initializeParams"]["diskType"]).parts for node in nodes.values())


def test_the_head_on_gcp_may_do_what_it_does_and_only_with_its_nodes():
    """What Ray's node provider calls: instances are listed, read, made with a disk, labelled and deleted."""
    provider = Path(node_launcher.__file__).with_name("gcp").joinpath("node.py").read_text()  # needs Google's client
    asked = {name.rpartition(".")[2] for name in gcp_role("nodes")}
    called = set(re.findall(r"instances\(\)\s*\.(\w+)\(", provider))
    assert called == {"list", "get", "setLabels", "insert", "delete", "stop", "start"}  # nodes are not stopped here
    assert launcher("gcp")["provider"]["cache_stopped_nodes"] is False
    assert {"create", "delete", "get", "setLabels"} <= asked
    assert set(gcp_role("project")) == {
        "compute.instances.list",
        "compute.subnetworks.use",
        "compute.zoneOperations.get",
    }
    assert not re.search(r"instanceAdmin|roles/(owner|editor|compute\.admin)|cloud-platform", README)
    [head] = re.findall(r"TAG_RAY_NODE_NAME: \"ray-\{\}-worker\"", inspect.getsource(node_launcher))
    assert head
    cluster, zone = launcher("gcp")["cluster_name"], launcher("gcp")["provider"]["availability_zone"]
    assert f"ZONE=projects/REPLACE-PROJECT/zones/{zone}\n" in README
    for kind in ("instances", "disks"):
        assert f"resource.name.startsWith('$ZONE/{kind}/ray-{cluster}-')" in README
