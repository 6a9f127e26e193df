"""The manifests and the cloud configuration in ``cluster/``, held against schemas and against each other.

Kubernetes' own schema of a pod template, a schema of our own for KubeRay's resources (``tests/schemas`` says where
from), Ray's validator of `ray up`. None of it replaces a cluster.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from inril_ray.cli import _layers, parser
from inril_ray.distributed.gauges import PREFIX, SHOWN
from inril_ray.experiment import load_config

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
SCHEMAS = ROOT / "tests" / "schemas"
KUBERAY = json.loads((SCHEMAS / "kuberay.json").read_text())
POD = json.loads((SCHEMAS / "pod_template.json").read_text())


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / name).read_text())


def test_the_dashboard_shows_what_is_exported() -> None:
    dashboard = json.loads((CLUSTER / "grafana.json").read_text())
    asked = {
        m for p in dashboard["panels"] for t in p.get("targets", []) for m in re.findall(r"ray_(\w+)\{", t["expr"])
    }
    assert asked == {PREFIX + name for name in SHOWN}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert max(x for x, _ in cells) < 24


def cluster_spec(resource: dict[str, Any]) -> dict[str, Any]:
    return resource["spec"].get("rayClusterSpec", resource["spec"])


def groups(resource: dict[str, Any]) -> dict[str, dict[str, Any]]:
    spec = cluster_spec(resource)
    return {"head": spec["headGroupSpec"], **{group["groupName"]: group for group in spec["workerGroupSpecs"]}}


def validate(resource: dict[str, Any]) -> None:
    jsonschema.validate(resource, KUBERAY)
    for group in groups(resource).values():
        jsonschema.validate(group["template"], POD)


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_manifests_fit_the_schemas(name: str) -> None:
    validate(manifest(name))
    assert cluster_spec(manifest(name))["rayVersion"] == version("ray")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: r.update(apiVersion="ray.io/v1alpha1"),
        lambda r: cluster_spec(r).pop("authOptions"),
        lambda r: cluster_spec(r)["authOptions"].update(mode="disabled"),
        lambda r: groups(r)["head"].update(serviceType="LoadBalancer"),
        lambda r: groups(r)["rollout"].update(replica=2),
        lambda r: groups(r)["rollout"].update(rayStartParams={"num-cpus": 1}),
        lambda r: groups(r)["learner"]["template"]["spec"].update(container=[]),
        lambda r: groups(r)["learner"]["template"]["spec"]["containers"][0]["volumeMounts"][0].pop("mountPath"),
        lambda r: groups(r)["learner"]["template"]["spec"]["containers"][0]["resources"]["limits"].update(cpu=4),
    ],
)
def test_the_schemas_refuse_mistakes(spoil: Any) -> None:
    resource = copy.deepcopy(manifest("raycluster.yaml"))
    spoil(resource)
    with pytest.raises(jsonschema.ValidationError):
        validate(resource)


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_the_learner_has_the_gpu_simulators_the_cpus_and_all_the_storage(name: str) -> None:
    found = groups(manifest(name))
    assert found["head"]["rayStartParams"]["num-cpus"] == "0"
    assert found["learner"]["rayStartParams"]["num-cpus"] == "1"
    for group_name, group in found.items():
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts["/shared"]["persistentVolumeClaim"] == {"claimName": "inril-runs"}
        assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (group_name == "learner")
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_cluster_survives_its_control_process_and_the_job_is_tried_again() -> None:
    password = manifest("raycluster.yaml")["spec"]["gcsFaultToleranceOptions"]["redisPassword"]
    assert password == {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}}
    assert manifest("rayjob.yaml")["spec"]["backoffLimit"] > 0


def test_the_jobs_command_is_a_valid_configuration_that_its_nodes_can_hold() -> None:
    job = manifest("rayjob.yaml")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "inril_ray.cli"]
    arguments = parser().parse_args(words[3:])
    assert str(arguments.out).startswith("/shared/")
    rollout = groups(job)["rollout"]
    cpus = rollout["replicas"] * int(rollout["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert load_config(_layers(arguments)).compute.num_workers <= cpus
    assert json.loads(job["spec"]["entrypointResources"]) == {"node:__internal_head__": 0.001}
    shipped = yaml.safe_load((CLUSTER / "runtime_env.yaml").read_text())
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"] == shipped["env_vars"]


def test_what_a_job_takes_along_is_the_package_and_little_else() -> None:
    from ray._private.runtime_env.packaging import get_uri_for_directory

    excludes = yaml.safe_load((CLUSTER / "runtime_env.yaml").read_text())["excludes"]
    assert get_uri_for_directory(str(ROOT), include_gitignore=True, excludes=excludes).startswith("gcs://")
    roots = {pattern.strip("/") for pattern in excludes if pattern.startswith("/")}
    assert {"inril_ray", "pyproject.toml"}.isdisjoint(roots)
    assert {".git", "tests", "benchmarks", "docs"} <= roots


def test_the_cloud_configuration_passes_rays_validator() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = manifest("aws.yaml")
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    for node in config["available_node_types"].values():
        assert node["node_config"]["SecurityGroupIds"] == [
            "sg-YOURS"
        ]  # else Ray makes one that admits SSH from anywhere
    assert config["available_node_types"]["learner"]["resources"] == {"CPU": 1, "GPU": 1}
    prepared["head_node_typ"] = "head"
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepared)


def test_every_start_of_ray_asks_for_the_token_and_keeps_the_dashboard_to_itself() -> None:
    config = manifest("aws.yaml")
    starts = [
        command
        for section in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in config[section]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert any(source.endswith(".ray/auth_token") for source in config["file_mounts"].values())
    for file in CLUSTER.iterdir():
        text = "\n".join(line.partition("#")[0] for line in file.read_text().splitlines())
        assert not re.search(r"0\.0\.0\.0|LoadBalancer|NodePort|hostNetwork|AUTH_MODE=disabled", text), file
