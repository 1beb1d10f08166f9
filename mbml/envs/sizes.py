"""What bodies with legs need at laptop size beyond a point mass."""

LOCOMOTION = {
    "collect.evaluation_every": 5, "teach.iterations": 15_000, "teach.evaluation_every": 1_500,
    "bcq.target_candidates": 4, "models.reward.steps": 4_000,
    "distill.steps": 12_000, "distill.context_size": 64, "distill.kl_weight": 0.005,
    "evidence.steps": 12_000, "contextual_bcq.steps": 12_000, "contextual_bcq.context_size": 128,
    "batch_pearl.steps": 12_000, "batch_pearl.context_size": 128,
    "warmstart.initial_steps": 1_000, "warmstart.online.steps": 60_000,
}  # fmt: skip
"""Longer training everywhere, wider contexts, a weaker prior."""
