"""Every stage: a specification and the function that makes its artefact, registered when this is imported."""

from actors.stages import (
    adopt,
    assess,
    collect,
    distill,
    evaluate,
    familiarity,
    fqe,
    likelihood,
    metagenrl,
    models,
    probe,
    relabel,
    rllib,
    teach,
    trace,
    warmstart,
)

__all__ = [
    "adopt",
    "assess",
    "collect",
    "distill",
    "evaluate",
    "familiarity",
    "fqe",
    "likelihood",
    "metagenrl",
    "models",
    "probe",
    "relabel",
    "rllib",
    "teach",
    "trace",
    "warmstart",
]
