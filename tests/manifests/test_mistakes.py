"""Each of these mistakes has been made by somebody; each is planted here, and must be named."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.manifests.__main__ import faults_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.manifests.rendering import Object

# Ray's own use of pydantic.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SERVICE, POOL = "RayService/dreamserve", "RayCluster/dreamserve-pool"
HEAD = "spec.headGroupSpec.template.spec"
WORKER = "spec.workerGroupSpecs.0.template.spec"
FRONTEND = "spec.rayClusterConfig.workerGroupSpecs.0.template.spec"
REMOVED = object()

MISTAKES: list[tuple[str, str, Any, str]] = [
    # Misspelt keys, wrong types, things left out.
    ("NetworkPolicy/names", "spec.podSelectr", {}, "podSelectr"),
    (SERVICE, "spec.rayClusterConfig.autoscalerOption", {}, "autoscalerOption"),
    (SERVICE, "spec.serveService.spec.prots", [], "prots"),
    (POOL, "spec.workerGroupSpecs.0.maxReplicas", "eight", "eight"),
    (POOL, "spec.workerGroupSpecs.0.groupName", REMOVED, "groupName"),
    (POOL, f"{WORKER}.terminationGracePeriodSecond", 120, "terminationGracePeriodSecond"),
    (POOL, f"{WORKER}.containers.0.imagePullPolicy", 3, "imagePullPolicy"),
    ("ServiceMonitor/dreamserve", "spec.endpoint", [], "endpoint"),
    ("StatefulSet/dreamserve-redis", "spec.serviceName", 7, "serviceName"),
    # The Serve configuration, which is a string.
    (
        SERVICE,
        "spec.serveConfigV2",
        ("max_replicas_per_node", "max_replica_per_node"),
        "max_replica_per_node",
    ),
    (SERVICE, "spec.serveConfigV2", ("min_replicas", "min_replica"), "min_replica"),
    (
        SERVICE,
        "spec.serveConfigV2",
        ("build_from_environment", "build_from_enviroment"),
        "build_from_enviroment",
    ),
    (
        SERVICE,
        "spec.serveConfigV2",
        ("service.http.app", "service.http.application"),
        "service.http.application",
    ),
    (SERVICE, "spec.serveConfigV2", ("name: Frontend", "name: Front"), "no deployment Front"),
    (SERVICE, "spec.serveConfigV2", ("port: 8000", "port: 8001"), "Serve listens at"),
    (SERVICE, "spec.serveConfigV2", ("num_cpus: 1", "num_cpus: many"), "num_cpus"),
    # Names that nothing has.
    (
        "ConfigMap/dreamserve-settings",
        "data.DREAMSERVE_WORKER",
        "1",
        "nothing reads the variable DREAMSERVE_WORKER",
    ),
    ("ConfigMap/dreamserve-settings", "data.AWS_REGION", "x", "nothing reads the variable AWS_REGION"),
    (
        "ConfigMap/dreamserve-settings",
        "data.RAY_USAGE_STAT",
        "0",
        "nothing reads the variable RAY_USAGE_STAT",
    ),
    ("ConfigMap/dreamserve-settings", "data.DREAMSERVE_WORKERS", "many", "DREAMSERVE_WORKERS"),
    ("ConfigMap/dreamserve-settings", "data.DREAMSERVE_AUTH", "yes", "DREAMSERVE_AUTH"),
    (POOL, f"{WORKER}.containers.0.env.0.valueFrom.secretKeyRef.key", "database", "no key database"),
    (POOL, f"{WORKER}.containers.0.env.0.valueFrom.secretKeyRef.name", "secrets", "in secrets"),
    (POOL, f"{WORKER}.containers.0.envFrom.0.configMapRef.name", "settings", "which is not there"),
    (POOL, f"{WORKER}.containers.0.image", "dreamserve-cuda:0.2.0", "no target 'cuda'"),
    (POOL, f"{WORKER}.containers.0.image", "dreamserve-gpu:0.0.1", "the version in pyproject.toml"),
    ("StatefulSet/dreamserve-redis", "spec.template.spec.containers.0.image", "redis:latest", "not pinned"),
    (
        POOL,
        f"{HEAD}.containers.0.lifecycle.postStart.exec.command.1",
        "pools",
        "no command `dreamserve pools`",
    ),
    (POOL, f"{WORKER}.volumes.3.persistentVolumeClaim.claimName", "weights", "no claim weights"),
    (POOL, f"{WORKER}.containers.0.volumeMounts.0.name", "shared", "no volume shared"),
    (POOL, "spec.rayVersion", "2.59.0", "rayVersion is 2.59.0"),
    (POOL, "spec.headGroupSpec.rayStartParams.num-cpu", "0", "no option --num-cpu"),
    (POOL, "spec.gcsFaultToleranceOptions.redisAddress", "redis://dreamserve-redis:6380", "no service at"),
    # Ports and pods.
    (SERVICE, f"{FRONTEND}.containers.0.ports.0.containerPort", 8001, "port"),
    (POOL, f"{HEAD}.containers.0.ports.0.containerPort", 6380, "port gcs of Ray is 6379"),
    ("NetworkPolicy/users-to-frontends", "spec.ingress.0.ports.0.port", 80801, "no port 80801"),
    (
        "NetworkPolicy/within-pool-cluster",
        "spec.podSelector.matchLabels",
        {"dreamserve/cluster": "pol"},
        "no pod",
    ),
    (
        "PodMonitor/dreamserve-ray-heads",
        "spec.podMetricsEndpoints.0.port",
        "as-metric",
        "no port named as-metric",
    ),
    ("ServiceMonitor/dreamserve", "spec.endpoints.0.port", "http", "no port named http"),
    ("PodDisruptionBudget/dreamserve-frontends", "spec.selector.matchLabels", {"app": "x"}, "selects no pod"),
    ("Service/dreamserve-redis", "spec.ports.0.targetPort", "reddis", "no port reddis"),
    # The rules of the house.
    (POOL, f"{WORKER}.securityContext.runAsNonRoot", REMOVED, "runAsNonRoot"),
    (POOL, f"{WORKER}.containers.0.securityContext", {}, "privilege"),
    (POOL, f"{WORKER}.terminationGracePeriodSeconds", 60, "terminationGracePeriodSeconds 60"),
    (POOL, f"{WORKER}.containers.0.env.3.value", "30", "60 s or more"),
    (
        POOL,
        f"{WORKER}.containers.0.lifecycle",
        {"preStop": {"exec": {"command": ["ray", "stop"]}}},
        "preStop",
    ),
    (
        POOL,
        f"{WORKER}.containers.0.env.1",
        {"name": "AWS_ACCESS_KEY_ID", "value": "AKIA"},
        "must come from a Secret",
    ),
    (POOL, f"{WORKER}.volumes.0.emptyDir.sizeLimit", "30Gi", "/dev/shm"),
    (POOL, "spec.workerGroupSpecs.0.minReplicas", 1, "must be able to vanish"),
    (POOL, "spec.workerGroupSpecs.0.priority", 0, "gpu-spot must come before"),
    (POOL, "spec.authOptions.mode", "disabled", "authOptions.mode must be token"),
    (
        "NetworkPolicy/nothing-by-default",
        "spec.podSelector",
        {"matchLabels": {"a": "b"}},
        "refuses everything",
    ),
    (
        "ConfigMap/dreamserve-settings",
        "data.DREAMSERVE_DATABASE_URL",
        "postgresql://x",
        "belongs into a Secret",
    ),
    # Alerts and dashboards.
    (
        "PrometheusRule/dreamserve",
        "spec.groups.0.rules.0.expr",
        "absent(dreamserve_job)",
        "no metric dreamserve_job",
    ),
    ("PrometheusRule/dreamserve", "spec.groups.0.rules.0.labels.severity", "bad", "severity"),
    (
        "PrometheusRule/dreamserve",
        "spec.groups.0.rules.0.annotations.runbook_url",
        "k8s/README.md#x",
        "no runbook",
    ),
    (
        "ConfigMap/dreamserve-dashboards",
        "data.jobs%json.panels.0.targets.0.expr",
        "ray_gpus",
        "no metric ray_gpus",
    ),
    ("ConfigMap/dreamserve-dashboards", "data.jobs%json.panels.0.gridPos.w", 6, "overlap"),
    ("ConfigMap/dreamserve-dashboards", "data.jobs%json.panels.0.id", 2, "share an id"),
]


def plant(target: Any, path: str, value: Any) -> None:
    """Set (or remove) what lies at a dotted path; `%` stands for a dot, and what is after `%json` lies in a string."""
    step, _, rest = path.partition(".")
    key: Any = int(step) if isinstance(target, list) else step.replace("%", ".")
    if rest and key.__class__ is str and key.endswith(".json"):
        inner = json.loads(target[key])
        plant(inner, rest, value)
        target[key] = json.dumps(inner)
    elif rest:
        plant(target[key], rest, value)
    elif value is REMOVED:
        del target[key]
    elif isinstance(value, tuple):
        assert value[0] in target[key]
        target[key] = target[key].replace(*value)
    else:
        target[key] = value


@pytest.mark.parametrize(("where", "path", "value", "said"), MISTAKES, ids=[one[3] for one in MISTAKES])
def test_mistake_is_named(
    overlay: Callable[[str], list[Object]], where: str, path: str, value: Any, said: str
) -> None:
    objects = overlay("production")
    kind, _, name = where.partition("/")
    (one,) = [one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    plant(one, path, value)
    faults = faults_of(objects)
    assert any(said in fault for fault in faults), faults
