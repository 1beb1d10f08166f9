"""How methods, references, times and numbers are named, coloured and written, in pictures and tables alike."""

import math
from collections.abc import Iterable
from typing import NamedTuple

from matplotlib.typing import LineStyleType

from pipeline.report.statistics import Estimate

ABSENT = "–"


class Look(NamedTuple):
    """Name and colour of a method; with a short name and a dash, of a reference."""

    title: str
    colour: str
    short: str = ""
    dash: LineStyleType = "--"


REFERENCES = {
    "random": Look("random", "#8c8c8c", "random", ":"),
    "zero_action": Look("zero action", "#8c8c8c", "zero", "-."),
    "blind_teacher": Look("task-blind teacher", "#CC79A7", "blind"),
    "nearest_teacher": Look("nearest teacher (told the task)", "#009E73", "nearest"),
    "blind_teacher_bound": Look("task-blind teacher chosen here (bound)", "#AA4499", "blind bound", ":"),
    "best_teacher": Look("best teacher per task (bound)", "#117733", "best", (0, (1, 1))),
    "own_teacher": Look("own teacher", "#000000", "own teacher", (0, (6, 2))),
    "sac": Look("own SAC", "#7F4F24", "own SAC", (0, (5, 1, 1, 1))),
    "rllib_bc": Look("own BC (RLlib)", "#5f5f5f", "RLlib BC"),
    "rllib_cql": Look("own CQL (RLlib)", "#5f5f5f", "RLlib CQL"),
    "rllib_iql": Look("own IQL (RLlib)", "#5f5f5f", "RLlib IQL"),
}
SIMPLE = ("random", "zero_action", "blind_teacher")
"""References that need not be told the task and are chosen without the tasks that they are scored on."""

# Okabe-Ito blue, orange, vermillion, sky; then darker hues of Tol's muted set.
_METHODS = {
    "full": Look("full", "#0072B2"),
    "no_relabelling": Look("no relabelling", "#E69F00"),
    "no_triplet": Look("no triplet", "#D55E00"),
    "neither": Look("neither", "#56B4E9"),
    "ground_truth": Look("ground truth", "#882255"),
    "no_ensemble": Look("no ensemble", "#999933"),
    "contextual_bcq": Look("contextual BCQ", "#332288"),
    "batch_pearl": Look("batch PEARL", "#44AA99"),
    "metagenrl": Look("MetaGenRL", "#AA4499"),
}


def methods() -> dict[str, Look]:
    """Name and colour of every method that has its own."""
    return _METHODS


def method_name(label: str) -> str:
    """A variant's name as it is written for people: "full", "full, distill.margin=4.0"."""
    first, comma, changes = label.partition(",")
    return (methods()[first].title if first in methods() else first.replace("_", " ")) + comma + changes


def colours(labels: Iterable[str]) -> dict[str, str]:
    """A colour for each label: a method's own, free ones in order for points of a grid."""
    known, labels = methods(), list(labels)
    free = [look.colour for name, look in known.items() if name not in labels] or [x.colour for x in known.values()]
    points = [name for name in labels if name not in known]
    return {name: known[name].colour if name in known else free[points.index(name) % len(free)] for name in labels}


def reference(name: str) -> Look:
    """Name and line of a reference; one that is not known is a dashed grey line."""
    return REFERENCES.get(name) or Look(name.replace("_", " "), "#5f5f5f", name.replace("_", " "))


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


def score(value: float, decimals: int = 1) -> str:
    """A number with fixed decimals; a dash when it is not known."""
    return "infinite" if math.isinf(value) else ABSENT if math.isnan(value) else f"{value:.{decimals}f}"


def with_interval(estimate: Estimate, decimals: int = 1) -> str:
    """A number with its interval, which is left out where it has no width."""
    if not estimate.high > estimate.low:
        return score(estimate.value, decimals)
    return f"{score(estimate.value, decimals)} ({score(estimate.low, decimals)} to {score(estimate.high, decimals)})"
