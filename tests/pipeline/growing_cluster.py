"""A Ray cluster on this machine that scales by demand: a head without processors, and fake machines of one processor
that its autoscaler starts and lets go. What it starts is recognised by its token, and nothing else is ever stopped."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray

ROOT = Path(__file__).resolve().parents[2]
_COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")


def configuration(gcs: str, most: int) -> dict:
    """What `ray start --autoscaling-config` reads; `gcs` is the head's address."""
    worker = {"resources": {"CPU": 1, "object_store_memory": 10**8}, "min_workers": 0, "max_workers": most}
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    # All machines have one address, so they are told apart by their ids; there is nobody to reach by SSH.
    fake = {"type": "fake_multinode", "use_node_id_as_ip": True, "disable_node_updaters": True}
    return {
        "cluster_name": "growing",
        "provider": fake | {"gcs_address": gcs},
        "max_workers": most,
        "upscaling_speed": 10,
        "idle_timeout_minutes": 0.1,
        "head_node_type": "ray.head.default",
        "available_node_types": {"ray.head.default": head, "worker": worker | {"node_config": {}}},
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        **{f"{name}_commands": [] for name in _COMMANDS},
    }


def without_ray() -> dict[str, str]:
    """This process's environment less what is said of Ray in it."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def heard(command: list[str], environment: dict[str, str], listen: Callable[[str], None]) -> str:
    """What a command says, of which `listen` gets every line when it comes; it must end well."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    said = ""
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as run:
        assert run.stdout is not None
        for line in run.stdout:
            said += line
            listen(line)
    assert run.returncode == 0, said
    return said


def processes(variable: str, value: str) -> list[psutil.Process]:
    """Those that have a variable of this value in their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(variable) == value:
                found.append(process)
    return found


def kill_all(variable: str, value: str) -> None:
    """Kill those processes, and those that they start meanwhile."""
    for _ in range(3):
        for process in processes(variable, value):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.5)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def started_head(folder: Path, environment: dict[str, str], mark: str, *options: str) -> Iterator[None]:
    """A head started by `ray start`; in the end everything is killed that has its value of the variable `mark`.

    Ray gives up a start after 30 seconds, which a busy machine may need, so there are three tries.
    """
    # Ray's defaults are ports that another head on this machine may have.
    names = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "ray-client-server")
    ports = [f"--{name}-port={free_port()}" for name in names] + ["--min-worker-port=0", "--max-worker-port=0"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *ports, *options]
    # Ray's default of 15 lets one busy neighbour starve the workers.
    own, log = environment | {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}, folder / "head.log"
    for _ in range(3):
        with log.open("w") as file:
            head = subprocess.Popen(command, env=own, stdout=file, stderr=file, start_new_session=True)
        try:
            if _is_up(head, log):
                yield
                return
        finally:
            kill_all(mark, environment[mark])
            head.wait(30)
    raise RuntimeError(f"The head did not start: {log.read_text()}")


def _is_up(head: subprocess.Popen, log: Path) -> bool:
    while head.poll() is None:
        if "Ray runtime started" in log.read_text():
            return True
        time.sleep(0.2)
    return False


@contextmanager
def growing_cluster(folder: Path, most: int) -> Iterator[dict[str, str]]:
    """The environment of a program that joins it."""
    port = free_port()
    gcs = f"{ray.util.get_node_ip_address()}:{port}"
    file = folder / "autoscaling.json"
    file.write_text(json.dumps(configuration(gcs, most)))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    growing = environment | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    options = [f"--port={port}", f"--autoscaling-config={file}", "--include-dashboard=false", "--num-cpus=0"]
    with started_head(folder, growing, "RAY_AUTH_TOKEN", *options):
        yield environment | {"RAY_ADDRESS": gcs}


@contextmanager
def job_server(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of a user of a cluster of two processors that takes jobs; the token is in a file of the home."""
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text("7" * 64)
    environment = without_ray() | {"HOME": str(folder), "RAY_AUTH_MODE": "token"}
    dashboard = free_port()
    options = ["--num-cpus=2", f"--port={free_port()}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    with started_head(folder, environment, "HOME", *options):
        yield environment | {"RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"}


def sums(store: Path) -> dict[str, dict[str, str]]:
    """SHA-256 of every file of every artefact, without what submitted runs leave of their reports."""
    found = {}
    for manifest in store.glob("*/*/manifest.json"):
        if manifest.parents[1].name != "report":
            files = json.loads(manifest.read_text())["files"]
            found[str(manifest.parent.relative_to(store))] = {entry["file"]: entry["sha256"] for entry in files}
    return found


_LOOK = """
import sys, time, ray
ray.init(log_to_driver=False)
end = time.monotonic() + float(sys.argv[1])
while (alive := sum(node["Alive"] for node in ray.nodes())) > 1 and time.monotonic() < end:
    time.sleep(1)
print("alive", alive)
"""


def machines_left(environment: dict[str, str], seconds: float) -> int:
    """How many machines are alive besides the head, after at most so many seconds of waiting for none."""
    command = [sys.executable, "-c", _LOOK, str(seconds)]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds + 120)
    return int(said.stdout.split()[-1]) - 1
