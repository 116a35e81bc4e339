"""aws.yaml goes through Ray's own launcher on a simulated EC2, whose client checks every parameter of the nodes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import botocore.client  # type: ignore[import-untyped]
import botocore.session  # type: ignore[import-untyped]
import pytest
import yaml
from moto import mock_aws

from tests.support.cluster_files import CLUSTER, policy

OPEN = {"0.0.0.0/0", "::/0"}


@dataclass
class Launched:
    """What is on EC2 after a head and a worker were launched, and the calls that Ray made meanwhile."""

    nodes: dict[str, dict[str, Any]]
    groups: list[dict[str, Any]]
    bootstrapping: set[str]
    launching: set[str]


@pytest.fixture(scope="module")
def calls() -> Iterator[set[str]]:
    """The AWS calls made so far, in the words of policies."""
    made: set[str] = set()
    call = botocore.client.BaseClient._make_api_call

    def spy(self, operation, arguments):
        made.add(f"{self.meta.service_model.service_name}:{operation}")
        return call(self, operation, arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.client.BaseClient, "_make_api_call", spy)
        yield made


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An account where nothing is yet. What other tests keep in a simulated S3 stays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # Ray puts its ssh key there
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        simulation = mock_aws()
        simulation.start(reset=False)
        yield boto3.client("ec2", "us-west-2")
        simulation.stop(remove_data=False)


def prepare(ec2: Any) -> dict[str, Any]:
    """What the README has people make, and aws.yaml filled in with it."""
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/20")["Subnet"]["SubnetId"]
    group = ec2.create_security_group(GroupName="volgrowth", Description="volgrowth", VpcId=vpc)["GroupId"]
    within = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[within])
    for role in ("head", "worker"):
        boto3.client("iam").create_instance_profile(InstanceProfileName=f"volgrowth-{role}")
    text = (CLUSTER / "aws.yaml").read_text()
    for placeholder, value in {"subnet-REPLACE-PRIVATE": subnet, "sg-REPLACE": group}.items():
        assert placeholder in text
        text = text.replace(placeholder, value)
    return yaml.safe_load(text)


@pytest.fixture(scope="module")
def launched(account: Any, calls: set[str]) -> Launched:
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config

    given = prepare_config(prepare(account))
    calls.clear()
    config = bootstrap_aws(given)
    bootstrapping = set(calls)
    calls.clear()
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, node in config["available_node_types"].items():
        provider.create_node(dict(node["node_config"]), {"ray-user-node-type": name}, 1)
    described = [one for held in account.describe_instances()["Reservations"] for one in held["Instances"]]
    nodes = {next(tag["Value"] for tag in one["Tags"] if tag["Key"] == "ray-user-node-type"): one for one in described}
    some = provider.non_terminated_nodes({})[0]
    provider.set_node_tags(some, {"ray-node-status": "up-to-date"})
    provider.terminate_node(some)
    launching = set(calls)
    return Launched(nodes, account.describe_security_groups()["SecurityGroups"], bootstrapping, launching)


def test_a_head_on_demand_and_spot_gpus(launched):
    assert set(launched.nodes) == {"head", "spot-gpu"}
    assert "InstanceLifecycle" not in launched.nodes["head"]
    assert launched.nodes["spot-gpu"]["InstanceLifecycle"] == "spot"


def test_nothing_is_open_to_the_world(launched):
    """Ray opens ssh to everyone in groups it makes itself, so it must not have made or changed one."""
    assert not {"ec2:CreateSecurityGroup", "ec2:AuthorizeSecurityGroupIngress"} & launched.bootstrapping
    rules = [rule for group in launched.groups for rule in group["IpPermissions"]]
    assert len(rules) == 1
    assert not [
        block for rule in rules for block in rule["IpRanges"] + rule["Ipv6Ranges"] if set(block.values()) & OPEN
    ]
    for node in launched.nodes.values():
        assert [group["GroupName"] for group in node["SecurityGroups"]] == ["volgrowth"]
        assert not node.get("PublicIpAddress")


def test_nodes_have_roles_and_no_keys(launched):
    profiles = {name: node["IamInstanceProfile"]["Arn"].rpartition("/")[2] for name, node in launched.nodes.items()}
    assert profiles == {"head": "volgrowth-head", "spot-gpu": "volgrowth-worker"}
    assert not [call for call in launched.bootstrapping if call.startswith("iam:Create")]  # Ray's own has all of S3
    assert all(node["MetadataOptions"]["HttpTokens"] == "required" for node in launched.nodes.values())


def test_nodes_carry_the_tag_that_the_policy_asks_for(launched):
    for node in launched.nodes.values():
        assert {"Key": "ray-cluster-name", "Value": "volgrowth"} in node["Tags"]


def test_the_head_may_do_what_it_does(launched):
    granted = {action for one in policy("aws-head-policy.json") for action in _actions(one)}
    assert launched.launching == {action for action in granted if action.startswith("ec2:")}


def test_the_head_changes_only_nodes_of_its_cluster():
    """Statements on all resources only look; every other one that changes a node asks for the cluster's tag."""
    tag = {"aws:RequestTag/ray-cluster-name": "volgrowth"}, {"ec2:ResourceTag/ray-cluster-name": "volgrowth"}
    for one in policy("aws-head-policy.json"):
        if one["Resource"] == "*":
            assert all(re.search(r":(Describe|Get)", action) for action in _actions(one))
        elif "instance/*" in one["Resource"]:
            asked = one["Condition"]["StringEquals"]
            assert asked in tag or asked == {"ec2:CreateAction": "RunInstances"}
    [passed] = [one for one in policy("aws-head-policy.json") if _actions(one) == ["iam:PassRole"]]
    assert passed["Condition"] == {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}


def test_policies_name_actions_that_exist():
    session = botocore.session.get_session()
    for name in ("aws-head-policy.json", "aws-bucket-policy.json"):
        for action in [action for one in policy(name) for action in _actions(one)]:
            service, _, operation = action.partition(":")
            known = {*session.get_service_model(service).operation_names, "PassRole", "ListBucket"}
            assert operation in known, action


def _actions(statement: dict[str, Any]) -> list[str]:
    return [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
