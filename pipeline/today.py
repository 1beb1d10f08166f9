"""What the configuration expects of the registries of `mbml` that are not there yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mbml.baselines.batch_pearl import BatchPEARL, BatchPEARLConfig
from mbml.baselines.contextual_bcq import ContextualBCQ, ContextualBCQConfig
from mbml.baselines.metagenrl import MetaGenRL, MetaGenRLConfig
from mbml.bcq import BCQ, BCQConfig
from mbml.distill import DistillConfig, MultiTaskLearner
from mbml.registry import Entry

TEACHERS: tuple[str, ...] = ("bcq",)
ENCODERS: tuple[str, ...] = ("product",)
STUDENTS: tuple[str, ...] = ("generative",)

_STUDENT = {
    "student.encoder_hidden": (16, 16),
    "student.embedding_size": 4,
    "student.value_hidden": (16, 16),
    "student.decoder_hidden": (16, 16),
    "student.perturbation_hidden": (16, 16),
    "student.acting_candidates": 2,
}
_SHORT = {"steps": 20, "snapshot_every": 10, "context_size": 8, "batch_size": 16}
_SCHEDULE = {
    "steps": 8_000,
    "snapshot_every": 1_000,
    "batch_size": 64,
    "learning_rate": 1e-3,
    "final_learning_rate": 0.1,
}
_WIDE = {f"student.{name}_hidden": (256,) * 3 for name in ("value", "decoder", "perturbation")}

ENTRIES: dict[str, Entry] = {
    "bcq": Entry(
        "bcq",
        "BCQ teachers.",
        BCQ,
        BCQConfig,
        {
            "smoke": {
                "hidden": (16, 16),
                "vae_hidden": (16, 16),
                "batch_size": 16,
                "target_candidates": 2,
                "acting_candidates": 2,
            },
            "laptop": {
                "hidden": (128, 128),
                "vae_hidden": (128, 128),
                "batch_size": 64,
                "learning_rate": 1e-3,
                "target_candidates": 5,
                "tau": 0.01,
            },
        },
    ),
    "distill": Entry(
        "distill",
        "The multi-task learner.",
        MultiTaskLearner,
        DistillConfig,
        {
            "smoke": _STUDENT | _SHORT,
            "laptop": _WIDE | _SCHEDULE | {"context_size": 32, "kl_weight": 0.01, "partners": 3, "hard_contexts": 4},
        },
    ),
    "contextual_bcq": Entry(
        "contextual_bcq",
        "The baseline Contextual BCQ.",
        ContextualBCQ,
        ContextualBCQConfig,
        {
            "smoke": _STUDENT | _SHORT | {"vae_encoder_hidden": (16, 16), "target_candidates": 2},
            # The baselines have the same networks, schedule and number of own context rows where those exist for them.
            "laptop": _WIDE
            | _SCHEDULE
            | {"vae_encoder_hidden": (256,) * 3, "context_size": 64, "target_candidates": 5, "tau": 0.01},
        },
    ),
    "batch_pearl": Entry(
        "batch_pearl",
        "The baseline PEARL on the batches.",
        BatchPEARL,
        BatchPEARLConfig,
        {
            "smoke": _SHORT
            | {"encoder_hidden": (16, 16), "embedding_size": 4, "hidden": (16, 16), "tasks_per_step": 4},
            "laptop": _SCHEDULE | {"hidden": (256,) * 3, "context_size": 64, "tasks_per_step": 10},
        },
    ),
    "metagenrl": Entry(
        "metagenrl",
        "The baseline MetaGenRL.",
        MetaGenRL,
        MetaGenRLConfig,
        {
            "smoke": {
                "hidden": (16, 16),
                "objective_hidden": (8, 8),
                "lstm": 4,
                "steps": 8,
                "evaluation_every": 4,
                "evaluation_episodes": 1,
                "segments": 4,
                "objective_segments": 4,
                "segment_length": 5,
            },
            "laptop": {
                "hidden": (128, 128),
                "steps": 2_000,
                "evaluation_every": 20,
                "segments": 50,
                "objective_segments": 50,
            },
        },
    ),
}
"""Learners by the name of their field."""

_LEGS: dict[str, Any] = {
    # Bodies with legs: longer training everywhere than in the maze, wider contexts, a weaker prior.
    "collect.evaluation_every": 5,
    "warmstart.initial_steps": 1_000,
    "warmstart.online.steps": 60_000,
    "teach.iterations": 15_000,
    "teach.evaluation_every": 1_500,
    "bcq.target_candidates": 4,
    "models.reward.steps": 4_000,
    "distill.steps": 12_000,
    "distill.context_size": 64,
    "distill.kl_weight": 0.005,
    "contextual_bcq.steps": 12_000,
    "contextual_bcq.context_size": 128,
    "batch_pearl.steps": 12_000,
    "batch_pearl.context_size": 128,
    "collect.steps": 100_000,
}


def _family(
    steps: int, iterations: int, threshold: float, paper: Mapping[str, Any], laptop: Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
    sizes = {"collect.steps": steps, "teach.iterations": iterations, "relabel.reward_threshold": threshold}
    return {"paper": {**sizes, **paper}, "laptop": {"relabel.reward_threshold": threshold, **laptop}}


def _evaluation(episodes: int) -> dict[str, int]:
    return {f"{where}.evaluation_episodes": episodes for where in ("collect", "warmstart.online")}


_THREES = {f"{stage}.tasks_per_actor": 3 for stage in ("collect", "teach", "models")}
FAMILY_PRESETS: dict[str, dict[str, Mapping[str, Any]]] = {
    "ant_dir": _family(200_000, 125_000, 0.1, {"batch_pearl.tasks_per_step": 4}, _LEGS),
    "ant_goal": _family(
        300_000,
        100_000,
        0.1,
        {"batch_pearl.tasks_per_step": 10, "batch_pearl.kl_weight": 1.0},
        _LEGS | {"batch_pearl.kl_weight": 1.0},
    ),
    "half_cheetah_vel": _family(
        60_000,
        50_000,
        0.05,
        {"batch_pearl.context_size": 100} | _evaluation(5),
        _LEGS
        | {"collect.steps": 60_000, "horizon": 200}
        # A fifth of the paper's horizon: five times the resets, the same speed to reach.
        | {f"{learner}.steps": 4_000 for learner in ("distill", "contextual_bcq", "batch_pearl")}
        | {"warmstart.online.steps": 30_000, "warmstart.online.tasks_per_actor": 4},
    ),
    "humanoid_dir": _family(
        600_000,
        250_000,
        0.2,
        # The authors' start is the policy after 400 of its epochs of 100 steps.
        {"warmstart.snapshot": 40_000},
        _LEGS | _THREES | {"train_tasks": 6, "relabel.pool": 20_000},
    ),
    "umaze_goal": _family(30_000, 50_000, 0.02, {"batch_pearl.context_size": 128} | _evaluation(16), {}),
    "walker_param": _family(
        300_000,
        100_000,
        0.1,
        # All relabelled next observations of 30 x 300K transitions would take 18 GB; a pool is an unbiased sample.
        {"batch_pearl.context_size": 100, "relabel.pool": 20_000},
        _LEGS | {"collect.steps": 50_000, "train_tasks": 10, "relabel.pool": 10_000},
    ),
}
"""The environments' own sizes."""
