"""Every stage: a specification and the function that makes its artefact, registered when this is imported."""

from actors.stages import (
    collect,
    distill,
    evaluate,
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
    "collect",
    "distill",
    "evaluate",
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
