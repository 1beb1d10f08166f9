"""What stages leave in their artefacts and how the next stage reads it: rows, teachers, models, JSON."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mbml import envs, teachers
from mbml.data import Dataset
from mbml.envs import Task
from mbml.evaluate import make_envs
from mbml.learner import NotFinite
from mbml.models import Ensemble, EnsembleConfig, Target
from mbml.nets import StackedMLP
from mbml.relabel import RelabelTables, true_rewards
from mbml.rollout import EnvStack
from mbml.rows import MappedRows, RowLayout, Rows
from mbml.serialise import load_tree
from mbml.teachers import Teachers


class ArtefactError(ValueError):
    """A file of a complete artefact that is missing or damaged."""


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; raises NotFinite where a number is not."""
    _write(path, [value], indent=1)


def read_json(path: Path) -> Any:
    """What `write_json` wrote; raises ArtefactError where it is missing or damaged."""
    return _read(path, lambda text: [text])[0]


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line; raises NotFinite where a number is not."""
    _write(path, rows)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What `write_lines` wrote; raises ArtefactError where it is missing or damaged."""
    return _read(path, str.splitlines)


def _write(path: Path, values: Iterable[Any], indent: int | None = None) -> None:
    try:
        path.write_text("".join(json.dumps(value, indent=indent, allow_nan=False) + "\n" for value in values))
    except ValueError:
        raise NotFinite(f"{path.name} would hold a number that is not finite: learning diverged.") from None


def _read(path: Path, parts: Callable[[str], list[str]]) -> list[Any]:
    try:
        return [json.loads(text) for text in parts(path.read_text())]
    except (OSError, ValueError) as error:
        remedy = "the same command with --repair makes it anew"
        raise ArtefactError(f"{path} is missing or damaged ({error}); {remedy}.") from None


def tasks_of(environment: str, split: str, indices: Sequence[int]) -> list[Task]:
    """The tasks of a split at `indices`."""
    tasks = envs.get(environment).tasks(split)
    return [tasks[i] for i in indices]


def env_maker(environment: str, tasks: Sequence[int], horizon: int, split: str = "train") -> Callable[[int], EnvStack]:
    """A function that builds so many copies of the environment of each task of a split."""
    distribution = envs.get(environment)
    chosen = tasks_of(environment, split, tasks)
    return lambda copies: make_envs(distribution, chosen, horizon, copies)


def layout_of(environment: str) -> RowLayout:
    """The packed-row layout of an environment."""
    distribution = envs.get(environment)
    return RowLayout(distribution.observation_size, distribution.action_size)


def load_rows(collected: Sequence[Path], tasks: Sequence[int]) -> MappedRows:
    """Rows of `tasks`, memory-mapped from the collectors' artefacts."""
    dataset = Dataset.open(*(path / "dataset" for path in collected))
    return MappedRows([dataset.shards(index) for index in tasks])


def load_teachers(trained: Sequence[Path]) -> tuple[list[int], Teachers]:
    """Task indices and teachers of all teachers' artefacts, joined in the order of the tasks."""
    parts = _stacks(trained, "teachers")
    return [t for p in parts for t in p["tasks"]], Teachers.join([teachers.load(p["teachers"]) for p in parts])


def load_ensemble(trained: Sequence[Path], config: EnsembleConfig, layout: RowLayout, target: Target) -> Ensemble:
    """The ensembles of all model artefacts, joined in the order of the tasks."""
    return _ensemble(_stacks(trained, "models"), config, layout, target)


def load_history(trained: Sequence[Path], config: EnsembleConfig, layout: RowLayout) -> list[tuple[int, Ensemble]]:
    """The reward ensembles of all model artefacts at the steps that were kept while they learned."""
    history = zip(*(part["history"] for part in _stacks(trained, "history")), strict=True)
    return [(points[0]["step"], _ensemble(points, config, layout, "reward")) for points in history]


def _ensemble(parts: Sequence[Any], config: EnsembleConfig, layout: RowLayout, target: Target) -> Ensemble:
    return Ensemble.of_networks(config, layout, target, [StackedMLP.load(part[target]) for part in parts])


def _stacks(trained: Sequence[Path], name: str) -> list[dict[str, Any]]:
    """A file of several artefacts, in the order of their tasks."""
    return sorted((load_tree(path / f"{name}.safetensors") for path in trained), key=lambda part: part["tasks"][0])


def load_tables(path: Path) -> RelabelTables:
    """The relabelling tables of a relabel artefact, memory-mapped."""
    return RelabelTables(**load_tree(path / "tables.safetensors", mapped=True))


def load_returns(references: Path) -> list[list[float]]:
    """Returns `[K, K]` of every teacher (first axis) on every training task, of a references artefact."""
    return read_json(references / "references.json")["train"]["teachers"]


def snapshot_of(trained: Path, step: int) -> Path:
    """The file of a multi-task policy in its learner's artefact."""
    return trained / "snapshots" / f"step-{step:07d}.safetensors"


def truth_table(environment: str, tasks: Sequence[Task], rows: Rows, index: Any = None) -> Tensor | None:
    """`true_rewards` of the rows of K tasks, or None where they cannot be computed."""
    reward = envs.get(environment).reward
    return None if reward is None else true_rewards(rows, layout_of(environment), reward, tasks, index)
