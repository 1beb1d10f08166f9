"""The ordeals: each does something bad to a run, lets it end, and compares."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from mbml.serialise import sha256_of
from tests.pipeline.test_cluster import machines

Sums = dict[str, dict[str, str]]
"""Artefact -> file -> SHA-256."""
Row = dict[str, str | int]
_DEADLINE = 900.0
_ROUNDS = 4
_FUZZED = ("tests/pipeline/test_hostile.py",)


def _mounting(mount: str) -> tuple[str, ...]:
    return ("unshare", "--mount", "bash", "-ec", f'{mount}; cd "$PWD"; exec "$@"', "-")


_SCARCE = {
    "no home directory": ("env", "-u", "USER", "HOME=/nowhere"),
    "a working folder that is read-only": _mounting('mount --bind "$PWD" "$PWD"; mount -o remount,ro,bind "$PWD"'),
    "no network": ("unshare", "--net", "bash", "-ec", 'ip link set lo up; exec "$@"', "-"),
    "1 MB of shared memory": _mounting("mount -t tmpfs -o size=1m tmpfs /dev/shm"),
    "one processor": ("taskset", "-c", "0"),
    "a wall clock that jumps": ("env", f"PYTHONPATH={Path(__file__).parent / 'jumping'}"),
}


@dataclass(frozen=True)
class Place:
    """A run in a folder of its own."""

    folder: Path
    env: str
    pace: float = 60.0
    """Seconds that a run takes when it is left alone, by which the moments of an ordeal are spread."""
    cluster: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of one to join."""
    within: tuple[str, ...] = ()
    """A command that runs the one behind it in a place that lacks something."""

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def start(self, *options: str, out: str = "out") -> subprocess.Popen[str]:
        """The command, as somebody types it; a process group of its own, as a terminal gives."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pipeline", "run", "--env", self.env, "--preset", "smoke"]
        places = ["--store", str(self.store), "--out", str(self.folder / out), "--checkpoint-seconds", "0.5"]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        environment |= self.cluster
        return subprocess.Popen(
            [*self.within, *command, *places, *options], env=environment, start_new_session=True, **pipes
        )

    def run(self, *options: str) -> tuple[int, str]:
        """Exit code and everything said."""
        with self.start(*options) as process:
            said, _ = process.communicate(timeout=_DEADLINE)
        return process.returncode, said

    def sums(self) -> Sums:
        """Of every complete artefact's files, as they are now; its manifest has times."""
        found = {}
        for path in self.store.glob("*/*/manifest.json"):
            manifest = json.loads(path.read_text())
            files = {each["file"]: path.parent / each["file"] for each in manifest["files"]}
            sums = {name: sha256_of(file) if file.is_file() else "" for name, file in files.items()}
            found[f"{manifest['stage']}/{manifest['key']}"] = sums
        return found


def reference_run(place: Place) -> Sums:
    """The sums of a run that is left alone."""
    code, said = place.run()
    if code:
        raise RuntimeError(f"The run that is left alone ended with {code}:\n{said}")
    return place.sums()


def _row(done: str, times: int, came: str, found: Sums, reference: Sums) -> Row:
    lost = [name for name, files in reference.items() if found.get(name) != files]
    return {"done": done, "times": times, "came": came, "compared": len(reference), "lost": len(lost)}


def workers(place: Place, reference: Sums, rng: random.Random) -> Row:
    """SIGKILL at random moments to processes that make artefacts, in several runs; twice a run at each stage."""
    killed: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    compared = lost = foreign = again = 0
    for number in range(_ROUNDS):
        own, hit = replace(place, folder=place.folder / str(number)), Counter[str]()
        with own.start() as process:
            lines, family = _reader(process), psutil.Process(process.pid)
            deadline = time.monotonic() + _DEADLINE
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
                with suppress(psutil.Error):
                    at = [(child, doing) for child in family.children(recursive=True) if (doing := _doing(child))]
                    if busy := [(child, doing) for child, doing in at if hit[doing] < 2]:
                        victim, doing = rng.choice(busy)
                        time.sleep(rng.expovariate(100.0 / place.pace))
                        victim.kill()
                        hit[doing] += 1
            if process.poll() is None:
                process.kill()
        killed += hit
        codes[process.returncode] += 1
        if process.returncode:  # a job was given up: the same command goes on
            again += own.run()[0] == 0
        foreign += sum("raylet" in line or "Traceback" in line for line in lines())
        row = _row("", 0, "", own.sums(), reference)
        compared, lost = compared + int(row["compared"]), lost + int(row["lost"])
    came = "exit codes " + ", ".join(f"{code} ({n} runs)" for code, n in codes.items())
    came += f"; typed again and ended well: {again}" if again else ""
    came += "; killed at " + ", ".join(f"{name} {n}" for name, n in killed.most_common())
    came += f"; lines that are not ours: {foreign}"
    done = "a worker killed (SIGKILL) at a random moment"
    return {"done": done, "times": killed.total(), "came": came, "compared": compared, "lost": lost}


def moments(place: Place, reference: Sums, rng: random.Random) -> Row:
    """SIGKILL to one job of every stage, just before each of the moments at which it changes its folder."""
    place.run()
    command = [
        sys.executable,
        "-m",
        "tests.torture.moments",
        place.env,
        str(place.store),
        str(rng.randrange(2**31)),
        "25",
    ]
    said = subprocess.run(command, capture_output=True, text=True, timeout=2 * _DEADLINE, check=True).stdout
    found: dict[str, tuple[int, int, int]] = json.loads(said)
    came = ", ".join(f"{stage} {tried} of {there}" for stage, (there, tried, _) in found.items())
    tried, differ = (sum(counts[at] for counts in found.values()) for at in (1, 2))
    done = "a job killed (SIGKILL) just before it opens, renames or removes a file"
    return {"done": done, "times": tried, "came": f"of all moments: {came}", "compared": tried, "lost": differ}


def drivers(place: Place, reference: Sums, rng: random.Random) -> Row:
    """The command itself killed, interrupted, hung up at random moments, and typed again."""
    kinds = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    sent: Counter[str] = Counter()
    left: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    slowest = 0.0
    for number in range(24):
        kind = kinds[number % len(kinds)]
        with place.start() as process:
            _reader(process)
            time.sleep(rng.uniform(0.0, 0.5) * place.pace)
            if process.poll() is not None:
                break
            family = psutil.Process(process.pid).children(recursive=True)
            began = time.monotonic()
            # A terminal and a supervisor signal the whole process group.
            process.kill() if kind == signal.SIGKILL else os.killpg(process.pid, kind)
            sent[kind.name] += 1
            codes[process.wait(60)] += 1
            _, alive = psutil.wait_procs(family, timeout=30)
            left[kind.name] += len(alive)
            if kind != signal.SIGKILL:
                slowest = max(slowest, time.monotonic() - began)
    code, _ = place.run()
    came = f"exit code of the last {code}; " + ", ".join(f"{name} {n}" for name, n in sent.items())
    came += "; exit codes " + ", ".join(f"{code} {n}" for code, n in sorted(codes.items()))
    remain = left.pop("SIGKILL", 0)
    came += f"; processes left after 30 s: {left.total()}, of Ray's after SIGKILL {remain}; slowest end {slowest:.1f} s"
    return _row("the command stopped at a random moment and typed again", sent.total(), came, place.sums(), reference)


def machines_gone(place: Place, reference: Sums, rng: random.Random) -> Row:
    """A cluster of three machines that loses one at a random moment, and has another taken away by notice."""
    codes: Counter[int] = Counter()
    jobs_lost = compared = lost = 0
    for number in range(_ROUNDS):
        with machines(1, 1, 1) as (cluster, environment):
            assert cluster.stdin is not None
            joined = {name: environment[name] for name in environment if name.startswith("RAY_")}
            own = replace(place, folder=place.folder / str(number), cluster=joined)
            with own.start() as process:
                lines = _reader(process)
                for event in rng.sample(["remove", "drain 3"], 2):
                    time.sleep(rng.uniform(0.1, 0.4) * place.pace)
                    print(event, file=cluster.stdin, flush=True)
                process.wait(_DEADLINE)
            codes[process.returncode] += 1
            jobs_lost += sum("] lost " in line for line in lines())
        row = _row("", 0, "", own.sums(), reference)
        compared, lost = compared + int(row["compared"]), lost + int(row["lost"])
    came = "exit codes " + ", ".join(f"{code} ({n} runs)" for code, n in codes.items())
    came += f"; jobs that went on elsewhere: {jobs_lost}"
    done = "one machine of three gone at once, another with three seconds' notice"
    return {"done": done, "times": 2 * _ROUNDS, "came": came, "compared": compared, "lost": lost}


def inputs(place: Place, reference: Sums, rng: random.Random) -> Row:
    """Command lines, sweeps, column maps, logs, policies and checkpoints that Hypothesis makes up."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *_FUZZED]
    environment = os.environ | {"MBML_EXAMPLES": "1000"}
    done = subprocess.run(
        [*command, "--hypothesis-show-statistics", f"--hypothesis-seed={rng.randrange(2**31)}"],
        env=environment, capture_output=True, text=True, timeout=2 * _DEADLINE,
    )  # fmt: skip
    tried = sum(map(int, re.findall(r"(\d+) passing", done.stdout)))
    came = "each refused in a sentence with exit code 2, or meant" if not done.returncode else done.stdout[-300:]
    return {"done": "inputs made up", "times": tried, "came": came, "compared": 0, "lost": int(done.returncode > 0)}


def bytes_changed(place: Place, reference: Sums, rng: random.Random) -> Row:
    """Bytes flipped or cut in files of finished artefacts; the same command, then with --repair."""
    place.run()
    said: Counter[str] = Counter()
    times = 0
    for _ in range(12):
        files = [f for f in place.store.rglob("*") if f.is_file() and f.stat().st_size]
        for path in rng.sample(files, 3):
            times += 1
            _damage(path, rng)
        code, text = place.run()
        named = "is damaged" in text or "cannot be read" in text
        came = "not read, exit code 0" if code == 0 else "named, exit code 2" if code == 2 and named else text[-200:]
        said[came] += 1
        code, text = place.run("--repair")
        said["repaired" if code == 0 else f"not repaired: {text[-200:]}"] += 1
    came = "12 rounds of 3 files: " + ", ".join(f"{name}: {n} times" for name, n in said.items())
    return _row("a file of a finished artefact changed or cut", times, came, place.sums(), reference)


def _damage(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content))
    if rng.random() < 0.3:
        del content[at:]
    else:
        content[at] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def two_at_once(place: Place, reference: Sums, rng: random.Random) -> Row:
    """Two of the same command on one store, to the end, and with one of them killed half way."""
    codes, twice, compared, lost = [], 0, 0, 0
    for number in range(_ROUNDS):
        own = replace(place, folder=place.folder / str(number))
        with own.start() as first, own.start() as second:
            said = _reader(first), _reader(second)
            if number % 2:
                time.sleep(rng.uniform(0.1, 0.9) * place.pace)
                first.kill()
            codes += [str(process.wait(_DEADLINE)) for process in (first, second)]
        made = [set(re.findall(r"\] finished (.+?)   ", "".join(lines()))) for lines in said]
        twice += len(made[0] & made[1])
        row = _row("", 0, "", own.sums(), reference)
        compared, lost = compared + int(row["compared"]), lost + int(row["lost"])
    came = f"exit codes {', '.join(codes)} (every second pair: one SIGKILLed half way); jobs that both made: {twice}"
    done = "two runs at once on one store"
    return {"done": done, "times": _ROUNDS, "came": came, "compared": compared, "lost": lost + twice}


def full_disk(place: Place, reference: Sums, rng: random.Random) -> Row:
    """A store on a small file system that fills up, and is then given room (needs the right to mount)."""
    place.store.mkdir(parents=True)
    size, said, times = 64, Counter(), 0
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(place.store)]
    if subprocess.run(mount, capture_output=True).returncode:
        return _row("a disk that is full", 0, "not tried: no right to mount", reference, reference)
    try:
        while True:
            code, text = place.run()
            if code == 0:
                break
            times += 1
            one = "No space left" in text and "Traceback" not in text
            said[f"a sentence, exit code {code}" if one else text[-300:]] += 1
            size = size * 3 // 2
            subprocess.run(["mount", "-o", f"remount,size={size}k", str(place.store)], check=True)
        found = place.sums()
    finally:
        subprocess.run(["umount", "-l", str(place.store)], check=False)
    return _row("a disk that is full", times, ", ".join(f"{k} {n}" for k, n in said.items()), found, reference)


def scarcity(place: Place, reference: Sums, rng: random.Random) -> Row:
    """Runs in places that lack what others have, one a clock that holds (most need the right to make name spaces)."""
    came, lost, compared, times = [], 0, 0, 0
    for number, (lack, within) in enumerate(_SCARCE.items()):
        can = subprocess.run([*within, "true"], capture_output=True, check=False).returncode == 0
        if not can:
            came.append(f"{lack}: not tried here")
            continue
        own = replace(place, folder=place.folder / str(number), within=within)
        code, said = own.run()
        row = _row("", 0, "", own.sums(), reference)
        times, lost, compared = times + 1, lost + int(row["lost"]), compared + int(row["compared"])
        came.append(f"{lack}: exit code {code}" + (f" ({said[-200:]})" if code else ""))
    return {
        "done": "a place that lacks something",
        "times": times,
        "came": ", ".join(came),
        "compared": compared,
        "lost": lost,
    }


def _doing(process: psutil.Process) -> str | None:
    """The stage that a worker is at, by the title that Ray gives it."""
    with suppress(psutil.Error):
        title = process.cmdline()[:1]
        if title and title[0].startswith("ray::") and "(" in title[0]:
            return title[0].removeprefix("ray::").split()[0]
    return None


def _reader(process: subprocess.Popen[str]) -> Callable[[], list[str]]:
    """Reads what a process says in the background, so that it never waits for a full pipe; the lines so far."""
    lines: list[str] = []
    pipe = process.stdout
    assert pipe is not None
    thread = threading.Thread(target=lambda: lines.extend(iter(pipe.readline, "")), daemon=True)
    thread.start()

    def so_far() -> list[str]:
        thread.join(5.0)
        return list(lines)

    return so_far


ORDEALS: dict[str, Callable[[Place, Sums, random.Random], Row]] = {
    "workers": workers,
    "moments": moments,
    "drivers": drivers,
    "bytes": bytes_changed,
    "two": two_at_once,
    "disk": full_disk,
    "machines": machines_gone,
    "scarcity": scarcity,
    "inputs": inputs,
}
