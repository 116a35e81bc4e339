"""The RayJob's invariants.

The manifest was checked once, strictly, against the schemas in KubeRay's own CRDs (v1.5.1, v1.6.0, v1.6.2 and v1.7.0),
which are too big to keep here; the rules of the NetworkPolicy against the same type in the CRD of RayCluster.
"""

import re
from typing import Any

import pytest
from ray._private.ray_constants import RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S

from tests.support.cluster_files import IMAGE, PINS, audit_options, instructions, leaves, rayjob

MANIFESTS = rayjob()
JOB = MANIFESTS["RayJob"]["spec"]
RAY = JOB["rayClusterSpec"]
HEAD = RAY["headGroupSpec"]
[WORKERS] = RAY["workerGroupSpecs"]
PODS = [HEAD["template"], WORKERS["template"]]
SUBMITTER = JOB["submitterPodTemplate"]

ON_DEMAND = [{}, {"eks.amazonaws.com/capacityType": "ON_DEMAND"}, {"karpenter.sh/capacity-type": "on-demand"}]
SPOT = [
    {"cloud.google.com/gke-spot": "true"},
    {"eks.amazonaws.com/capacityType": "SPOT"},
    {"karpenter.sh/capacity-type": "spot"},
]


def container(pod):
    [only] = pod["spec"]["containers"]
    return only


def fits(pod: dict[str, Any], node: dict[str, str]) -> bool:
    """Whether a pod may be put on a node with these labels, as Kubernetes reads node affinity."""

    def holds(rule):
        values, label = rule.get("values"), node.get(rule["key"])
        operators = {"In": lambda: label in values, "NotIn": lambda: label not in values}
        return {**operators, "DoesNotExist": lambda: label is None}[rule["operator"]]()

    terms = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return any(all(map(holds, term["matchExpressions"])) for term in terms["nodeSelectorTerms"])


def admitted(pod: dict[str, str], namespace: str) -> set[int] | str:
    """The ports that the NetworkPolicy opens to a pod with these labels, in `default` unless said otherwise."""
    ports: set[int] = set()
    for rule in MANIFESTS["NetworkPolicy"]["spec"]["ingress"]:
        for peer in rule["from"]:
            there = peer.get("namespaceSelector", {"matchLabels": {"kubernetes.io/metadata.name": "default"}})
            same = there["matchLabels"]["kubernetes.io/metadata.name"] == namespace
            if same and peer["podSelector"]["matchLabels"].items() <= pod.items():
                if "ports" not in rule:
                    return "all"
                ports |= {port["port"] for port in rule["ports"]}
    return ports


def test_kinds_and_versions():
    assert {kind: one["apiVersion"] for kind, one in MANIFESTS.items()} == {
        "RayJob": "ray.io/v1",
        "NetworkPolicy": "networking.k8s.io/v1",
        "ServiceAccount": "v1",
    }
    assert RAY["rayVersion"] == PINS["ray"]
    assert all(IMAGE.fullmatch(container(pod)["image"]) for pod in PODS)


def test_the_entrypoint_is_an_audit_that_the_group_has_room_for():
    options = audit_options(JOB["entrypoint"])
    assert options["ray_address"] == "auto"
    assert options["output"].startswith("s3://")
    assert options["workers"] == WORKERS["maxReplicas"]
    assert (
        str(int(options["gpus_per_worker"])) == container(WORKERS["template"])["resources"]["limits"]["nvidia.com/gpu"]
    )


def test_it_resumes_on_a_new_cluster_and_leaves_nothing_running():
    assert JOB["backoffLimit"] > 0
    assert JOB["shutdownAfterJobFinishes"] is True
    assert "clusterSelector" not in JOB


def test_the_head_is_on_demand_and_takes_no_tasks():
    assert HEAD["rayStartParams"]["num-cpus"] == "0"
    assert not [path for path, _ in leaves(HEAD) if "nvidia.com/gpu" in path]
    assert [fits(HEAD["template"], node) for node in ON_DEMAND] == [True] * 3
    assert [fits(HEAD["template"], node) for node in SPOT] == [False] * 3


def test_workers_are_spot_gpus_from_zero():
    assert RAY["enableInTreeAutoscaling"] is True
    assert (WORKERS["minReplicas"], WORKERS["replicas"]) == (0, 0)
    assert [fits(WORKERS["template"], node) for node in ON_DEMAND] == [False] * 3
    assert [fits(WORKERS["template"], node) for node in SPOT] == [True] * 3
    tolerated = {toleration["key"] for toleration in WORKERS["template"]["spec"]["tolerations"]}
    assert tolerated == {"nvidia.com/gpu", "cloud.google.com/gke-spot"}
    for pod in PODS:
        assert container(pod)["resources"]["requests"] == container(pod)["resources"]["limits"]


def test_a_worker_has_the_time_that_ray_takes_to_drain_it():
    assert WORKERS["template"]["spec"]["terminationGracePeriodSeconds"] > RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S


def test_nothing_is_published():
    assert HEAD["serviceType"] == "ClusterIP"
    assert not HEAD.get("enableIngress")
    keys = {key for path, _ in leaves(list(MANIFESTS.values())) for key in path}
    assert not keys & {"hostNetwork", "hostPort", "nodePort", "headService"}


@pytest.mark.parametrize("pod", PODS, ids=["head", "worker"])
def test_only_ray_its_submitter_and_the_operator_reach_a_pod(pod):
    """The operator asks the dashboard for the job's state over the network: loopback would end every job."""
    policy = MANIFESTS["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    operator = {"app.kubernetes.io/name": "kuberay-operator"}
    name = MANIFESTS["RayJob"]["metadata"]["name"]
    assert admitted(pod["metadata"]["labels"], "default") == "all"
    assert admitted({"ray.io/originated-from-cr-name": name}, "default") == {8265}
    assert admitted(operator, "kuberay-system") == {8265}
    assert admitted(operator, "default") == set()
    assert admitted({"app": "stranger"}, "default") == set()


def test_a_token_is_needed_and_nobody_writes_it_down():
    assert RAY["authOptions"] == {"mode": "token"}
    for path, value in leaves(list(MANIFESTS.values())):
        assert not {"env", "envFrom", "stringData", "data"} & set(path), path
        assert not re.search(r"AKIA|PRIVATE KEY|password", str(value)), path


def test_pods_are_someone_by_the_platform_and_nobody_on_their_node():
    account = MANIFESTS["ServiceAccount"]
    assert {"eks.amazonaws.com/role-arn", "iam.gke.io/gcp-service-account"} == set(account["metadata"]["annotations"])
    assert WORKERS["template"]["spec"]["automountServiceAccountToken"] is False
    assert SUBMITTER["spec"]["automountServiceAccountToken"] is False
    assert SUBMITTER["spec"]["restartPolicy"] == "Never"
    assert not {"command", "args"} & set(container(SUBMITTER))  # KubeRay writes them
    assert container(SUBMITTER)["image"] == container(PODS[0])["image"]
    assert all(pod["spec"]["serviceAccountName"] == account["metadata"]["name"] for pod in PODS)
    for pod in (*PODS, SUBMITTER):
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert str(pod["spec"]["securityContext"]["runAsUser"]) == instructions("USER")[-1]
        assert container(pod)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
