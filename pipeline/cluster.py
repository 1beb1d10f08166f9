"""Start Ray inside this process or join a cluster, and leave nothing behind."""

import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import ray
from ray._private import node as ray_node

from pipeline.jobs import PACKAGES
from pipeline.needs import NOTHING, Needs
from pipeline.stopping import STOPS, at_once, listen

_OBJECT_STORE_BYTES = 128 * 1024**2  # paths and metrics only: Ray's default is a third of the memory
_ANSWER_SECONDS = 12
_ENDING_SECONDS = 2.5
_LONGEST_FOLDER = 24
# A learner's threads soon fall asleep while they wait for each other: the default spins for so long that an update of
# two threads takes three to ten times as long beside a busy neighbour. On a quiet machine this costs nothing.
_PATIENT = {"GOMP_SPINCOUNT": "10000"}
_WAIT = "wait_for_persisted_port"
_rays_wait: Callable[..., int] = getattr(ray_node, _WAIT)


class ClusterError(ValueError):
    """A Ray cluster that cannot be reached or used."""


@contextmanager
def connect(
    num_cpus: int | None = None, *, dashboard: bool = False, modules: Iterable[ModuleType] = ()
) -> Iterator[str]:
    """Ray for the length of a `with` block; yields a sentence that says where it runs.

    With RAY_ADDRESS set, joins that cluster and ships this project's packages to it. Otherwise starts Ray in child
    processes and stops them at the end, however the block ends. SIGTERM and SIGHUP become KeyboardInterrupt inside; if
    the block has not ended 2.5 seconds after a signal, this process does (130). A Ray that runs in it already is used
    and left as it is.

    Args:
        num_cpus: CPUs of the embedded Ray; all that this process may use if None. A cluster has its own.
        dashboard: also start the dashboard of the embedded Ray.
        modules: what else a cluster needs, such as the module or package of a family from outside.

    Raises:
        ClusterError: no Ray answers at RAY_ADDRESS, or that is no address of one.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address_given()
    if ray.is_initialized() and not address:
        yield f"the Ray of this process, {resources()}"
        return
    if address and not _healthy(address):
        right = f"host:port of a running one with the same Ray ({ray.__version__}) and token"
        embedded = "unset RAY_ADDRESS to run Ray inside this process"
        raise ClusterError(f"No Ray cluster answers at RAY_ADDRESS={address}: give {right}, or {embedded}.")
    folder = None if address else _private_folder()
    main = threading.current_thread() is threading.main_thread()  # which alone may set handlers
    handlers = {n: signal.getsignal(n) for n in STOPS if main}
    before = _children()
    started: set[psutil.Process] = set()

    def kill() -> None:
        for process in started:  # Ray's agents outlive what a signal to the whole process group ended by a minute
            with suppress(psutil.Error):
                process.kill()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def give_up() -> None:
        """Without the process that the same signal ended, a call to Ray may last for a minute."""
        nonlocal started
        started = started or _children() - before
        kill()
        at_once()

    with _within(_ENDING_SECONDS, handlers, give_up):
        try:
            if handlers:
                listen()
            try:
                where = _join(address, modules) if folder is None else _start(num_cpus, dashboard, folder)
            except SystemExit:  # what Ray makes of SIGTERM while it starts
                raise KeyboardInterrupt from None
            finally:
                started = _children() - before
            if handlers:
                listen()  # again, after ray.init, which sets a handler of its own
            yield where
        finally:
            late = _shut_down(handlers)
            kill()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if late:
            raise KeyboardInterrupt


def _shut_down(numbers: Collection[int]) -> list[int]:
    """Stop Ray, which none of these signals cuts short: half way it takes SIGTERM's handler away, for a millisecond.
    Returns those that came meanwhile."""
    came: list[int] = []
    shutting = threading.Thread(target=ray.shutdown)
    while shutting.ident is None or shutting.is_alive():
        for number in numbers:
            signal.signal(number, lambda number, frame: came.append(number))
        if shutting.ident is None:
            shutting.start()
        shutting.join(0.001)
    return came


def _children() -> set[psutil.Process]:
    """Child processes, and theirs."""
    return set(psutil.Process().children(recursive=True))


@contextmanager
def _within(seconds: float, numbers: Collection[int], give_up: Callable[[], None]) -> Iterator[None]:
    """Call `give_up` unless the block ends so many seconds after the first of these signals; also where the main
    thread, which alone runs handlers, is inside a call to Ray."""
    if not numbers:
        yield
        return
    (reader, writer), ended = os.pipe(), threading.Event()
    os.set_blocking(writer, False)

    def watch() -> None:
        with open(reader, "rb", buffering=0) as signals:
            while byte := signals.read(1):
                if byte[0] in numbers and not ended.wait(seconds):
                    give_up()

    threading.Thread(target=watch, daemon=True).start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        ended.set()
        os.close(writer)


def fit(
    who: str, num_cpus: float, num_gpus: float, log: Callable[[str], None], needs: Needs = NOTHING
) -> tuple[float, float]:
    """What `who` asks for, with no more CPUs than the largest fitting machine has; `log` hears of a cut.

    As asked where a cluster has no such machine yet. Raises ClusterError where Ray is embedded and never will have.
    """
    fitting = _machines(num_gpus, needs)
    if not fitting and not address_given():
        asked = f"{num_gpus:g} GPUs" + (f" and {needs}" if needs != NOTHING else "")
        remedy = "leave out --needs" if needs != NOTHING else "give learner_gpus 0 to train on CPUs"
        raise ClusterError(f"{who} asks for {asked}, but this machine has {resources()}; {remedy}.")
    cpus = min(num_cpus, max(fitting, default=num_cpus))
    if cpus < num_cpus:
        turns = f"its {num_cpus:g} threads take turns" + (", slowly: ask for no more" if num_cpus > 2 * cpus else "")
        log(f"{who} asks for {num_cpus:g} CPUs; the largest machine offers {cpus:g} CPUs, on which {turns}.")
    return cpus, num_gpus


def fits(num_cpus: float, num_gpus: float, needs: Needs) -> bool:
    """Whether a machine is there that has so much, be it busy."""
    return max(_machines(num_gpus, needs), default=0.0) >= num_cpus


def _machines(num_gpus: float, needs: Needs) -> list[float]:
    """CPUs of the machines with so many GPUs and what is needed besides."""
    having = [node["Resources"] for node in ray.nodes() if node["Alive"] and needs.met_by(node)]
    return [has["CPU"] for has in having if has.get("CPU", 0) > 0 and has.get("GPU", 0.0) >= num_gpus]


def check_there() -> None:
    """Raise ClusterError where the cluster that was joined is gone; Ray itself would end the process after a minute."""
    host, _, port = (address := address_given()).rpartition(":")
    if not port.isdigit():
        return
    for wait in (1.0, 5.0, 0.0):
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError:
            time.sleep(wait)
    kept = "finished jobs and checkpoints are kept, and the same command goes on from there"
    raise ClusterError(f"The cluster at {address} is gone: {kept}.")


def resources() -> str:
    """CPUs and GPUs of the connected Ray, in words."""
    found = ray.cluster_resources()
    return f"{found.get('CPU', 0):g} CPUs, {found.get('GPU', 0):g} GPUs"


def _private_folder() -> str:
    """A new folder for the embedded Ray's sockets and logs that only this user can read.

    The name of a socket has at most 107 bytes, of which Ray takes 66; it opens its own folder to everybody.
    """
    usual = os.path.abspath(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    return tempfile.mkdtemp(prefix="mbml-", dir=usual if len(os.fsencode(usual)) <= _LONGEST_FOLDER else "/tmp")


def _start(num_cpus: int | None, dashboard: bool, folder: str) -> str:
    # Ray listens on every network interface. Without a mode set it asks for a token from a file in the home
    # directory; a token of this run's own keeps others out and writes nothing there.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # Ray's default of 15 lets one busy neighbour starve a thread that all others of its learner wait for.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.update(_PATIENT)
    given: dict[str, Any] = {"num_cpus": num_cpus or usable_cpus(), "object_store_memory": _OBJECT_STORE_BYTES}
    given |= {"log_to_driver": False, "logging_level": logging.ERROR, "_temp_dir": f"{folder}/r"}
    # A closed terminal's goes to all processes. Ray's would die of it at once, and this one of their death.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        setattr(ray_node, _WAIT, _in_turns)
        context = ray.init("local", include_dashboard=dashboard, **given)
    except Exception as error:  # of many types, after minutes on a machine that is too busy
        causes = f"the machine is too busy, or {Path(folder).parent} (TMPDIR) has no room"
        raise ClusterError(f"Ray did not start ({str(error).splitlines()[0]}): as a rule {causes}.") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    where = f"Ray inside this process, {ray.cluster_resources().get('CPU', 0):g} CPUs"
    if dashboard:
        where += f"; dashboard at http://{context.dashboard_url}, token {os.environ['RAY_AUTH_TOKEN']}"
    return where


def _in_turns(*args: Any, timeout_ms: int) -> int:
    """Ray's wait for its server's port, of half a minute, hears no signal: it keeps Python's lock. This one lets go."""
    ends = time.monotonic() + timeout_ms / 1000
    while True:
        try:
            return _rays_wait(*args, timeout_ms=100)
        except RuntimeError:
            if time.monotonic() > ends:
                raise


def _join(address: str, modules: Iterable[ModuleType]) -> str:
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    # What is imported here, unless the job's submission brought the whole source tree already.
    brought = "working_dir" in (job.get("runtime_env") or {})
    source = {} if brought else {"py_modules": [*map(import_module, PACKAGES), *modules]}
    given: dict[str, Any] = {"runtime_env": {**source, "env_vars": _PATIENT}, "log_to_driver": False}
    try:
        ray.init(address, **given, logging_level=logging.ERROR)
    except RuntimeError as error:  # above all of another Ray or Python
        raise ClusterError(f"The cluster at {address} cannot be joined: {' '.join(str(error).split())}.") from None
    return f"Ray cluster at {address}, {sum(node['Alive'] for node in ray.nodes())} nodes, {resources()}"


def address_given() -> str:
    """RAY_ADDRESS, host:port; "" where Ray is to run inside this process. Raises ClusterError for other forms."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    if "://" in address:
        right = "runs take host:port of a cluster's head, such as 10.0.0.1:6379"
        others = "http:// is for make submit, ray:// for Ray Client, in which no run can work"
        raise ClusterError(f"RAY_ADDRESS is {address}; {right} ({others}).")
    return address


def check_cpus(asked: int | None) -> None:
    """Raise ClusterError for so many that Ray, which starts a process for each, would not get there."""
    if asked and asked > (most := max(64, 8 * usable_cpus())):
        raise ClusterError(f"--num-cpus {asked} is more than Ray can start here; give at most {most}.")


def usable_cpus() -> int:
    """Processors that this process may use: its affinity mask, and the quota of its control group (Linux)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # "max" where there is no quota
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
        count = min(count, max(1, quota // period))
    return count


def _healthy(address: str) -> bool:
    """Whether Ray answers; ray.init itself waits for minutes where nothing does, and cannot be told otherwise."""
    host, _, port = address.rpartition(":")
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    with suppress(OSError, OverflowError, subprocess.TimeoutExpired):
        if port.isdigit():  # a closed port says so at once
            socket.create_connection((host, int(port)), timeout=5).close()
        return subprocess.run(command, capture_output=True, timeout=_ANSWER_SECONDS).returncode == 0
    return False
