"""A thousand tasks in one small file: a point in the plane, each task a goal of its own in a disc.

    python -m pipeline run --env examples.point_mass:point_mass --train-tasks 100
    python -m examples.point_mass logs.parquet --tasks 1000 --rows 2000     # and logs of it, for `fit`

The first K training goals are spread evenly over the disc, whatever K is, so `--train-tasks` sets how many there are.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyarrow as pa
import tyro
from gymnasium.spaces import Box
from pyarrow import parquet

from mbml.envs import View, family

STEPS = 20
"""Of an episode."""
SPEED = 0.15
"""How far an action of 1 moves the point in a step; the disc of goals has the radius 1."""
SPREAD = 0.3
"""Standard deviation of where episodes begin, about the middle."""


def goals(number: int, first: int = 0) -> np.ndarray:
    """Points `[number, 2]` of a sequence that fills the disc evenly (Roberts' R2, by area)."""
    place = np.arange(first + 1, first + number + 1)[:, None] * np.array([0.7548776662466927, 0.5698402909980532]) % 1
    radius, angle = np.sqrt(place[:, 0]), 2 * np.pi * place[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


def reward(observation: np.ndarray, action: np.ndarray, next_observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Minus the distance to the goal after the step `[n]`."""
    return -np.linalg.norm(next_observation.astype(np.float64) - goal, axis=-1)


def moved(observation: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Where actions `[n, 2]` lead to from observations `[n, 2]`; nothing stops a point."""
    return (observation + SPEED * np.clip(action, -1, 1)).astype(np.float32)


class PointMass(gymnasium.Env):
    """One point and its goal; never ends."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, goal: np.ndarray) -> None:
        self.goal, self.place = goal, np.zeros(2, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.place = self.np_random.normal(0, SPREAD, 2).astype(np.float32)
        return self.place, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.place = moved(self.place, action)
        return self.place, float(reward(self.place, action, self.place, self.goal)), False, False, self._where()

    def _where(self) -> dict[str, Any]:
        return {"achieved": self.place.tolist()}


SMALL = {
    **{"collect.steps": 2_000, "collect.warmup_steps": 400, "collect.epoch_steps": 200, "collect.evaluation_every": 4},
    **{"collect.updates_per_step": 0.5, "collect.sac.policy_hidden": (64, 64), "collect.sac.critic_hidden": (64, 64)},
    **{"teacher": "iql", "teach.iterations": 1_500, "teach.evaluation_every": 500, "teach.evaluation_episodes": 3},
    **{"iql.hidden": (64, 64), "iql.batch_size": 64, "iql.learning_rate": 3e-3},
    **{"models.reward.hidden": (64, 64), "models.reward.members": 3, "models.reward.steps": 1_000},
    **{"models.reward.batch_size": 64, "relabel.pool": 1_000, "methods": ("evidence",)},
    **{"evidence.student.kind": "acting", "evidence.steps": 4_000, "evidence.snapshot_every": 4_000},
    **{"evaluate.repeats": 1, "teach.tasks_per_actor": 0, "models.tasks_per_actor": 0, "collect.tasks_per_actor": 20},
}
"""Sizes that this needs."""

point_mass = family(
    "point_mass",
    PointMass,
    train=goals(1_000),
    test=goals(20, first=1_000),
    horizon=STEPS,
    parameter="goal (x, y)",
    label=lambda goal: f"({goal[0]:.2f}, {goal[1]:.2f})",
    reward=reward,
    reward_note="exact",
    view=View("goal", ("x", "y")),
    presets={"laptop": SMALL},
    title="Point mass",
    about="a point in the plane that goes to one of a thousand goals",
)


def logs(tasks: int, rows: int, seed: int = 0) -> pa.Table:
    """So many rows of the first so many tasks, all side by side: a controller that goes to the goal, more or less."""
    make, goal = np.random.default_rng(seed), goals(tasks)
    episodes = -(-rows // STEPS)
    found: dict[str, list[np.ndarray]] = {}
    for episode in range(episodes):
        place = make.normal(0, SPREAD, (tasks, 2)).astype(np.float32)
        noise = make.uniform(0.1, 1.0, (tasks, 1))
        for step in range(min(STEPS, rows - episode * STEPS)):
            wanted = np.clip((goal - place) / SPEED, -1, 1) + noise * make.normal(size=(tasks, 2))
            action = np.clip(wanted, -1, 1).astype(np.float32)
            after = moved(place, action)
            row = {
                **{"episode": np.full(tasks, episode, np.int32), "step": np.full(tasks, step, np.int32)},
                **{"x": place[:, 0], "y": place[:, 1], "dx": action[:, 0], "dy": action[:, 1]},
                **{"next_x": after[:, 0], "next_y": after[:, 1]},
                "reward": reward(place, action, after, goal).astype(np.float32),
            }
            for name, column in row.items():
                found.setdefault(name, []).append(column)
            place = after
    # Task by task, as a fleet's database would have them.
    columns = {name: pa.array(np.stack(parts, 1).ravel()) for name, parts in found.items()}
    names = pa.array([f"point {task:04d}" for task in range(tasks)])
    which = pa.array(np.repeat(np.arange(tasks, dtype=np.int32), rows))
    return pa.table({"task": pa.DictionaryArray.from_arrays(which, names), **columns})


COLUMNS = """\
task: task
episode: episode
step: step
observation: [x, y]
action: [dx, dy]
next_observation: [next_x, next_y]
reward: reward
bounds: {dx: [-1, 1], dy: [-1, 1]}
"""


@dataclass(frozen=True)
class Options:
    """Logs to write."""

    file: tyro.conf.Positional[Path] = Path("points.parquet")
    """Parquet; which column is what goes beside it, as columns.yaml."""
    tasks: int = 1_000
    """Goals."""
    rows: int = 2_000
    """Steps that are logged of each."""
    seed: int = 0
    """Of the noise."""


def write_logs(options: Options) -> None:
    """Write logs and columns."""
    options.file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(logs(options.tasks, options.rows, options.seed), options.file)
    options.file.with_name("columns.yaml").write_text(COLUMNS)


if __name__ == "__main__":
    write_logs(tyro.cli(Options, description=__doc__))
