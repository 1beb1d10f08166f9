"""Every moment at which a job touches its disk, with its process killed (SIGKILL) just before that.

`python -m tests.torture.moments ENV STORE SEED MOST [STAGES]` tries at most MOST of them in one job of every stage of a
smoke run, of which STORE gets what it lacks, and prints stage -> [moments, tried, differ] as JSON.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from actors.host import Host
from actors.stage import Job, Ref
from actors.store import Store
from mbml.serialise import sha256_of
from pipeline.plan import plan
from pipeline.presets import preset

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
_CHECKPOINT_SECONDS = 0.05


def killed_at_each(
    job: Job, at_hand: Mapping[Ref, Path], scratch: Path, most: int, rng: random.Random
) -> tuple[int, int, int]:
    """How many moments there are, before how many of them (at most `most`) it was killed, and how often what
    another process ended then had other bits than an artefact that was left alone.

    A moment is an audit event of Python: a file opened for writing, renamed or removed, a folder made or removed.
    Neither this process nor its threads may have used torch's own threads, because it forks.
    """
    alone, moments = scratch / "alone", get_context("fork").Value("q", 0)
    assert _ended(job, at_hand, alone, moments, 0) == 0
    expected, killed, differ = _sums(alone, job), 0, 0
    there = moments.value
    for moment in rng.sample(range(1, there + 1), min(most, there)):
        shot = scratch / "shot"
        code = _ended(job, at_hand, shot, moments, moment)
        assert code in (-signal.SIGKILL, 0), code  # checkpoints go by the clock: the last moments may not come
        killed += code != 0
        differ += _ended(job, at_hand, shot, moments, 0) != 0 or _sums(shot, job) != expected
        shutil.rmtree(shot)
    shutil.rmtree(alone)
    return there, killed, differ


def _ended(job: Job, at_hand: Mapping[Ref, Path], store: Path, moments: Any, last: int) -> int:
    """Exit code of a process that makes the artefact, killed before its moment number `last` if that is above 0."""
    process = get_context("fork").Process(target=_make, args=(job, at_hand, store, moments, last))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _make(job: Job, at_hand: Mapping[Ref, Path], store: Path, moments: Any, last: int) -> None:
    moments.value, place = 0, str(store)

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _CHANGES and not (event == "open" and _writes(arguments)):
            return
        if isinstance(arguments[0], str | os.PathLike) and place in os.fspath(arguments[0]):
            moments.value += 1
            if moments.value == last:
                os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    host = Host(place, checkpoint_seconds=_CHECKPOINT_SECONDS)
    sys.addaudithook(look)
    host.run(job, at_hand=at_hand)


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    return any(letter in mode for letter in "wax+") if mode else bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _sums(folder: Path, job: Job) -> dict[str, str]:
    store = Store(str(folder))
    place = store.fetch(*job.ref)  # reads every file of it
    return {entry["file"]: sha256_of(place / entry["file"]) for entry in store.describe(*job.ref)["files"]}


def main(env: str, store: str, seed: str, most: str, *stages: str) -> None:
    found: dict[str, tuple[int, int, int]] = {}
    finished, rng = Store(store), random.Random(int(seed))
    for job in plan(preset(env, "smoke")).jobs.values():
        if stages and found.keys() >= set(stages):
            break
        at_hand = {ref: finished.fetch(*ref) for ref in job.inputs}
        if not finished.complete(*job.ref):
            assert _ended(job, at_hand, Path(store), get_context("fork").Value("q", 0), 0) == 0
        if job.ref.stage not in found and (not stages or job.ref.stage in stages):
            with tempfile.TemporaryDirectory() as scratch:
                found[job.ref.stage] = killed_at_each(job, at_hand, Path(scratch), int(most), rng)
            print(f"{job.name}: {found[job.ref.stage]}", file=sys.stderr, flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
