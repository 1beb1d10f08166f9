"""How methods, references, times and scores are written, in pictures and tables alike."""

import math

_REFERENCES = {
    "random": ("random", "random"),
    "zero_action": ("zero action", "zero"),
    "best_blind_teacher": ("best task-blind teacher", "blind"),
    "nearest_teacher": ("nearest task's teacher", "nearest"),
    "sac": ("own SAC", "own SAC"),
    "bcq": ("own BCQ", "own BCQ"),
    "rllib_bc": ("own BC (RLlib)", "RLlib BC"),
    "rllib_cql": ("own CQL (RLlib)", "RLlib CQL"),
    "rllib_iql": ("own IQL (RLlib)", "RLlib IQL"),
}
_METHODS = {"contextual_bcq": "contextual BCQ", "batch_pearl": "batch PEARL", "metagenrl": "MetaGenRL"}
ABSENT = "–"


def method_name(method: str) -> str:
    """A method's name as it is written for people."""
    first, comma, changes = method.partition(",")
    return _METHODS.get(first, first).replace("_", " ") + comma + changes.replace("_", " ")


def reference_name(name: str, short: bool = False) -> str:
    """A reference's name as it is written for people; `short` fits a table column."""
    return _REFERENCES[name][short] if name in _REFERENCES else name.replace("_", " ")


def duration(seconds: float | None) -> str:
    """Seconds as "8.5 s", "14 min 5 s" or "2 h 3 min"."""
    if seconds is None or not math.isfinite(seconds):
        return ABSENT
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def score(value: float | None, decimals: int = 1) -> str:
    """A return with a fixed number of decimals; a dash when it is missing."""
    return ABSENT if value is None or not math.isfinite(value) else f"{value:.{decimals}f}"
