"""What cluster/README.md says and has people type fits the files beside it."""

import re
import shlex
from typing import Any

import pytest

from tests.support.cluster_files import CLUSTER, PINS, README, ROOT, audit_options, commands, launcher, policy, rayjob

RAY = [shlex.split(line.removesuffix(" > /dev/null"))[1:] for line in commands() if line.startswith("ray ")]
TYPED = "\n".join(commands())


def parse(arguments: list[str]) -> dict[str, Any]:
    """The options of a `ray` command as Ray reads them; it exits on a wrong one."""
    from ray.scripts.scripts import cli

    group, context = cli, None
    while hasattr(group, "resolve_command"):
        context = group.make_context("ray", list(arguments), parent=context)
        _, group, arguments = group.resolve_command(context, [*context._protected_args, *context.args])
    return group.make_context(group.name, arguments, parent=context).params


@pytest.mark.parametrize("arguments", RAY, ids=" ".join)
def test_ray_knows_the_command(arguments):
    parse(arguments)


def test_the_token_of_the_launcher_is_not_printed():
    assert [line for line in commands() if "get-auth-token" in line] == ["ray get-auth-token --generate > /dev/null"]


def test_the_submitted_job_is_an_audit_on_the_forwarded_port():
    [submitted] = [parse(arguments) for arguments in RAY if arguments[:2] == ["job", "submit"]]
    assert submitted["address"] == "http://127.0.0.1:8265"
    options = audit_options(shlex.join(submitted["entrypoint"]))
    assert options["ray_address"] == "auto"
    assert options["gpus_per_worker"] == 1
    for cloud in ("aws", "gcp"):
        assert options["workers"] == launcher(cloud)["max_workers"]


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) > 8
    for link in links:
        name, _, anchor = link.partition("#")
        target = (CLUSTER / name) if name else CLUSTER / "README.md"
        assert target.exists(), link
        if anchor:
            found = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            titles = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in found}
            assert anchor in titles, link
    assert {file.name for file in CLUSTER.iterdir()} - {"README.md", "Dockerfile.dockerignore"} <= set(links)


def test_files_that_are_typed_exist():
    for name in re.findall(r"file://(\S+)|--file (\S+)", TYPED):
        assert (ROOT / "".join(name)).is_file(), name


def test_versions_are_the_pinned_ones():
    assert set(re.findall(r"ray\[default\]==([\d.]+)", README)) == {PINS["ray"]}


def test_the_names_of_the_clouds_identities_are_those_in_the_files():
    nodes = launcher("aws")["available_node_types"]
    profiles = {node["node_config"]["IamInstanceProfile"]["Name"] for node in nodes.values()}
    assert profiles == {f"volgrowth-{role}" for role in re.findall(r"for role in (\w+) (\w+)", TYPED)[0]}
    passed = next(one["Resource"] for one in policy("aws-head-policy.json") if one["Action"] == "iam:PassRole")
    node = nodes["head"]["node_config"]
    places = [place for one in policy("aws-head-policy.json") for place in _listed(one["Resource"])]
    for name in (*node["SubnetIds"], *node["SecurityGroupIds"]):
        assert [place for place in places if place.endswith(f"/{name}")]
    assert passed.rpartition("/")[2] == nodes["spot-gpu"]["node_config"]["IamInstanceProfile"]["Name"]
    account = rayjob()["ServiceAccount"]["metadata"]
    role, email = account["annotations"].values()
    assert f"--name {account['name']} --role-name {role.rpartition('/')[2]} " in TYPED
    assert f"service-accounts create {email.partition('@')[0]}\n" in TYPED
    assert f"[default/{account['name']}]" in TYPED


def test_the_operator_is_installed_where_the_network_policy_looks_for_it():
    peers = [peer for rule in rayjob()["NetworkPolicy"]["spec"]["ingress"] for peer in rule["from"]]
    [namespace] = [peer["namespaceSelector"]["matchLabels"] for peer in peers if "namespaceSelector" in peer]
    assert f"--namespace {namespace['kubernetes.io/metadata.name']} " in TYPED


def test_the_network_on_gcp_is_the_one_of_the_nodes_and_closed():
    [tag] = {
        tag for node in launcher("gcp")["available_node_types"].values() for tag in node["node_config"]["tags"]["items"]
    }
    rules = [line for line in commands() if "firewall-rules create" in line]
    assert len(rules) == 2
    assert all(f"--target-tags={tag} " in rule for rule in rules)
    assert {f"--source-tags={tag}", "--source-ranges=35.235.240.0/20"} == set(
        re.findall(r"--source-\S+", "\n".join(rules))
    )
    assert "0.0.0.0/0" not in README


def test_placeholders_look_the_same_everywhere():
    """So that the README's grep finds them all."""
    for file in CLUSTER.iterdir():
        strange = re.findall(r"<[a-z-]+>|\bYOUR[-_]\w+|\bTODO\b|\b(?!123)\d{12}\b", file.read_text())
        assert not strange, (file, strange)


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
