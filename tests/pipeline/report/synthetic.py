"""A small made-up summary in the format that a run writes."""

import numpy as np

REFERENCES = {"random": 60.0, "zero_action": 62.0, "best_blind_teacher": 130.0, "nearest_teacher": 190.0}
METHODS = {
    "full": 170.0,
    "no_triplet": 120.0,
    "no_relabelling": 150.0,
    "neither": 90.0,
    "ground_truth": 180.0,
    "no_ensemble": 140.0,
    "contextual_bcq": 110.0,
    "batch_pearl": 70.0,
}
LOSSES = {
    "contextual_bcq": ("vae_loss", "critic_loss", "actor_loss", "kl"),
    "batch_pearl": ("q_loss", "kl", "v_loss", "policy_loss", "entropy"),
}


def summary(train: int = 3, test: int = 4, seeds: int = 1, methods: tuple[str, ...] = ("full",)) -> dict:
    """Numbers with the shape of a UmazeGoal run: they rise, level off and differ between tasks."""
    make = np.random.default_rng(0)
    counts = {"train": train, "test": test}
    goals = {split: make.uniform(-2, 2, (count, 2)) for split, count in counts.items()}
    step = [500 * n for n in range(1, 7)]
    runs = [(method, seed) for method in methods for seed in range(seeds)]
    square = make.uniform(0.2, 1, (train, train)) + np.diag([np.nan] * train)

    def curve(level: float) -> np.ndarray:
        return level - (level - 60) * np.exp(-np.arange(1, 7) / 2) + make.normal(0, 8, 6)

    def scores(method: str, split: str) -> list[list[float]]:
        tasks = METHODS.get(method, 160.0) + make.normal(0, 35, counts[split])
        return np.stack([curve(level) for level in tasks], axis=1).tolist()

    def episodes(split: str) -> list[list[float]]:
        rise = np.array([90, 130, 160, 165, 170])
        return (rise + make.normal(0, 25, (counts[split], 5))).tolist()

    def losses(method: str, seed: int) -> dict:
        names = LOSSES.get(method, ("loss_q", "loss_kl", "loss_g", "loss_xi"))
        own = {name: np.exp(-curve(200) / 60).tolist() for name in names}
        triplet = (2 + make.normal(0, 0.1, 6)).tolist() if method == "full" else None
        return {"method": method, "seed": seed, "step": step, **own, "loss_triplet": triplet}

    def probe(method: str, seed: int) -> dict:
        rise = np.clip(METHODS.get(method, 160.0) / 200 * np.array([0.6, 0.8, 0.9, 0.95, 1]), 0, 1)
        near = METHODS.get(method, 160.0) + make.normal(0, 10, test)
        return {
            "method": method,
            "seed": seed,
            "identification": (rise + make.normal(0, 0.02, 5)).clip(0, 1).tolist(),
            "foreign_contexts": {"nearest": near.tolist(), "farthest": (near - make.uniform(5, 60)).tolist()},
            "last_trajectory": (near + 5).tolist() if method == "batch_pearl" else None,
        }

    def relabelling(method: str) -> dict:
        errors = np.exp(-np.arange(1, 11) / 4)[:, None] * make.uniform(0.5, 1.5, train) / 10
        return {
            "method": method,
            "share": square.tolist(),
            "error_eligible": (square / 10).tolist(),
            "error_all": (square / 6).tolist(),
            "reward_std": [0.2] * train,
            "threshold": 0.02,
            "error_note": "Root mean square error in units of reward.",
            "training": [
                {"step": 100 * (n + 1), "error": [None, *row[1:]] if n == 0 else row, "kept": 0.1 * (n + 1)}
                for n, row in enumerate(errors.tolist())
            ],
        }

    evaluation = [
        {
            "method": method,
            "seed": seed,
            "step": step,
            "test": scores(method, "test"),
            "train": scores(method, "train"),
            "test_episodes": episodes("test"),
            "train_episodes": episodes("train"),
        }
        for method, seed in runs
    ]
    references = {
        split: {name: (level + make.normal(0, 10, count)).tolist() for name, level in REFERENCES.items()}
        for split, count in counts.items()
    }
    references["train"] |= {
        "sac": (240 + make.normal(0, 15, train)).tolist(),
        "bcq": (225 + make.normal(0, 15, train)).tolist(),
    }
    return {
        "environment": "umaze_goal",
        "paper_name": "UmazeGoal-M",
        "preset": "laptop",
        "seed": 0,
        "horizon": 300,
        "parameter": "goal (x, y) in metres",
        "protocol": "Five episodes a task; the score is the mean return of the last three.",
        "config": {"collect": {"steps": 30000, "hidden": [128, 128]}, "distill": {"margin": 2.0}},
        "tasks": {
            split: [
                {"index": index, "label": f"({x:.2f}, {y:.2f})", "features": [x, y]}
                for index, (x, y) in enumerate(goal.tolist())
            ]
            for split, goal in goals.items()
        },
        "collect": {
            "curves": [
                {"task": task, "step": [5000 * n for n in range(1, 7)], "return": curve(240).tolist()}
                for task in range(train)
            ]
        },
        "bcq": {
            "curves": [
                {"task": task, "iteration": [1000 * n for n in range(1, 7)], "return": curve(225).tolist()}
                for task in range(train)
            ],
            "selected": [{"task": task, "iteration": 5000, "return": 220.0} for task in range(train)],
        },
        "variants": [
            {"label": method, "method": method, "changes": {}}
            if method in METHODS
            else {"label": method, "method": "full", "changes": {"distill.margin": float(method.partition("=")[2])}}
            for method in methods
        ],
        "relabel": relabelling(methods[0]),
        "relabelling": [relabelling(method) for method in methods if method not in LOSSES],
        "metagenrl": [
            {"seed": seed, "task": 0, "step": [10 * n for n in range(1, 7)], "return": (-curve(300)).tolist()}
            for seed in range(seeds)
        ],
        "probes": [probe(method, seed) for method, seed in runs],
        "distill": [losses(method, seed) for method, seed in runs],
        "evaluation": evaluation,
        "references": references | {"best_blind_teacher_task": 1},
        "headline": [
            headline(row, split, epoch) for row in evaluation for split in counts for epoch in ("last", "best")
        ],
        "posteriors": [
            {
                "method": method,
                "seed": seed,
                "split": [split for split, count in counts.items() for _ in range(4 * count)],
                "task": [task for count in counts.values() for task in range(count) for _ in range(4)],
                "mean": (
                    np.concatenate([np.repeat(goals[split], 4, axis=0) for split in counts]) @ make.normal(0, 1, (2, 5))
                    + make.normal(0, 0.3, (4 * (train + test), 5))
                ).tolist(),
            }
            for method, seed in runs
        ],
        "reward_swap": [
            {
                "method": method,
                "seed": seed,
                "follows_reward": 0.33 + 0.05 * seed,
                "follows_state_action": 0.19,
                "other": 0.48 - 0.05 * seed,
                "own_identified": 0.95,
                "pairs": train * (train - 1),
            }
            for method, seed in runs
        ],
        "cost": [
            {
                "stage": stage,
                "jobs": 2,
                "reused": reused,
                "wall_seconds": wall,
                "work_seconds": 2 * wall,
                "peak_memory_mb": memory,
            }
            for stage, reused, wall, memory in (
                ("collect", 0, 330.0, 410.0),
                ("bcq", 2, 140.0, 650.0),
                ("relabel", 0, 41.0, 900.0),
                ("distill", 0, 180.0, 1200.0),
                ("evaluate", 0, 7.0, 380.0),
            )
        ],
        "wall_seconds": 845.0,
    }


def headline(row: dict, split: str, epoch: str) -> dict:
    """A row whose interval is made up, so that a test can tell a copied number from a computed one."""
    means = np.mean(row[split], axis=1)
    index = int(np.argmax(means)) if epoch == "best" else len(means) - 1
    scores = np.array(row[split][index])
    return {
        "method": row["method"],
        "seed": row["seed"],
        "split": split,
        "epoch": epoch,
        "step": row["step"][index],
        "mean": float(scores.mean()),
        "iqm": float(np.median(scores)),
        "low": float(scores.mean() - 12),
        "high": float(scores.mean() + 12),
        "std_over_tasks": float(scores.std()),
    }
