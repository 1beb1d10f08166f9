"""What a multi-task policy does on unseen tasks, step by step, for a look at it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.artefacts import snapshot_of, tasks_of, write_lines
from actors.stage import Ref, Run, stage
from mbml import envs
from mbml.evaluate import EvaluateConfig, Evaluation, trace_behaviour
from mbml.policy import ContextPolicy

EPISODES = (1, 2, 5)
TASKS = 4
_POINTS = 200  # of an episode, at most: as many as a picture can show


@dataclass(frozen=True)
class Trace:
    """Some episodes of a snapshot of the multi-task learner `trained` on the tasks `test`."""

    env: str
    horizon: int
    test: tuple[int, ...]
    trained: Ref
    step: int
    seed: int


@stage(version=1)
def trace(spec: Trace, run: Run) -> dict[str, Any]:
    """Leaves `behaviour.jsonl`: a line per task and episode with steps, and a list of each number that is shown."""
    policy = ContextPolicy.load(snapshot_of(run.inputs[spec.trained], spec.step))
    tasks = tasks_of(spec.env, "test", spec.test)
    protocol = EvaluateConfig(episodes=EPISODES[-1])
    shown = trace_behaviour(policy, Evaluation(envs.get(spec.env), tasks, spec.horizon, protocol, spec.seed))
    lines = []
    for task, episodes in zip(spec.test, shown, strict=True):
        for number in [number for number in EPISODES if number <= len(episodes)]:
            values = episodes[number - 1]
            kept = np.arange(len(values))[:: -(-len(values) // _POINTS)]
            short = [[float(f"{value:.5g}") for value in column] for column in values[kept].T]
            lines.append({"task": task, "episode": number, "step": (kept + 1).tolist(), "shown": short})
    write_lines(run.out / "behaviour.jsonl", lines)
    return {}
