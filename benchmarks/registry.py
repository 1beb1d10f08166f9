"""The rows of the table: what is measured, and who is measured side by side."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["ours", "plain", "peer", "limit"]


@dataclass(frozen=True)
class Competitor:
    """One measured process."""

    label: str
    kind: Kind
    target: str
    """`module:function` of this project's interpreter, or for a peer its script in benchmarks/peers."""
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """Competitors that do the same work, measured in turn; the first is what the others are compared with."""

    name: str
    title: str
    unit: str
    cores: int
    competitors: tuple[Competitor, ...]
    higher_is_better: bool
    note: str
    by_default: bool = True
    rounds: int | None = None
    """At most so many, where one takes long."""
    compared: bool = True
    """Whether the competitors do the same work."""
    profiled: bool = False
    """Whether a profile of the first competitor tells something."""


def _learner(label: str, kind: Kind, function: str, *more: dict[str, Any]) -> Competitor:
    arguments = {name: value for part in more for name, value in part.items()}
    return Competitor(label, kind, f"benchmarks.ours.learners:{function}", arguments)


def _limits(target: str, arguments: dict[str, Any]) -> tuple[Competitor, ...]:
    labels = {"torch": "matrix products alone, torch.mm", "onednn": "matrix products alone, oneDNN"}
    return tuple(
        Competitor(label, "limit", f"benchmarks.ours.{target}", {"library": library} | arguments)
        for library, label in labels.items()
    )


_SAC = {"observation_size": 17, "action_size": 6, "hidden": [256, 256], "batch_size": 256}
_SMALL_SAC = {"observation_size": 17, "action_size": 6, "hidden": [128, 128], "batch_size": 128}
_ROWS = {"rows": 100_000}
_SB = _SAC | _ROWS | {"at_once": 50}
_SMALL_SB = _SMALL_SAC | _ROWS | {"at_once": 50}
_ANT = {"observation_size": 27, "action_size": 8}
_BCQ_NETWORKS = {"hidden": [400, 300], "vae_hidden": [750, 750], "batch_size": 100, "candidates": 10}
_BCQ = _ANT | _ROWS | _BCQ_NETWORKS
_EVALUATION = {"environment": "half_cheetah_vel", "horizon": 200}
_EVALUATE = "benchmarks.ours.evaluation"
_STUDENT_SIZES = {"width": 256, "depth": 3}
_STUDENT = _EVALUATION | _STUDENT_SIZES | {"episodes": 2}

_SAC_ROW = Row(
    "sac",
    "Soft actor-critic, one task: 256-256, batch 256",
    "updates/s",
    1,
    (
        _learner("this project", "ours", "sac", _SAC, _ROWS, {"tasks": 1, "stack": 1}),
        Competitor("Stable-Baselines3", "peer", "sac_sb3.py", _SB),
        Competitor("SBX (JAX)", "peer", "sac_sbx.py", _SB),
        _learner("plain torch loop", "plain", "plain_sac", _SAC, _ROWS, {"tasks": 1}),
        *_limits("learners:sac_limit", _SAC | {"tasks": 1}),
    ),
    True,
    "Observations of 17, actions of 6, automatic temperature, a replay buffer of 100,000. Both Stable-Baselines make "
    "50 updates in a call of `train`.",
    profiled=True,
)
_STACKED_ROW = Row(
    "sac_stacked",
    "Soft actor-critic, ten tasks: 128-128, batch 128",
    "updates/s, all tasks",
    1,
    (
        _learner("this project, stacked", "ours", "sac", _SMALL_SAC, _ROWS, {"tasks": 10, "stack": 10}),
        _learner("this project, task by task", "ours", "sac", _SMALL_SAC, _ROWS, {"tasks": 10, "stack": 1}),
        Competitor("SBX (JAX), one task", "peer", "sac_sbx.py", _SMALL_SB),
        _learner("plain torch loop, task by task", "plain", "plain_sac", _SMALL_SAC, _ROWS, {"tasks": 10}),
        *_limits("learners:sac_limit", _SMALL_SAC | {"tasks": 10}),
    ),
    True,
    "Updates of one task, added up over ten tasks that take turns or run stacked. SBX has one task alone, which is the "
    "most that ten in turn can reach.",
    profiled=True,
)
_BCQ_ROW = Row(
    "bcq",
    "BCQ, one task, the paper's networks",
    "ms/iteration",
    1,
    (
        _learner("this project", "ours", "bcq", _ANT, _ROWS),
        Competitor("d3rlpy, batches ready", "peer", "bcq_d3rlpy.py", _BCQ | {"sampling": False}),
        Competitor("d3rlpy, with its sampling", "peer", "bcq_d3rlpy.py", _BCQ | {"sampling": True}),
        _learner("plain torch loop", "plain", "plain_bcq", _ANT, _ROWS),
        *_limits("learners:bcq_limit", _ANT),
    ),
    False,
    "400-300, VAE 750-750, 10 candidates, batch 100; observations of 27, actions of 8. This project and the plain loop "
    "draw their batches inside the clock.",
    profiled=True,
)


def _distillation(name: str, title: str, width: int, depths: list[int]) -> Row:
    shape = _ANT | {"width": width, "depths": depths, "tasks": 10, "eligible": 0.5}
    sizes = shape | {"rows": 2_000}
    module = "benchmarks.ours.distillation"
    return Row(
        name,
        f"Distillation, full model, ten tasks, {title}",
        "ms/step",
        2,
        (
            Competitor("this project", "ours", f"{module}:step", sizes),
            Competitor("plain torch loop, pair by pair", "plain", f"{module}:plain_step", sizes),
            *_limits("distillation:step_limit", shape),
        ),
        False,
        "M = 64, B = 128, encoder 200 x 3, all nine partners of every task as in the authors' code, half of all "
        "relabelled transitions eligible. The plain loop encodes three sets per pair, one after the other; the "
        "products are those of encoding every transition once.",
        profiled=True,
    )


_ENSEMBLES_ROW = Row(
    "ensembles",
    "Reward ensembles, ten tasks x 20 members of 128 units, batch 128",
    "ms/step",
    1,
    (
        _learner("this project, stacked", "ours", "ensembles", _ANT, _ROWS, {"tasks": 10}),
        _learner("plain torch loop, member by member", "plain", "plain_ensembles", _ANT, _ROWS, {"tasks": 10}),
        *_limits("learners:ensembles_limit", _ANT | {"tasks": 10}),
    ),
    False,
    "One step of all 200 networks; observations of 27, actions of 8.",
    profiled=True,
)
_EVALUATION_ROW = Row(
    "evaluation",
    "Evaluation, eight half_cheetah_vel tasks, students 256 x 3",
    "env steps/s",
    1,
    (
        Competitor("this project, lock-step", "ours", f"{_EVALUATE}:evaluate", _STUDENT | {"stack": 8}),
        Competitor("this project, task by task", "ours", f"{_EVALUATE}:evaluate", _STUDENT | {"stack": 1}),
        *(
            Competitor(
                f"an acting student, {how}", "ours", f"{_EVALUATE}:evaluate", _STUDENT | {"stack": n, "kind": "acting"}
            )
            for how, n in (("lock-step", 8), ("task by task", 1))
        ),
        Competitor("physics alone", "limit", f"{_EVALUATE}:physics", _EVALUATION),
        *_limits("evaluation:evaluate_limit", {"environment": "half_cheetah_vel", "stack": 8} | _STUDENT_SIZES),
    ),
    True,
    "Two episodes of 200 steps per task, 10 candidate actions per step, untrained networks; physics alone is the "
    "environments' `step` under random actions, the products are those of choosing eight tasks' actions. Physics and "
    "products take turns: lock-step cannot exceed 1 / (1 / physics + 1 / products). An acting student imitates the "
    "choice among the candidates with one network.",
    profiled=True,
)


def _driver(name: str, title: str, function: str, cores: int, note: str, **more: Any) -> Row:
    return Row(
        name,
        title,
        "ms/job",
        cores,
        tuple(
            Competitor(f"{tasks:,} tasks", "ours", f"benchmarks.ours.driver:{function}", {"tasks": tasks, **more})
            for tasks in (250, 500, 1_000)
        ),
        False,
        note,
        rounds=3,
    )


_MEMORY_ROW = Row(
    "memory",
    "Private memory of an actor with the batches of ten ant_goal tasks, over `import torch`",
    "MiB",
    1,
    tuple(
        Competitor(f"{rows:,} transitions a task", "ours", "benchmarks.ours.memory:loaded", {"transitions": rows})
        for rows in (100_000, 300_000)
    ),
    False,
    "100,000 is the laptop's size, 300,000 the paper's. Batches were drawn from all over the data, whose pages stay "
    "those of the files, shared by all actors and not counted.",
    rounds=3,
    compared=False,
)
_RAYLETS_ROW = Row(
    "raylets",
    "Collection on raylets of one CPU each, eight jobs",
    "% of their time at work",
    2,
    tuple(
        Competitor(
            f"{number} raylet{'s' * (number > 1)}",
            "ours",
            "benchmarks.ours.raylets:collection",
            {"raylets": number, "tasks": 8, "steps": 8_000},
        )
        for number in (1, 2, 4)
    ),
    True,
    "Seconds that jobs of `umaze_goal` worked over wall seconds times CPUs. All raylets are on two processors: four "
    "take turns on them, so that a job takes twice as long there.",
    by_default=False,
    rounds=1,
)
_ORCHESTRATION_ROW = Row(
    "orchestration",
    "Share of a whole run's CPU time that no job used (umaze_goal, laptop)",
    "%",
    2,
    (
        Competitor(
            "this project",
            "ours",
            "benchmarks.ours.orchestration:whole_run",
            {"environment": "umaze_goal", "preset": "laptop"},
        ),
    ),
    False,
    "1 - sum over jobs of seconds x CPUs / (wall seconds x CPUs): starting actors, scheduling, storing, and idle CPUs.",
    by_default=False,
    rounds=1,
)

ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        _SAC_ROW,
        _STACKED_ROW,
        _BCQ_ROW,
        _distillation("distillation", "students 256 x 3", 256, [3, 3, 3]),
        _distillation("distillation_paper", "students 1024 x 9, 7, 8", 1024, [9, 7, 8]),
        _ENSEMBLES_ROW,
        _EVALUATION_ROW,
        _driver("planning", "Planning a run, three jobs a task", "planning", 1, "Linear where ms/job stays level."),
        _driver(
            "driver",
            "Empty jobs through the scheduler, Ray and the store, three a task",
            "scheduling",
            2,
            "Embedded Ray of 2 CPUs; starting Ray and the wait for the first worker (in results.json) are outside the "
            "clock. Linear where ms/job stays level.",
            cpus=2,
        ),
        _MEMORY_ROW,
        _RAYLETS_ROW,
        _ORCHESTRATION_ROW,
    )
}
