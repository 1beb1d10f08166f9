"""The files of cluster/: what can be checked of them without a cloud."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from actors.metrics import GAUGES
from pipeline.command import main

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "cluster"
REQUIREMENTS = (ROOT / "requirements.txt").read_text()


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FILES / name).read_text())


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod templates of a RayCluster's specification."""
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


@pytest.mark.parametrize("name", ["aws.yaml", "local.yaml"])
def test_ray_up_takes_the_file(name):
    validate_config(prepare_config(read(name)))
    with pytest.raises(Exception, match="max_workerz"):
        validate_config(prepare_config(read(name) | {"max_workerz": 3}))


def test_kubernetes_takes_every_pod_and_object():
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    version = validate.latest_version()
    templates = pods(read("raycluster.yaml")["spec"])
    objects = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, **template} for template in templates]
    for found in [*objects, read("store.yaml"), read("scheduled-sweep.yaml")]:
        validate.validate(found, version, strict=True)
    spoilt = objects[0] | {"spec": objects[0]["spec"] | {"containerz": []}}
    with pytest.raises(validate.ValidationError):
        validate.validate(spoilt, version, strict=True)


def test_a_run_on_a_cluster_of_its_own_has_the_standing_clusters_machines():
    assert read("rayjob.yaml")["spec"]["rayClusterSpec"] == read("raycluster.yaml")["spec"]


def test_versions_images_and_parameters_agree():
    cluster = read("raycluster.yaml")["spec"]
    assert f"ray[default,rllib,tune]=={cluster['rayVersion']}\n" in REQUIREMENTS
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert all(isinstance(value, str) for group in groups for value in group["rayStartParams"].values())
    scheduled = read("scheduled-sweep.yaml")["spec"]["jobTemplate"]["spec"]["template"]
    images = {container["image"] for pod in [*pods(cluster), scheduled] for container in pod["spec"]["containers"]}
    assert images == {read("aws.yaml")["docker"]["image"]}
    gpus = [pod["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for pod in pods(cluster)]
    assert gpus == [None, None, "1"]
    for pod in pods(cluster):
        (container,) = pod["spec"]["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"name": "store", "mountPath": "/store"} in container["volumeMounts"]
        assert pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == read("store.yaml")["metadata"]["name"]


def test_the_commands_in_them_are_commands(capsys, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    entrypoint = read("rayjob.yaml")["spec"]["entrypoint"].split()
    (container,) = read("scheduled-sweep.yaml")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert entrypoint[0] == container["args"][0] == "mbml"
    assert main([*entrypoint[1:], "--collect.steps", "0"]) == 2
    assert "collect.steps is 0" in capsys.readouterr().err
    assert main(container["args"][1:]) == 2
    assert "RAY_ADDRESS is not set" in capsys.readouterr().err  # all but the cluster was right


def test_the_dashboard_shows_what_is_exported():
    board = json.loads((FILES / "grafana.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked = set(re.findall(r"\bray_(mbml_\w+)", " ".join(expressions)))
    assert asked == set(GAUGES)
    labels = set(re.findall(r"\{\{(\w+)\}\}", json.dumps(board)))
    assert labels <= {label for _, known in GAUGES.values() for label in known}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


@pytest.mark.parametrize("name", ["prometheus.yaml", "prometheus-kubernetes.yaml"])
def test_prometheus_takes_the_scrape_settings(name):
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed")
    command = [promtool, "check", "config", "--syntax-only", str(FILES / name)]
    found = subprocess.run(command, capture_output=True, text=True)
    if "field kubernetes_sd_configs not found" in found.stdout + found.stderr:
        pytest.skip("this promtool was built without Kubernetes")
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_image_is_built_from_what_is_there_by_nobody_in_particular():
    lines = (FILES / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    copied = [words for line in lines if line.startswith("COPY ") for words in line.split()[1:-1]]
    allowed = (FILES / "Dockerfile.dockerignore").read_text().splitlines()
    assert all((ROOT / source).exists() and f"!{source}" in allowed for source in copied)
    assert {"mbml", "actors", "pipeline", "tune_configs"} <= set(copied)
    assert "\n# checks\n" in REQUIREMENTS  # what is behind it stays out
    assert [line for line in lines if line.startswith("USER ")] == ["USER 1000"]
    assert sum(line.startswith("HEALTHCHECK ") for line in lines) == 1
    assert re.fullmatch(r"FROM python:3\.11\.\d+-\S+", next(line for line in lines if line.startswith("FROM ")))
    if (hadolint := shutil.which("hadolint")) is None:
        pytest.skip("hadolint is not installed")
    found = subprocess.run([hadolint, str(FILES / "Dockerfile")], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
