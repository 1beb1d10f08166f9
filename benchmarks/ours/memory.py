"""Private memory of a process that draws from the batches of ten ant_goal tasks, over that of `import torch` alone.

Pages of the batches' own files do not count: they are page cache, of which a machine has one copy for all processes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.protocol import Measure

ENVIRONMENT, TASKS, HORIZON = "ant_goal", 10, 200
BATCHES, BATCH_SIZE = 500, 128
MIB = 1024**2


def loaded(transitions: int) -> Measure:
    """MiB over `import torch`; a process of its own each time, which reads a dataset that is written once."""
    folder = tempfile.TemporaryDirectory()
    root = Path(folder.name)
    rows = _write(root / "dataset", transitions)

    def measure(seconds: float) -> dict[str, Any]:
        assert folder  # gone with this function
        command = [sys.executable, "-m", "benchmarks.ours.memory", str(root)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return {"value": found["loaded"] - found["torch"], **found, "rows_alone": rows}

    return measure


def _write(root: Path, transitions: int) -> float:
    """Write the batches and return the MiB of their packed float32 rows."""
    from mbml import envs
    from mbml.data import DatasetWriter
    from mbml.transitions import TransitionBatch

    distribution, random = envs.get(ENVIRONMENT), np.random.default_rng(0)
    s, a = distribution.observation_size, distribution.action_size
    with DatasetWriter(
        root,
        environment=ENVIRONMENT,
        observation_size=s,
        action_size=a,
        horizon=HORIZON,
        collection={"by": "chance"},
    ) as writer:
        for task in range(TASKS):
            step = np.arange(transitions, dtype=np.int32)
            ends = step % HORIZON == HORIZON - 1
            observation = random.standard_normal((transitions + 1, s), np.float32)
            batch = TransitionBatch(
                observation=observation[:-1],
                action=random.uniform(-1, 1, (transitions, a)).astype(np.float32),
                next_observation=observation[1:],
                reward=random.standard_normal(transitions, np.float32),
                terminated=np.zeros(transitions, bool),
                truncated=ends,
                episode=step // HORIZON,
                step=step % HORIZON,
            )
            writer.add_task(task, batch, parameter=[0.0], label=f"task {task}")
    return TASKS * transitions * (2 * s + a + 2) * 4 / MIB


def _resident(root: Path) -> tuple[float, float]:
    """MiB that this process alone holds but for the files in `root`, and MiB of those files that it has touched."""
    private = mapped = 0
    ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, value = line.split(maxsplit=1)
        if not name.endswith(":"):  # the head of a mapping, with the path of its file
            ours = str(root) in value
        elif ours and name == "Rss:":
            mapped += int(value.split()[0])
        elif not ours and name.startswith("Private_"):
            private += int(value.split()[0])
    return private / 1024, mapped / 1024


def _load(root: Path) -> dict[str, float]:
    """The stations: nothing but torch, the project's modules, the rows when batches from all over were drawn."""
    import torch

    bare, _ = _resident(root)
    from actors.artefacts import load_rows
    from mbml.rows import gather_rows

    imported, _ = _resident(root)
    rows, generator = load_rows([root], range(TASKS)), torch.Generator().manual_seed(0)
    for _ in range(BATCHES):
        gather_rows(rows, rows.lengths.sample(BATCH_SIZE, generator))
    loaded, mapped = _resident(root)
    return {"torch": bare, "imported": imported, "loaded": loaded, "mapped": mapped}


if __name__ == "__main__":
    print(json.dumps(_load(Path(sys.argv[1]))))
