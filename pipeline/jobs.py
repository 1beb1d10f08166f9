"""Runs as jobs of a Ray cluster that is reached by its dashboard's address: submit, look, follow, stop, and fetch what
they left."""

import asyncio
import logging
import os
import shlex
import shutil
import sys
import tempfile
import time
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import tyro

from actors.store import Store
from mbml import envs
from pipeline.config import ConfigError, folder_here

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

Log = Callable[[str], None]
PACKAGES = ("mbml", "actors", "pipeline")
REPORT = "report"
"""Where the store has reports, as if it were a stage."""
_MOST_BYTES = 200 * 1024**2  # of files that travel with a job; Ray itself takes 512 MiB
_POLL_SECONDS = 0.5
_START_SECONDS = 120.0
_SKIPPED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


@contextmanager
def _client() -> Iterator["JobSubmissionClient"]:
    """The job server at RAY_ADDRESS; whatever it answers badly, in the block as well, is a ConfigError."""
    address = os.environ.get("RAY_ADDRESS", "")
    if not address.startswith(("http://", "https://")):
        said = f"RAY_ADDRESS is {address}" if address else "RAY_ADDRESS is not set"
        raise ConfigError(f"{said}; jobs go to the dashboard of a cluster, such as RAY_ADDRESS=http://10.0.0.1:8265.")
    from aiohttp import ClientError
    from pydantic import ValidationError
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient
    from requests.exceptions import RequestException

    logging.getLogger("ray").setLevel(logging.WARNING)  # which would tell of every package
    try:
        yield JobSubmissionClient(address)
    except AuthenticationError:
        right = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or the file ~/.ray/auth_token to the cluster's"
        raise ConfigError(f"The cluster at {address} does not take this token, or none: {right}.") from None
    except (ConnectionError, RequestException, ClientError):
        raise ConfigError(f"No job server answers at RAY_ADDRESS={address}: is that a cluster's dashboard?") from None
    except (TypeError, KeyError, AttributeError, ValidationError):  # JSON, but of another shape
        raise ConfigError(f"What answers at RAY_ADDRESS={address} is no job server: is that Ray's dashboard?") from None
    except RuntimeError as error:
        what = " ".join(str(error).split())[:300].rstrip(".")
        raise ConfigError(f"The job server at {address} refused: {what}.") from None


def _again(command: str, job: str) -> str:
    """What to type about the same job."""
    return f"make {command} JOB={job} RAY_ADDRESS={os.environ['RAY_ADDRESS']}"


@dataclass(frozen=True)
class Submit:
    """Run a command as a job of a Ray cluster: submit [OPTIONS] run|sweep|warmstart|fit ...

    The cluster gets this source, the module of a family from outside, and the files and folders of the command that lie
    below this one; absolute paths are the cluster's own. Report, tables and policy end up in the store, from which
    `fetch` brings them here. Follows the log and returns the job's exit code; Ctrl-C leaves the job running.
    """

    wait: bool = True
    """Follow the job until it ends."""
    python: str = "python"
    """Interpreter of the cluster's machines."""
    job: tyro.conf.Suppress[Any] = None
    arguments: tyro.conf.Suppress[tuple[str, ...]] = ()
    runs: ClassVar[tuple[str, ...]] = ("run", "sweep", "warmstart", "fit")

    @classmethod
    def split(cls, arguments: list[str], parse: Callable[[list[str]], Any]) -> tuple[list[str], "Submit"]:
        """The options of `submit` itself, and a Submit with the command behind them, as `parse` understands it."""
        place = next((place for place, word in enumerate(arguments) if word in cls.runs), len(arguments))
        own, given = [word for word in arguments[:place] if word != "--"], arguments[place:]
        strange = [word for before, word in pairwise(["", *own]) if not word.startswith("-") and before != "--python"]
        if strange and not given:
            raise ConfigError(f"There is no {strange[0]} to submit; choose one of {', '.join(cls.runs)}.")
        return own, cls(job=parse(given) if given else None, arguments=tuple(given))

    def __call__(self, log: Log) -> int:
        if self.job is None:
            raise ConfigError(f"Say what to submit, such as submit run --env ...: one of {', '.join(self.runs)}.")
        _check_lasting(self.arguments[0], self.job.place)
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            _source(Path(folder), self.job, self.arguments)
            entrypoint = shlex.join([self.python, "-m", "pipeline", *self.arguments, "--report-in-store"])
            environment = {"working_dir": folder, "env_vars": {"PYTHONUNBUFFERED": "1"}}
            about = {"mbml": " ".join(self.arguments)[:200]}
            with _client() as client:
                job = _submitted(client, log, entrypoint=entrypoint, runtime_env=environment, metadata=about)
        log(f"job {job} submitted in {time.monotonic() - started:.0f} s; {_again('logs', job)} follows it")
        return Logs(job)(log) if self.wait else 0


@dataclass(frozen=True)
class _OfJob:
    """A command for one job."""

    job: tyro.conf.Positional[str]
    """Its id, which `status` lists."""


class Logs(_OfJob):
    """Print the log of a job from its beginning, and follow it to its end; returns the job's exit code."""

    def __call__(self, log: Log) -> int:
        try:
            with _client() as client:
                client.get_job_info(self.job)  # says better than the log that there is no such job
                asyncio.run(_print(client, self.job))
                while not (details := client.get_job_info(self.job)).status.is_terminal():
                    time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            back, stop = _again("logs", self.job), _again("stop", self.job)
            print(f"\nJob {self.job} goes on. To come back: {back}. To end it: {stop}.", file=sys.stderr)
            return 130
        except ConfigError as error:
            if "WebSocket" not in str(error):
                raise
            lost = "The cluster no longer answers. If it is still there, so is the job"
            again = "if not, the same submission goes on from what is in the store"
            raise ConfigError(f"{lost}: {_again('logs', self.job)}; {again}.") from None
        log(f"job {self.job} {details.status.value.lower()}: {details.message or ''}".rstrip(": "))
        if details.status.value == "SUCCEEDED":
            return 0
        return max(details.driver_exit_code or 1, 1)


class Stop(_OfJob):
    """End a job; its finished artefacts stay in the store, and the same submission continues."""

    def __call__(self, log: Log) -> int:
        with _client() as client:
            ends = client.stop_job(self.job)
            while not (details := client.get_job_info(self.job)).status.is_terminal():
                time.sleep(_POLL_SECONDS)
        log(f"job {self.job} {details.status.value.lower()}" + ("" if ends else ", before it was asked to"))
        return 0


@dataclass(frozen=True)
class Status:
    """List the jobs of a cluster, the latest first: id, state, start (UTC), command."""

    def __call__(self, log: Log) -> int:
        with _client() as client:
            jobs = [job for job in client.list_jobs() if job.submission_id]
        for job in sorted(jobs, key=lambda job: job.start_time or 0, reverse=True):
            begun = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime((job.start_time or 0) / 1000))
            words = (job.metadata or {}).get("mbml", job.entrypoint)
            print(f"{job.submission_id}  {job.status.value:<9}  {begun}  {words}")
        if not jobs:
            print("No job was submitted to this cluster.")
        return 0


@dataclass(frozen=True)
class Dashboard:
    """Open a cluster's dashboard in the browser, and say how to get past its question for a token."""

    def __call__(self, log: Log) -> int:
        with _client():
            address = os.environ["RAY_ADDRESS"]
        opened = "opened in the browser" if webbrowser.open(address) else "open it in a browser"
        token = "your RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else "what `ray get-auth-token` prints"
        print(f"{address}  ({opened}; where it asks for a token: {token})")
        return 0


@dataclass(frozen=True)
class Fetch:
    """Bring reports, tables and policies of submitted jobs from the store here."""

    store: str
    """Where the jobs kept them: a folder or an fsspec URL."""
    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Which ones, such as umaze_goal-laptop-seed0; by default all."""
    out: str = "runs"
    """Folder that gets a folder of each, in the place of one that is there."""

    def __call__(self, log: Log) -> int:
        store = Store(self.store)
        known = store.keys(REPORT)
        if missing := [name for name in self.names or known if name not in known]:
            raise ConfigError(f"{store.url} has no report {missing[0]}; it has {', '.join(known) or 'none'}.")
        if not known:
            raise ConfigError(f"{store.url} has no report: a submitted job leaves one when it ends.")
        from pipeline.publish import make_folder

        make_folder(out := folder_here(self.out))
        for name in self.names or known:
            shutil.copytree(store.fetch(REPORT, name), out / name, dirs_exist_ok=True)
            log(f"Report: {out / name / 'report.html'}")
        return 0


JOBS: dict[str, type] = {
    "submit": Submit,
    "status": Status,
    "logs": Logs,
    "stop": Stop,
    "fetch": Fetch,
    "dashboard": Dashboard,
}
"""The commands by name."""


def _submitted(client: "JobSubmissionClient", log: Log, **job: Any) -> str:
    """The id of the job; a cluster that has just started has nobody yet to run its driver, and is waited for."""
    end, said = time.monotonic() + _START_SECONDS, False
    while True:
        try:
            return client.submit_job(**job)
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > end:
                raise
        if not said:
            log("the cluster has just started: waiting until it takes jobs")
        said = True
        time.sleep(2)


async def _print(client: "JobSubmissionClient", job: str) -> None:
    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)


def _check_lasting(command: str, place: Any) -> None:
    """Raise ConfigError for a place that would be lost with the job, whose working directory is a copy."""
    if "://" not in place.store and not Path(place.store).is_absolute():
        fault = f"--store {place.store} would be lost with the job"
        raise ConfigError(f"{fault}; give an absolute path or a URL that all nodes of the cluster reach.")
    if command == "fit" and not Path(place.out).is_absolute():
        fault = f"--out {place.out} holds the dataset that the jobs of fit read"
        raise ConfigError(f"{fault}; give an absolute path that all nodes of the cluster reach.")


def _source(folder: Path, command: Any, arguments: Sequence[str]) -> None:
    """Fill the job's working directory: packages, the module of a family, files that the command names."""
    for module in [*map(import_module, (*PACKAGES, "tune_configs")), *envs.modules_of(command.config.env)]:
        _copy(Path(next(iter(getattr(module, "__path__", [module.__file__])))), folder)
    outputs = {command.place.store, command.place.out}
    named = [Path(word) for word in arguments if word not in outputs and not word.startswith("-")]
    for path in [path for path in named if path.exists() and not path.is_absolute()]:
        if ".." in path.parts:
            raise ConfigError(f"{path} does not lie below this folder, whose files travel with the job; move it.")
        _copy(path, folder / path.parent)
    if (size := sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())) > _MOST_BYTES:
        fault = f"The files that this command names have {size / 1024**2:.0f} MiB, and a job takes {_MOST_BYTES >> 20}"
        raise ConfigError(f"{fault}; put them where the cluster reads them and give their absolute path.")


def _copy(path: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, folder / path.name, ignore=_SKIPPED, dirs_exist_ok=True)
    else:
        shutil.copy2(path, folder)
