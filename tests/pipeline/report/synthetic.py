"""Small made-up results in the shape that a run writes: they rise, level off and differ between tasks."""

import numpy as np

from pipeline.results import Results, table_of, tidy

REFERENCES = {
    "random": 60.0,
    "zero_action": 62.0,
    "blind_teacher": 130.0,
    "likelihood_teacher": 125.0,
    "nearest_teacher": 190.0,
    "blind_teacher_bound": 140.0,
    "best_teacher": 210.0,
}
METHODS = {"full": 170.0, "no_triplet": 120.0, "neither": 90.0, "no_ensemble": 140.0, "contextual_bcq": 110.0}
STEPS = [500 * n for n in range(1, 7)]


def results(
    methods: tuple[str, ...] = ("full",), seeds: int = 2, train: int = 3, test: int = 4, noise: float = 8.0
) -> Results:
    """Scores, references, curves, losses and probes; parameters are goals in a plane."""
    make = np.random.default_rng(0)
    counts = {"train": train, "test": test}
    goals = {split: make.uniform(-2, 2, (count, 2)) for split, count in counts.items()}
    offset = {split: make.normal(0, 15, count) for split, count in counts.items()}
    rise = 1 - np.exp(-np.arange(1, 7) / 2)[:, None]
    parts = []
    for split, count in counts.items():
        tasks = list(range(count))
        for name, level in REFERENCES.items():
            parts.append(tidy("reference", "task", level + offset[split], method=name, split=split, task=tasks))
        teachers = 100 + make.normal(0, 20, (count, train))
        parts.append(
            tidy(
                "teacher_return",
                "task index",
                teachers,
                method="teacher",
                split=split,
                task=tasks,
                index=list(range(train)),
            )
        )
    tasks = list(range(train))
    for name, level in (("sac", 240.0), ("own_teacher", 225.0)):
        parts.append(tidy("reference", "task", level + offset["train"], method=name, split="train", task=tasks))
    for name, level in (("sac", 240.0), ("teacher", 225.0)):
        parts.append(
            tidy(
                "return",
                "task step",
                level * rise.T + offset["train"][:, None],
                method=name,
                split="train",
                task=tasks,
                step=STEPS,
            )
        )
    parts += [tidy("selected", "", 220.0, method="teacher", split="train", task=task, step=2500) for task in tasks]
    for method in methods:
        level = METHODS.get(method, 160.0)
        square = make.uniform(0.2, 1, (train, train)) + np.diag([np.nan] * train)
        at = {"method": method, "split": "train", "task": tasks}
        for metric in ("share", "error_eligible", "error_all"):
            parts.append(tidy(f"relabel_{metric}", "task index", square, index=tasks, **at))
        for n in range(1, 6):
            parts.append(
                tidy("relabel_training_error", "task", np.exp(-n) * make.uniform(0.5, 1.5, train), step=100 * n, **at)
            )
            parts.append(tidy("relabel_training_kept", "", 0.1 * n, step=100 * n, method=method))
        for seed in range(seeds):
            where = {"method": method, "seed": seed}
            for name in ("loss_q", "loss_kl", "vae_loss" if method == "contextual_bcq" else "loss_triplet"):
                parts.append(
                    tidy(
                        f"training/{name}", "step", np.exp(-np.arange(6) / 3) * make.uniform(1, 2), step=STEPS, **where
                    )
                )
            for split, count in counts.items():
                own, spread = {"split": split, "task": list(range(count)), **where}, noise * np.sqrt(count)
                scores = level * rise + offset[split] + make.normal(0, spread, (6, count))
                parts.append(
                    tidy("score", "step task", scores, split=split, step=STEPS, task=list(range(count)), **where)
                )
                episodes = np.array([90, 130, 160, 165, 170]) + make.normal(0, noise, (count, 5))
                parts.append(tidy("episode_return", "task index", episodes, index=list(range(1, 6)), **own))
                means = goals[split][:, None] @ np.eye(2, 3) + make.normal(0, 0.1, (count, 4, 3))
                for dimension in range(3):
                    parts.append(
                        tidy(f"posterior_{dimension}", "task index", means[..., dimension], index=list(range(4)), **own)
                    )
            answers = {"follows_reward": 0.33 + 0.05 * seed, "follows_state_action": 0.19, "other": 0.48 - 0.05 * seed}
            for name, share in (answers | {"own_identified": 0.95}).items():
                parts.append(tidy(f"swap_{name}", "", share, **where))
            parts.append(
                tidy("identified", "index", [0.5, 0.7, 0.9 - 0.1 * seed], split="train", index=[1, 2, 3], **where)
            )
            for name, gain in (("told", 0), ("swapped_generator", 30), ("swapped_value", 2)):
                own = {"split": "train", "task": list(range(train)), **where}
                parts.append(tidy(name, "task", level + gain + offset["train"], **own))
            for name, drop in (("nearest", 0), ("farthest", 30)):
                parts.append(
                    tidy(
                        f"foreign_{name}",
                        "task",
                        level - drop + offset["test"],
                        split="test",
                        task=list(range(test)),
                        **where,
                    )
                )
    for task in range(min(test, 4)):
        for episode in (1, 2, 5):
            where = {"method": methods[0], "seed": 0, "split": "test", "task": task, "index": episode}
            for axis, end in enumerate(goals["test"][task]):
                path = np.linspace(2 + axis, end / episode, 20)
                parts.append(tidy(f"behaviour_{axis}", "step", path, step=list(range(1, 21)), **where))
    for seed in range(seeds):
        parts.append(
            tidy("return", "step", -100 * rise[:, 0], method="metagenrl", split="train", task=0, seed=seed, step=STEPS)
        )
    changes = {m: {"distill.margin": float(m.partition("=")[2])} if "=" in m else {} for m in methods}
    run = {
        "environment": "umaze_goal",
        "title": "UmazeGoal-M",
        "preset": "laptop",
        "seed": 0,
        "horizon": 300,
        "parameter": "goal (x, y) in metres",
        "view": {"kind": "goal", "axes": ["x (m)", "y (m)"], "per_step": None, "walls": [[0.3, 0.3, 1.0, 1.0]]},
        "protocol": "Five episodes a task; the score is the mean return of the last three.",
        "config": {"collect": {"steps": 30000, "hidden": [128, 128]}, "evaluate": {"skipped_episodes": 2}},
        "tasks": {
            split: [
                {"index": i, "label": f"({x:.2f}, {y:.2f})", "features": [x, y]}
                for i, (x, y) in enumerate(goal.tolist())
            ]
            for split, goal in goals.items()
        },
        "variants": [{"label": m, "method": "full" if "=" in m else m, "changes": changes[m]} for m in methods],
        "relabelling": {m: {"threshold": 0.02, "error_note": "Root mean square error."} for m in methods},
        "cost": [
            {"stage": stage, "jobs": 2, "reused": reused, "wall_seconds": wall, "work_seconds": 640.0}
            | {"peak_memory_mb": 410.0}
            for stage, reused, wall in (("collect", 0, 330.0), ("teach", 2, 0.0))
        ],
        "timeline": [
            {
                "job": f"{stage} task {worker}",
                "stage": stage,
                "machine": machine,
                "worker": worker,
                "finished": finished,
            }
            | {"started": started, "seconds": 100.0}
            for stage, machine, worker, started, finished in (
                ("collect", "10.0.0.2 b", 1, 0.0, True),
                ("collect", "10.0.0.1 a", 2, 5.0, False),
                ("teach", "10.0.0.1 a", 3, 120.0, True),
            )
        ],
        "wall_seconds": 845.0,
    }
    return Results(table_of(parts), run)


ARMS = {  # steps before, return before RL, steps of the rise, share of the level
    "sac": (0, 0.0, 90.0, 1.0),
    "sac_two_batches": (0, 0.0, 110.0, 0.95),
    "warm_full": (100, 500.0, 60.0, 1.05),
    "warm_no_ensemble": (100, 300.0, 80.0, 1.0),
    "warm_evidence": (100, 700.0, 60.0, 1.05),
}


def warmstart(
    arms: tuple[str, ...] = ("sac", "sac_two_batches", "warm_full", "warm_no_ensemble"),
    seeds: int = 3,
    tasks: int = 6,
    shift: float = 0.0,
    noise: float = 25.0,
) -> Results:
    """Curves of the warm-start experiment, and of SAC on two training tasks."""
    make = np.random.default_rng(0)
    levels = make.normal(900, 120, tasks)
    parts = []
    for arm in arms:
        initial, start, rise, share = ARMS[arm]
        step = [initial, *range(initial + 130, initial + 460, 30)]
        after = np.maximum(np.array(step) - initial - 100, 0)
        for seed in range(seeds):
            where = {"method": arm, "seed": seed, "split": "test", "task": list(range(tasks))}
            curves = share * levels[:, None] - (share * levels[:, None] - start) * np.exp(-after / rise)
            parts.append(
                tidy("return", "task step", curves + make.normal(0, noise, curves.shape) + shift, step=step, **where)
            )
            if initial:
                parts.append(tidy("policy_return", "task", curves[:, 0] + 50 + shift, **where))
    return curves_of(parts, {arm: ARMS[arm][0] for arm in arms}, tasks, 100)


def curves_of(parts: list, initial: dict[str, int], tasks: int, warmup: int = 0) -> Results:
    """Results of arms whose curves are `parts`."""
    training = np.array([[0.0, 300.0, 700.0], [0.0, 311.0, 700.0]])
    parts = [
        *parts,
        tidy("return", "task step", training, method="sac", split="train", task=[4, 7], step=[0, 200, 400]),
    ]
    names = {"environment": "ant_dir", "title": "AntDir", "preset": "tiny", "seed": 0, "parameter": "direction"}
    run = names | {
        "horizon": 200,
        "config": {},
        "tasks": {"test": [{"index": i, "label": f"t{i}", "features": [i]} for i in range(tasks)], "train": []},
        "arms": {name: {"initial_steps": steps, "warmup_steps": warmup} for name, steps in initial.items()},
        "variants": [],
    }
    return Results(table_of(parts), run)
