"""A competitor's process: started on its processors, asked for one round at a time, idle in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.registry import Competitor

ROOT = Path(__file__).resolve().parents[1]
PEERS = Path(__file__).with_name("peers")


class Failed(RuntimeError):
    """A competitor that could not be built or measured; the sentence stands in the table."""


def processors(cores: int) -> list[int]:
    """The first `cores` processors that this program may use, or all of them where there are fewer."""
    return sorted(os.sched_getaffinity(0))[:cores]


class Process:
    """Builds a competitor in a process of its own; raises Failed where that is not possible."""

    def __init__(self, competitor: Competitor, where: Sequence[int], peers_python: Path, log: Path) -> None:
        if competitor.kind == "peer" and not peers_python.exists():
            raise Failed("not installed; `make bench-peers` installs it")
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                _command(competitor, peers_python),
                cwd=ROOT,
                env=_environment(len(where)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                preexec_fn=lambda: os.sched_setaffinity(0, where),
            )
        self._answer()

    def measure(self, seconds: float) -> dict[str, Any]:
        """One round of at least `seconds`; raises Failed where the process has died."""
        assert self._process.stdin is not None
        try:
            print(seconds, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise Failed(self._last_words()) from None
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise Failed(self._last_words())
        return json.loads(line)

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "ended without a word"


def _command(competitor: Competitor, peers_python: Path) -> list[str]:
    arguments = json.dumps(competitor.arguments)
    if competitor.kind == "peer":
        return [str(peers_python), str(PEERS / competitor.target), arguments]
    return [sys.executable, "-m", "benchmarks.serve", competitor.target, arguments]


def _environment(threads: int) -> dict[str, str]:
    """As many threads as processors for every library that has threads of its own."""
    count = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    xla = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"} if threads == 1 else {}
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return kept | count | xla | {"JAX_PLATFORMS": "cpu"}
