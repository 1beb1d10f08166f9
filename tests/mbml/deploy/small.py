"""Small policies of every kind as folders, for the tests of what is handed out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mbml.bank import LikelihoodEncoder, TeacherBank
from mbml.baselines.batch_pearl import BatchPEARLConfig, PEARLPolicy
from mbml.deploy.description import Data, Description, Reward, Score, Space, Training, TrainingTask, identity
from mbml.deploy.familiarity import fit_familiarity
from mbml.deploy.folder import inference_of, versions, write_folder
from mbml.encoders import EncoderConfig
from mbml.models import Ensemble, EnsembleConfig, Target
from mbml.policy import ContextPolicy
from mbml.rows import RowLayout
from mbml.settings import changed
from mbml.students import LedStudent, make_student
from tests.mbml.small_distill import teachers as make_teachers
from tests.mbml.toys import LAYOUT, random_rows, scatter, seeded, small_student

TASKS = 3
KINDS = {
    "generative product": {},
    "generative mean": {"encoder.kind": "mean"},
    "generative mixture": {"encoder.kind": "mixture", "encoder.standardised": True, "standardised": True},
    "acting product": {"kind": "acting", "encoder.temperature": 2.0},
    "acting mixture": {"kind": "acting", "encoder.kind": "mixture", "renewed_every": 4},
    "acting mixture arbitrated": {"kind": "acting", "encoder.kind": "mixture", "arbitrated": True},
}
EVERY = [*KINDS, "led bcq", "led td3_bc", "pearl", "bank bcq", "bank td3_bc"]


def make_policy(kind: str, layout: RowLayout = LAYOUT, seed: int = 0) -> ContextPolicy:
    """A policy of that kind whose outputs are far from zero."""
    if kind == "pearl":
        encoder = EncoderConfig(hidden=(8, 8), embedding_size=3)
        policy: ContextPolicy = PEARLPolicy(BatchPEARLConfig(encoder, hidden=(8, 8)), layout, seeded(seed))
    elif kind.startswith("bank"):
        shape = EnsembleConfig(members=3, hidden=(8, 8) if kind == "bank bcq" else (8,))
        targets: tuple[Target, ...] = ("reward", "next_observation")
        models: dict[Target, Ensemble] = {t: Ensemble(shape, layout, TASKS, t, seeded(seed)) for t in targets}
        encoder = LikelihoodEncoder(models, layout, untold=1)
        teachers = make_teachers(layout, tasks=TASKS, kind=kind.removeprefix("bank "))
        policy = TeacherBank.of(teachers, encoder, renewed_every=4)
    elif kind.startswith("led"):
        config = changed(small_student(), KINDS["acting mixture"] | {"encoder.anchors": TASKS})
        start = make_teachers(layout, tasks=1, kind=kind.removeprefix("led "))
        policy = LedStudent.of(config, layout, seeded(seed), start)
    else:
        config = changed(small_student(), KINDS[kind] | {"encoder.anchors": TASKS})
        student = make_student(config, layout, seeded(seed))
        student.fit(random_rows(TASKS, 40, layout) * 2 + 0.5)
        policy = student
    generator = seeded(seed + 1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return policy


def user_units(layout: RowLayout = LAYOUT) -> dict[str, Any]:
    """Scalings as of logged data, and names."""
    size, actions = layout.observation_size, layout.action_size
    seen = Space([280.0 + i for i in range(size)], [2.5 + i for i in range(size)], [None] * size, [400.0] * size)
    acted = Space(
        [5.0] * actions, [10.0] * actions, [-5.0] * actions, [15.0] * actions, [f"valve {i}" for i in range(actions)]
    )
    return {"observation": seen, "action": acted, "reward": Reward(-3.0, 0.5)}


def describe(policy: ContextPolicy, *, untold: bool = True, **changes: Any) -> Description:
    """A description of a policy that learned from three toy tasks."""
    own = {
        "schema_version": 1,
        "title": "A toy",
        "observation": identity(policy.layout.observation_size),
        "action": identity(policy.layout.action_size, 1.0),
        "reward": Reward(),
        "inference": inference_of(policy, untold=untold),
        "tasks": [TrainingTask(i, f"task {i}", 200, [i / 2]) for i in range(TASKS)],
        "data": Data("collected", "toy", 20, "ab" * 32, 600),
        "training": Training("evidence", "a toy method", 0, 10, {"preset": "smoke"}),
        "protocol": "five episodes",
        "scores": [Score("test", ["a", "b"], [1.0, 2.5], {"random": -1.0})],
        "familiarity": None,
        "onnx": {},
        "versions": versions(),
        "files": {},
    }
    return Description(**own | changes)


def write(folder: Path, kind: str = "acting mixture", *, rows: Any = (), graphs: bool = False, **changes: Any) -> Path:
    """A whole folder of a policy of that kind."""
    policy, weights = make_policy(kind), folder.with_name(f"{folder.name}.safetensors")
    policy.save(weights)
    familiarity = fit_familiarity(policy.layout, rows) if len(rows) > 1 else None
    write_folder(folder, weights, describe(policy, **changes), familiarity, graphs=graphs)
    return folder


def transitions(number: int, seed: int = 0, about: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
    """Transitions (s, a, r, s', terminated) of one entity in the units of `about`, NumPy."""
    found = []
    for row in random_rows(1, number, seed=seed)[0]:
        s, a, following, r, ended = (part.numpy().astype(np.float64) for part in LAYOUT.split(row))
        if about is not None:
            seen, acted, paid = about["observation"].affine, about["action"].affine, about["reward"].affine
            s, following = (seen.offset + seen.scale * part for part in (s, following))
            a, r = acted.offset + acted.scale * a, paid.offset + paid.scale * r
        found.append((s, a, float(r[0]), following, bool(ended[0])))
    return found


__all__ = ["EVERY", "KINDS", "TASKS", "describe", "make_policy", "scatter", "transitions", "user_units", "write"]
