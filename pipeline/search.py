"""Search spaces of a sweep: what a YAML file says of a field, points drawn from it, and points that Optuna suggests."""

import importlib.util
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.artefacts import read_json
from actors.stage import Ref
from actors.store import Store
from mbml.settings import ConfigError, validated

KINDS = ("uniform", "loguniform", "randint", "choice")
OBJECTIVES = {
    "train_return": "mean return on the training tasks",
    "train_worst": "return on the worst training task",
}
"""What a search and an early stop go by. A choice that has seen unseen tasks would say nothing of them."""
_MOST = 1e300
"""Size of an end of a search, so that the distance between two of them fits."""
Point = dict[str, Any]
"""Values by dotted path."""


@dataclass(frozen=True)
class Domain:
    """What a field may be, in Ray Tune's words: uniform or loguniform from a low to a high end, whole numbers (randint)
    from a low end to below a high one, or a choice."""

    kind: str
    values: tuple[Any, ...]
    """Both ends, or what there is to choose from."""

    def at(self, share: float) -> Any:
        """The value below which a `share` of all draws lies; four digits of it, which is what labels show."""
        if self.kind == "choice":
            return self.values[int(share * len(self.values))]
        low, high = self.values
        if self.kind == "randint":
            return low + int(share * (high - low))
        value = low * (high / low) ** share if self.kind == "loguniform" else low + share * (high - low)
        return float(f"{value:.4g}")


def domain(path: str, hint: Any, given: Any) -> Domain:
    """What the YAML file says of a field of type `hint`; raises ConfigError, one sentence, for what cannot be meant."""
    kind, values = next(iter(given.items())) if isinstance(given, Mapping) and len(given) == 1 else ("", ())
    if kind not in KINDS or not isinstance(values, list) or not values:
        right = "uniform: [low, high], loguniform: [low, high], randint: [low, high] or choice: [a, b, ...]"
        raise ConfigError(f"{path} is {given!r}; it should be one of {right}.")
    if kind == "choice":
        return Domain(kind, validated(path, tuple[hint, ...], values))
    if len(values) != 2 or not all(isinstance(end, int | float) and abs(end) < _MOST for end in values):
        right = f"two numbers below {_MOST:g} in size, the low end and the high one"
        raise ConfigError(f"{path} is {kind}: {values}; it should have {right}.")
    low, high = values
    if low >= high or (kind == "loguniform" and low <= 0):
        above = " above 0" * (kind == "loguniform")
        raise ConfigError(f"{path} is {kind}: {values}; its low end{above} should be below its high end.")
    if kind == "randint":
        ends = tuple(validated(path, hint, validated(path, int, end)) for end in (low, high - 1))
        return Domain(kind, (ends[0], ends[1] + 1))
    if isinstance(validated(path, hint, low), int) and not isinstance(validated(path, hint, float(low)), float):
        raise ConfigError(f"{path} is {kind}: {values}, but it holds whole numbers; give randint: [low, high].")
    return Domain(kind, tuple(validated(path, hint, float(end)) for end in values))


def drawn(space: Mapping[str, Domain], samples: int, seed: int) -> list[Point]:
    """Independent points, each once; the first of them are the same for every number of samples."""
    generator = random.Random(seed)
    points = ({path: of.at(generator.random()) for path, of in space.items()} for _ in range(samples))
    found: dict[tuple[Any, ...], Point] = {}
    for point in points:
        found.setdefault(tuple(point.values()), point)
    return list(found.values())


def judged(name: str, scores: Any) -> np.ndarray:
    """The objective called `name` of scores `[..., training tasks]`."""
    return (np.min if name == "train_worst" else np.mean)(np.asarray(scores), axis=-1)


def objective(store: Store, evaluation: Ref, name: str) -> float:
    """The objective called `name` of a complete evaluation, which has training tasks."""
    return float(judged(name, read_json(store.fetch(*evaluation) / "scores.json")["train"]["score"]))


def check_searcher(name: str) -> None:
    """Raise ConfigError where the searcher's package is not there, before hours are spent."""
    if name == "optuna" and importlib.util.find_spec("optuna") is None:
        raise ConfigError("searcher is optuna, whose package is not installed; pip install optuna gets it.")


class Suggestions:
    """Points that Optuna's tree-structured Parzen estimator suggests from the values of earlier ones.

    They follow from the seed and the values alone, so a sweep that is started again is suggested the same points, whose
    artefacts stand.
    """

    def __init__(self, space: Mapping[str, Domain], seed: int) -> None:
        import optuna  # pyright: ignore[reportMissingImports]

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space = space
        with warnings.catch_warnings(action="ignore"):
            sampler = optuna.samplers.TPESampler(seed=seed)
        self.study = optuna.create_study(direction="maximize", sampler=sampler)
        self.asked: list[Any] = []

    def ask(self, count: int) -> list[Point]:
        """The next points."""
        self.asked = [self.study.ask() for _ in range(count)]
        return [{path: _suggested(trial, path, of) for path, of in self.space.items()} for trial in self.asked]

    def tell(self, values: Sequence[float | None]) -> None:
        """What became of the points that were asked for last: their objective, None where there is none."""
        for trial, value in zip(self.asked, values, strict=True):
            if value is None:
                import optuna  # pyright: ignore[reportMissingImports]

                self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                self.study.tell(trial, value)


def _suggested(trial: Any, path: str, of: Domain) -> Any:
    if of.kind == "choice":  # by its place, because Optuna takes numbers and strings alone
        return of.values[trial.suggest_categorical(path, list(range(len(of.values))))]
    low, high = of.values
    if of.kind == "randint":
        return trial.suggest_int(path, low, high - 1)
    return float(f"{trial.suggest_float(path, low, high, log=of.kind == 'loguniform'):.4g}")
