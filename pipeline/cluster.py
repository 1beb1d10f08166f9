"""Start Ray inside this process or join a cluster, and leave nothing behind."""

import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ray

_ROOT = Path(__file__).resolve().parents[1]
_EXCLUDES = ["runs/", "results/", "benchmarks/.venv-peers/"]  # besides Ray's own and what .gitignore names
_OBJECT_STORE_BYTES = 128 * 1024**2  # paths and metrics only: Ray's default is a third of the memory
_ANSWER_SECONDS = 12
# A learner's threads soon fall asleep while they wait for each other: the default spins for so long that an update of
# two threads takes three to ten times as long beside a busy neighbour. On a quiet machine this costs nothing.
_PATIENT = {"GOMP_SPINCOUNT": "10000"}


class ClusterError(ValueError):
    """A Ray cluster that cannot be reached or used."""


@contextmanager
def connect(num_cpus: int | None = None, *, dashboard: bool = False) -> Iterator[str]:
    """Ray for the length of a `with` block; yields a sentence that says where it runs.

    With RAY_ADDRESS set, joins that cluster and ships this source tree to it. Otherwise starts Ray in child
    processes and stops them at the end, however the block ends. SIGTERM becomes KeyboardInterrupt inside. A Ray that
    runs in this process already is used and left as it is.

    Args:
        num_cpus: CPUs of the embedded Ray; all that this process may use if None. A cluster has its own.
        dashboard: also start the dashboard of the embedded Ray.

    Raises:
        ClusterError: no Ray answers at RAY_ADDRESS.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = _address()
    if ray.is_initialized() and not address:
        yield f"the Ray of this process, {resources()}"
        return
    if address and not _healthy(address):
        right = f"host:port of a running one with the same Ray ({ray.__version__}) and token"
        embedded = "unset RAY_ADDRESS to run Ray inside this process"
        raise ClusterError(f"No Ray cluster answers at RAY_ADDRESS={address}: give {right}, or {embedded}.")
    main = threading.current_thread() is threading.main_thread()  # which alone may set handlers
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT) if main}
    try:
        where = _join(address) if address else _start(num_cpus, dashboard)
        if handlers:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # after ray.init, which sets one of its own
        yield where
    finally:
        if handlers:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not cut the cleaning short
        ray.shutdown()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def fit(who: str, num_cpus: float, num_gpus: float, log: Callable[[str], None]) -> tuple[float, float]:
    """What `who` asks for, with no more CPUs than the largest machine with its GPUs has; `log` hears of a cut.

    As asked where a cluster has no such machine yet. Raises ClusterError where Ray is embedded and never will have.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    fitting = [machine["CPU"] for machine in machines if machine.get("GPU", 0.0) >= num_gpus]
    if not fitting and not _address():
        asked = f"{who} asks for {num_gpus:g} GPUs, but this machine has {resources()}"
        raise ClusterError(f"{asked}; give learner_gpus 0 to train on CPUs.")
    cpus = min(num_cpus, max(fitting, default=num_cpus))
    if cpus < num_cpus:
        log(f"{who} asks for {num_cpus:g} CPUs; the largest machine offers {cpus:g} CPUs, so it runs with that.")
    return cpus, num_gpus


def resources() -> str:
    """CPUs and GPUs of the connected Ray, in words."""
    found = ray.cluster_resources()
    return f"{found.get('CPU', 0):g} CPUs, {found.get('GPU', 0):g} GPUs"


def _start(num_cpus: int | None, dashboard: bool) -> str:
    # Ray listens on every network interface. Without a mode set it asks for a token from a file in the home
    # directory; a token of this run's own keeps others out and writes nothing there.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # Ray's default of 15 lets one busy neighbour starve a thread that all others of its learner wait for.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.update(_PATIENT)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "object_store_memory": _OBJECT_STORE_BYTES}
    try:
        context = ray.init("local", num_cpus=num_cpus, include_dashboard=dashboard, **quiet)
    except Exception as error:  # of many types, after minutes on a machine that is too busy
        causes = "the machine is too busy, or the temporary folder (TMPDIR) has no room or a name that is too long"
        raise ClusterError(f"Ray did not start ({str(error).splitlines()[0]}): as a rule {causes}.") from error
    where = f"Ray inside this process, {ray.cluster_resources().get('CPU', 0):g} CPUs"
    if dashboard:
        where += f"; dashboard at http://{context.dashboard_url}, token {os.environ['RAY_AUTH_TOKEN']}"
    return where


def _join(address: str) -> str:
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    # The source tree, unless `ray job submit` brought it already: Ray refuses two working directories.
    brought = "working_dir" in (job.get("runtime_env") or {})
    installed = not (_ROOT / "pyproject.toml").exists()  # on every node, by pip
    source = {} if brought or installed else {"working_dir": str(_ROOT), "excludes": _EXCLUDES}
    ray.init(address, runtime_env={**source, "env_vars": _PATIENT}, log_to_driver=False, logging_level=logging.ERROR)
    return f"Ray cluster at {address}, {sum(node['Alive'] for node in ray.nodes())} nodes, {resources()}"


def _address() -> str:
    return os.environ.get("RAY_ADDRESS", "").strip()


def _healthy(address: str) -> bool:
    """Whether Ray answers; ray.init itself waits for minutes where nothing does, and cannot be told otherwise."""
    host, _, port = address.rpartition(":")
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    with suppress(OSError, OverflowError, subprocess.TimeoutExpired):
        if port.isdigit():  # a closed port says so at once
            socket.create_connection((host, int(port)), timeout=5).close()
        return subprocess.run(command, capture_output=True, timeout=_ANSWER_SECONDS).returncode == 0
    return False
