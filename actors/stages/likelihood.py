"""The likelihood teacher: what a multi-task policy has to beat to be worth its training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.artefacts import layout_of, load_models, load_returns, load_rows, load_teachers, tasks_of, write_json
from actors.stage import Ref, Run, stage
from actors.stages.evaluate import Protocol
from mbml.bank import LikelihoodEncoder, TeacherBank, own_rows
from mbml.evaluate import counted_score, evaluate_student
from mbml.evidence import blind_teacher
from mbml.models import EnsembleConfig, Target

RENEWED = {"likelihood_teacher": 20, "likelihood_teacher_episodes": 0}
"""Steps between two choices of a teacher, by the reference's name; 0 is once an episode."""


@dataclass(frozen=True)
class Likelihood(Protocol):
    """The bank of the teachers of the training tasks that are played, chosen among by their tasks' ensembles; the
    untold start is the blind teacher."""

    models: Mapping[Target, EnsembleConfig]
    collect: tuple[Ref, ...]
    teach: tuple[Ref, ...]
    trained: tuple[Ref, ...]
    references: Ref


@stage(version=1)
def likelihood(spec: Likelihood, run: Run) -> dict[str, Any]:
    """Leaves `likelihood.json`: scores of every way to choose, under the protocol."""
    layout = layout_of(spec.env)
    teachers = load_teachers(run.paths(spec.teach), spec.train)
    models = load_models(run.paths(spec.trained), spec.models, layout, spec.train)
    returns = load_returns(run.inputs[spec.references], spec.train)
    encoder = LikelihoodEncoder(models, layout, untold=blind_teacher(returns))
    encoder.fit(own_rows(load_rows(run.paths(spec.collect), spec.train)))
    tasks = tasks_of(spec.env, "test", spec.test) + tasks_of(spec.env, "train", spec.train)
    found: dict[str, Any] = {"test": {"task": list(spec.test)}, "train": {"task": list(spec.train)}}
    for done, (name, every) in enumerate(RENEWED.items()):
        run.report(done, len(RENEWED), "ways to choose")
        scores = evaluate_student(TeacherBank.of(teachers, encoder, every), spec.of(tasks))
        counted = counted_score(scores.returns, spec.config).tolist()
        found["test"][name], found["train"][name] = counted[: len(spec.test)], counted[len(spec.test) :]
    write_json(run.out / "likelihood.json", found)
    return {"test_return": float(np.mean(found["test"]["likelihood_teacher"]))}
