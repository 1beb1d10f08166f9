"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

_PEERS = ("stable-baselines3", "sbx-rl", "jax", "d3rlpy", "torch")
_ASK = "import importlib.metadata as m; print(*(f'{{n}} {{m.version(n)}}' for n in {names}), sep=', ')"


def describe(peers_python: Path) -> dict[str, str]:
    """Processor, cores, memory and versions, by name."""
    found = {
        "CPU": _cpu(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1024**3:.0f} GiB",
        "Python": platform.python_version(),
        "torch": version("torch"),
    }
    if peers_python.exists():
        asked = subprocess.run(
            [str(peers_python), "-c", _ASK.format(names=_PEERS)], capture_output=True, text=True, check=False
        )
        found["and for the peers"] = asked.stdout.strip() or "an unfinished installation"
    return found


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
