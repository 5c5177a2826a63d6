"""Manifests, checked offline: kustomize builds them, schemas and the command line accept them."""

import copy
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml

from infra.servers.process import program
from infra.settings import PREFIX, Settings

KUBERNETES = Path(__file__).parents[2] / "infra" / "kubernetes"
BUILDS = ("base", "overlays/kind", "overlays/gpu")
KUBERAY = yaml.safe_load((Path(__file__).parent / "kuberay_schema.yaml").read_text())
RELEASES = ("1.30.0", "1.37.0")
"""The oldest and the newest Kubernetes that the manifests are held against."""

# docs/embedding.md, "Memory": the peaks of an actor, the driver, the planner; docs/kubernetes.md: Ray itself.
ACTOR_MIB, DRIVER_MIB, PLANNER_MIB, RAY_HEAD_MIB, RAY_WORKER_MIB = 731, 408, 534, 900, 350
SECRETS = {"clvr-object-store", "clvr-milvus", "clvr-webhook", "clvr-ray-token"}
# Variables that other programs read; the others must be settings.
FOREIGN = {
    "AWS_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ALLOW_HTTP",
    "RAY_USAGE_STATS_ENABLED",
    "RAY_worker_niceness",
}


@cache
def build(name: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [program("kubectl"), "kustomize", str(KUBERNETES / name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def only(documents: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    matching = [d for d in documents if d["kind"] == kind and name in (None, d["metadata"]["name"])]
    assert len(matching) == 1, f"{len(matching)} of {kind}"
    return matching[0]


def night(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """The RayJob that the CronJob's pod creates: it finds it in the ConfigMap that it mounts."""
    pod = only(documents, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    mounted = next(volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume)
    job: dict[str, Any] = yaml.safe_load(only(documents, "ConfigMap", mounted)["data"]["rayjob.yaml"])
    return job


def check_kuberay(document: dict[str, Any]) -> None:
    """Raise ValidationError unless a RayCluster or a RayJob follows the schema of its kind."""
    jsonschema.validate(document, {**KUBERAY, "$ref": f"#/$defs/{document['kind']}"})


def groups(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    spec = only(documents, "RayCluster")["spec"]
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def pods(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for group in groups(documents):
        yield group.get("groupName", "head"), group["template"]["spec"]
    yield "nightly", only(documents, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def mebibytes(quantity: str) -> float:
    for unit, factor in (("Gi", 1024.0), ("Mi", 1.0)):
        if quantity.endswith(unit):
            return float(quantity.removesuffix(unit)) * factor
    return float(quantity) / (1 << 20)


def parse_command(command: str) -> dict[str, Any]:
    """Return the command's parameters. Raises for an unknown command or option."""
    from jobs.cli.app import app

    name, *words = shlex.split(command)
    assert name == "clvr"
    group = typer.main.get_command(app)
    context = group.make_context("clvr", words[:1], resilient_parsing=True)
    name, parser, rest = group.resolve_command(context, words)
    assert parser is not None, f"the command line does not know {words[0]}"
    parameters: dict[str, Any] = parser.make_context(name, rest, parent=context).params
    return {"command": name, **parameters}


@pytest.mark.parametrize("name", BUILDS)
def test_core_kinds_follow_the_published_schemas(name: str) -> None:
    core = [document for document in build(name) if not document["apiVersion"].startswith("ray.io/")]
    assert {"CronJob", "NetworkPolicy", "Namespace", "ServiceAccount"} <= {one["kind"] for one in core}
    for release in RELEASES:
        for document in core:
            kubernetes_validate.validate(document, release, strict=True)


@pytest.mark.parametrize("name", BUILDS)
def test_rays_resources_follow_their_schema_and_its_pods_the_published_one(name: str) -> None:
    documents = build(name)
    cluster, job = only(documents, "RayCluster"), night(documents)
    for document in (cluster, job):
        check_kuberay(document)
    templates = [group["template"] for group in groups(documents)]
    options = cluster["spec"]["autoscalerOptions"]
    fields = ("env", "envFrom", "image", "imagePullPolicy", "resources", "securityContext", "volumeMounts")
    sidecar = {"name": "autoscaler", **{field: options[field] for field in fields if field in options}}
    for template in [*templates, {"spec": {"containers": [sidecar]}}]:
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
        for release in RELEASES:
            kubernetes_validate.validate(pod, release, strict=True)
    for group in groups(documents)[1:]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RayCluster", ("spec", "autoscalerOptions", "upscalingMod"), "Default"),
        ("RayCluster", ("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        ("RayJob", ("spec", "activeDeadlineSeconds"), "72000"),
        ("RayJob", ("spec", "submissionMode"), "HttpMode"),
    ],
)
def test_the_schema_of_ray_rejects_unknown_fields_and_values(
    kind: str, path: tuple[str, ...], value: Any
) -> None:
    document = copy.deepcopy(night(build("base")) if kind == "RayJob" else only(build("base"), kind))
    at = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check_kuberay(document)


def test_the_schemas_reject_an_unknown_field() -> None:
    wrong = yaml.safe_load(yaml.safe_dump(only(build("base"), "CronJob")))
    wrong["spec"]["concurencyPolicy"] = "Forbid"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, RELEASES[-1], strict=True)


@pytest.mark.parametrize("name", BUILDS)
def test_the_cluster_can_run_the_command_of_the_nightly_job(name: str) -> None:
    documents = build(name)
    read = parse_command(night(documents)["spec"]["entrypoint"])
    assert read["command"] == "reindex"
    assert read["as_json"]
    # One logical CPU or GPU per actor, and one CPU to join shards; otherwise the run would wait without end.
    gpus = cpus = 0
    for group in groups(documents)[1:]:
        gpus += group["maxReplicas"] * int(group["rayStartParams"].get("num-gpus", 0))
        cpus += group["maxReplicas"] * int(group["rayStartParams"]["num-cpus"])
    assert read["workers"] <= (gpus or cpus - 1)
    declared = only(documents, "ConfigMap", "clvr-settings")["data"].get("CLVR_GPUS", "0")
    assert int(declared) == gpus


def test_a_wrong_command_is_rejected() -> None:
    for wrong in ("clvr reindex s3://a --modell m", "clvr reidx s3://a", "clvr reindex s3://a"):
        with pytest.raises(Exception, match=r"(?i)no such|missing|does not know"):
            parse_command(wrong)


@pytest.mark.parametrize("name", BUILDS)
def test_every_container_is_locked_down(name: str) -> None:
    documents = build(name)
    labels = only(documents, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    sidecar = only(documents, "RayCluster")["spec"]["autoscalerOptions"]["securityContext"]
    everything = [("autoscaler", sidecar, {})]
    for where, pod in pods(documents):
        for container in containers(pod):
            everything.append((where, container["securityContext"], pod["securityContext"]))
            assert ":" in container["image"].rpartition("/")[2], "pinned by tag or digest"
            assert not container["image"].endswith(":latest")
            assert container["resources"]["limits"]["memory"]
            assert container["resources"]["requests"]["cpu"]
    for where, own, of_pod in everything:
        assert own["readOnlyRootFilesystem"] is True, where
        assert own["allowPrivilegeEscalation"] is False, where
        assert own["capabilities"] == {"drop": ["ALL"]}, where
        assert {**of_pod, **own}["runAsNonRoot"] is True, where
        assert {**of_pod, **own}["seccompProfile"] == {"type": "RuntimeDefault"}, where


@pytest.mark.parametrize("name", BUILDS)
def test_manifests_name_secrets_and_contain_none(name: str) -> None:
    documents = build(name)
    assert not [document for document in documents if document["kind"] == "Secret"]
    named = {only(documents, "RayCluster")["spec"]["authOptions"]["secretName"]}
    for _, pod in pods(documents):
        for container in containers(pod):
            named |= {
                source["secretRef"]["name"]
                for source in container.get("envFrom", [])
                if "secretRef" in source
            }
            assert all(
                "TOKEN" not in one["name"] and "SECRET" not in one["name"] for one in container.get("env", [])
            )
    assert named <= SECRETS
    settings = only(documents, "ConfigMap", "clvr-settings")["data"]
    for variable in settings.keys() - FOREIGN - {"CLVR_LOG_FORMAT"}:
        assert variable.removeprefix(PREFIX).lower() in Settings.model_fields, variable
        assert "SecretStr" not in str(Settings.model_fields[variable.removeprefix(PREFIX).lower()].annotation)


@pytest.mark.parametrize("name", BUILDS)
def test_requests_cover_the_measured_memory(name: str) -> None:
    for group in groups(build(name)):
        (container,) = group["template"]["spec"]["containers"]
        requested = mebibytes(container["resources"]["requests"]["memory"])
        shared = mebibytes(group["rayStartParams"]["object-store-memory"])
        shm = next(v["emptyDir"] for v in group["template"]["spec"]["volumes"] if v["name"] == "shm")
        assert shm["medium"] == "Memory"
        assert mebibytes(shm["sizeLimit"]) > shared
        cpus = int(group["rayStartParams"]["num-cpus"])
        if not cpus:
            needed = RAY_HEAD_MIB + DRIVER_MIB + PLANNER_MIB
        else:
            gpus = int(group["rayStartParams"].get("num-gpus", 0))
            needed = RAY_WORKER_MIB + ACTOR_MIB * (gpus or cpus)
            assert cpus >= int(container["resources"]["requests"]["cpu"])
        assert requested >= needed, f"{group.get('groupName', 'head')}: {requested} MiB < {needed} MiB"
        assert mebibytes(container["resources"]["limits"]["memory"]) >= needed + shared


@pytest.mark.parametrize("name", BUILDS)
def test_nightly_runs_do_not_overlap_and_the_head_is_not_moved(name: str) -> None:
    documents = build(name)
    cron = only(documents, "CronJob")["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    pod = cron["jobTemplate"]["spec"]["template"]["spec"]
    kubectl_verbs = [container["command"][1] for container in containers(pod)]
    assert kubectl_verbs == ["delete", "create", "wait", "wait"], (
        "it must live as long as the run, or Forbid has no effect"
    )
    rules = only(documents, "Role")["rules"]
    assert {resource for rule in rules for resource in rule["resources"]} == {"rayjobs"}
    assert set(kubectl_verbs[:2]) | {"get", "list", "watch"} == {
        verb for rule in rules for verb in rule["verbs"]
    }
    head = groups(documents)[0]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert only(documents, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 0
    if name != "overlays/kind":
        terms = head["template"]["spec"]["affinity"]["nodeAffinity"][
            "requiredDuringSchedulingIgnoredDuringExecution"
        ]
        assert terms["nodeSelectorTerms"][0]["matchExpressions"][0]["operator"] == "NotIn"
        for group in groups(documents)[1:]:
            assert any(t.get("value") == "spot" for t in group["template"]["spec"]["tolerations"])


@pytest.mark.parametrize("name", BUILDS)
def test_network_policies_deny_by_default_and_select_existing_pods(name: str) -> None:
    documents = build(name)
    policies = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "NetworkPolicy"}
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    labels = [group["template"]["metadata"]["labels"] for group in groups(documents)]
    labels.append(only(documents, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"])
    for policy, spec in policies.items():
        labels_of_policy = spec["podSelector"].get("matchLabels", {}).items()
        assert any(labels_of_policy <= pod.items() for pod in labels), policy
    milvus = only(documents, "ConfigMap", "clvr-settings")["data"]["CLVR_MILVUS"]
    port = int(milvus.rpartition(":")[2])
    allowed = [p["port"] for rule in policies["ray-to-storage-and-milvus"]["egress"] for p in rule["ports"]]
    assert port in allowed


def test_milvus_values_match_the_settings_and_contain_no_key() -> None:
    base = yaml.safe_load((KUBERNETES / "milvus" / "values.yaml").read_text())
    cluster = yaml.safe_load((KUBERNETES / "milvus" / "values-cluster.yaml").read_text())
    settings = only(build("base"), "ConfigMap", "clvr-settings")["data"]
    assert settings["CLVR_MILVUS_BUCKET"] == f"s3://{base['externalS3']['bucketName']}"
    assert base["externalS3"]["useIAM"] is True
    assert not {"accessKey", "secretKey"} & base["externalS3"].keys()
    from infra.servers.milvus import VERSION

    assert base["image"]["all"]["tag"] == f"v{VERSION}", "the server that the tests run"
    for values in (base, cluster):
        user = yaml.safe_load(values["extraConfigFiles"]["user.yaml"])
        assert user["common"]["security"]["authorizationEnabled"] is True
