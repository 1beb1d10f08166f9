"""How methods, references, times and numbers are named, coloured and written, in pictures and tables alike."""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

from matplotlib.typing import LineStyleType

from mbml.methods import METHODS
from pipeline.report.statistics import Estimate

ABSENT = "–"
MANY = 40
"""With more tasks than these, distributions and the worst stand for a row, a mark or a panel each."""


class Look(NamedTuple):
    """How a reference is named, in a column in short, and how its line is drawn."""

    title: str
    colour: str
    short: str
    dash: LineStyleType = "--"


REFERENCES = {
    "random": Look("random", "#8c8c8c", "random", ":"),
    "zero_action": Look("zero action", "#8c8c8c", "zero", "-."),
    "blind_teacher": Look("task-blind teacher", "#CC79A7", "blind"),
    "pooled_teacher": Look("pooled teacher", "#E69F00", "pooled"),
    "likelihood_teacher": Look("likelihood teacher", "#B8860B", "likelihood"),
    "likelihood_teacher_episodes": Look("likelihood teacher, chosen per episode", "#B8860B", "per episode", ":"),
    "nearest_teacher": Look("nearest teacher (told the task)", "#009E73", "nearest"),
    "blind_teacher_bound": Look("task-blind teacher chosen here (bound)", "#AA4499", "blind bound", ":"),
    "best_teacher": Look("best teacher per task (tried out)", "#117733", "best", (0, (1, 1))),
    "own_teacher": Look("own teacher", "#000000", "own teacher", (0, (6, 2))),
    "behaviour": Look("logged behaviour", "#5f5f5f", "behaviour", ":"),
    "sac": Look("own SAC", "#7F4F24", "own SAC", (0, (5, 1, 1, 1))),
    "rllib_bc": Look("own BC (RLlib)", "#5f5f5f", "RLlib BC"),
    "rllib_cql": Look("own CQL (RLlib)", "#5f5f5f", "RLlib CQL"),
    "rllib_iql": Look("own IQL (RLlib)", "#5f5f5f", "RLlib IQL"),
}
SIMPLE = (
    "random", "zero_action", "blind_teacher", "pooled_teacher", "likelihood_teacher", "likelihood_teacher_episodes"
)  # fmt: skip
"""References that need not be told the task and are chosen without the tasks that they are scored on."""


def method_name(label: str) -> str:
    """A variant's name as it is written for people: "full", "full, distill.margin=4.0"."""
    first, comma, changes = label.partition(",")
    title = METHODS[first].title if first in METHODS else ""
    return (title or first.replace("_", " ")) + comma + changes


def task_heading(label: str, parameter: str) -> str:
    """A task by its label, behind what its numbers are where the label is numbers alone."""
    return f"{parameter} = {label}" if parameter and re.fullmatch(r"[-+.,e\d ]+", label) else label


def colours(labels: Iterable[str]) -> dict[str, str]:
    """A colour for each label: a method's own, free ones in order for points of a grid."""
    labels = list(labels)
    free = [entry.colour for name, entry in METHODS.items() if name not in labels] or [METHODS["full"].colour]
    points = [name for name in labels if name not in METHODS]
    return {name: METHODS[name].colour if name in METHODS else free[points.index(name) % len(free)] for name in labels}


def reference(name: str) -> Look:
    """Name and line of a reference, behind which its kind of teachers may stand; an unknown one is dashed and grey."""
    base, bracket, kind = name.partition(" (")
    words = base.replace("_", " ")
    look = REFERENCES.get(base) or Look(words, "#5f5f5f", words)
    return look._replace(title=look.title + bracket + kind, short=look.short + bracket + kind)


def is_simple(name: str) -> bool:
    """Whether a reference, of whatever teachers, is one of SIMPLE."""
    return name.partition(" (")[0] in SIMPLE


def score(value: float, decimals: int = 1, thousands: str = "") -> str:
    """A number with fixed decimals; a dash when it is not known."""
    return "infinite" if math.isinf(value) else ABSENT if math.isnan(value) else f"{value:{thousands}.{decimals}f}"


def with_interval(estimate: Estimate, decimals: int = 1) -> str:
    """A number with its interval, which is left out where it has no width."""
    value, low, high = (score(end, decimals) for end in estimate)
    return f"{value} ({low} to {high})" if estimate.high > estimate.low else value
