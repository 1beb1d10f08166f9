"""What can be compared: the full model, its ablations and the baselines. One line here per method."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mbml import bank, distill, evidence
from mbml.baselines import batch_pearl, contextual_bcq, metagenrl
from mbml.registry import Entry, Registry


@dataclass(frozen=True)
class Method(Entry):
    """A multi-task learner and what it changes in the configuration of the whole run.

    Its factory is `make(config, layout, rows, generator, context_generator)`, with those of `teachers`, `tables`,
    `models` (ensembles by target) and `returns` (of every teacher on every training task) by keyword that it needs.
    """

    learner: str = ""
    """The field of the run's configuration that holds `config`; by default `name`. Methods may share one."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Values by dotted path in the run's configuration."""
    needs: Callable[[Any], frozenset[str]] = lambda config: frozenset()
    """Which of "teachers", "tables", "models" and "returns" a learner of that configuration needs."""
    drawn: bool = True
    """Whether students of two seeds differ; of another kind one is made, whatever the seeds."""
    untold: bool = False
    """Whether it weighs the training tasks, and what to do where nothing was seen is the blind teacher's."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "learner", self.learner or self.name)


_SMOKE = {"steps": 20, "snapshot_every": 10, "context_size": 8, "batch_size": 16}
_LAPTOP = {"steps": 8_000, "snapshot_every": 1_000, "batch_size": 64, "learning_rate": 1e-3, "final_learning_rate": 0.1}
_NETWORKS = ("student.value_hidden", "student.decoder_hidden", "student.perturbation_hidden")
_SMOKE_STUDENT = {
    **dict.fromkeys((*_NETWORKS, "student.encoder.hidden"), (16, 16)),
    "student.encoder.embedding_size": 4,
    "student.acting_candidates": 2,
}
_LAPTOP_STUDENT = dict.fromkeys(_NETWORKS, (256, 256, 256))
# Rivals learn as long as the multi-task learner, in networks as wide, from as many own context rows as it has rows.
_DISTILL = {
    "smoke": _SMOKE | _SMOKE_STUDENT,
    "laptop": _LAPTOP | _LAPTOP_STUDENT | {"context_size": 32, "kl_weight": 0.01, "partners": 3, "hard_contexts": 4},
}
# What did best on the training tasks of every family.
_ACTING = {"student.kind": "acting", "guide": "best", "foreign_share": 0.5}
_EVIDENCE = {"smoke": _SMOKE | _SMOKE_STUDENT, "laptop": _LAPTOP | _LAPTOP_STUDENT | _ACTING}
_CONTEXTUAL_BCQ = {
    "smoke": _SMOKE | _SMOKE_STUDENT | {"vae_encoder_hidden": (16, 16), "target_candidates": 2},
    "laptop": _LAPTOP
    | _LAPTOP_STUDENT
    | {"vae_encoder_hidden": (256, 256, 256), "context_size": 64, "target_candidates": 5, "tau": 0.01},
}
_BATCH_PEARL = {
    "smoke": _SMOKE
    | {"encoder.hidden": (16, 16), "encoder.embedding_size": 4, "hidden": (16, 16), "tasks_per_step": 4},
    "laptop": _LAPTOP | {"hidden": (256, 256, 256), "context_size": 64, "tasks_per_step": 10},
}


def _distill_needs(config: distill.DistillConfig) -> frozenset[str]:
    return frozenset({"teachers", "tables"} if config.union_context else {"teachers"})


def _ablation(name: str, about: str, colour: str, changes: Mapping[str, Any]) -> Method:
    """The multi-task learner with changes."""
    learner, config = distill.MultiTaskLearner, distill.DistillConfig
    described = _DISTILL, name.replace("_", " "), colour
    return Method(name, about, learner, config, *described, "distill", changes, _distill_needs)


_NO_TRIPLET = {"distill.triplet": "none"}
_OWN_CONTEXTS = {"distill.union_context": False}
_TRUTH = {"relabel.source": "ground_truth"}
METHODS: Registry[Method] = Registry(
    "method",
    # Okabe-Ito blue, orange, vermillion, sky; then darker hues of Tol's muted set.
    _ablation("full", "the full model: triplet loss on relabelled transitions", "#0072B2", {}),
    _ablation(
        "no_relabelling",
        "hard mining over own contexts instead (Eq. 11)",
        "#E69F00",
        _OWN_CONTEXTS | {"distill.triplet": "hard_mining"},
    ),
    _ablation("no_triplet", "relabelled contexts without the triplet loss", "#D55E00", _NO_TRIPLET),
    _ablation("neither", "own contexts, no triplet loss (Eq. 6)", "#56B4E9", _NO_TRIPLET | _OWN_CONTEXTS),
    _ablation("ground_truth", "the full model, relabelled with true rewards", "#882255", _TRUTH),
    _ablation(
        "no_ensemble",
        "the full model, relabelled by a single reward network without a filter",
        "#999933",
        {"models.reward.members": 1, "models.next_observation.members": 1},
    ),
    Method(
        "evidence",
        "an embedding per task, weighed by the evidence of every transition",
        evidence.EvidenceLearner,
        evidence.EvidenceConfig,
        _EVIDENCE,
        colour="#D81B60",
        needs=lambda config: frozenset({"teachers", "tables", "returns"}),
        untold=True,
    ),
    Method(
        "bank",
        "no student: all teachers, and the ensembles whose likelihood says which one acts",
        bank.BankLearner,
        bank.BankConfig,
        {"smoke": {}, "laptop": {}},
        title="teacher bank",
        colour="#117733",
        needs=lambda config: frozenset({"teachers", "models", "returns"}),
        drawn=False,
        untold=True,
    ),
    Method(
        "contextual_bcq",
        "BCQ on all tasks with an inferred z",
        contextual_bcq.ContextualBCQ,
        contextual_bcq.ContextualBCQConfig,
        _CONTEXTUAL_BCQ,
        "contextual BCQ",
        "#332288",
    ),
    Method(
        "batch_pearl",
        "PEARL on the batches",
        batch_pearl.BatchPEARL,
        batch_pearl.BatchPEARLConfig,
        _BATCH_PEARL,
        "batch PEARL",
        "#44AA99",
    ),
    Method(
        "metagenrl",
        "MetaGenRL on one batch (ant_dir, Fig. 5)",
        lambda config, layout, rows, generator, _: metagenrl.MetaGenRL(config, layout, rows, generator),
        metagenrl.MetaGenRLConfig,
        metagenrl.PRESETS,
        "MetaGenRL",
        "#AA4499",
    ),
)


@dataclass(frozen=True)
class Variant:
    """One entry of a comparison: a method, with further changes of the configuration in a sweep."""

    label: str
    """Its name in tables and figures, unique in the comparison."""
    method: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Values by dotted path, on top of the method's own."""

    def all_changes(self) -> dict[str, Any]:
        """The method's changes and its own."""
        return {**METHODS[self.method].changes, **self.changes}
