"""What stages leave in their artefacts and how the next stage reads it: rows, teachers, models, JSON."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, dtype

from mbml import envs, teachers
from mbml.data import Dataset
from mbml.envs import Task
from mbml.evaluate import make_envs
from mbml.learner import NotFinite
from mbml.models import Ensemble, EnsembleConfig, Target
from mbml.nets import StackedMLP, select_stack
from mbml.partners import Ring
from mbml.relabel import RelabelTables, true_rewards
from mbml.rollout import EnvStack
from mbml.rows import MappedRows, RowLayout, Rows
from mbml.serialise import load_tree, tree_in_place
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


def load_teachers(trained: Sequence[Path], tasks: Sequence[int] | None) -> Teachers:
    """The teachers of `tasks`, which are in these artefacts, or whatever is there; raises ArtefactError where one is
    not."""
    parts = _stacks(trained, "teachers")
    joined = Teachers.join([teachers.load(part["teachers"]) for part in parts])
    places = list(range(joined.tasks)) if tasks is None else _places(parts, tasks)
    return joined if places == list(range(joined.tasks)) else joined.select(places)


def load_models(
    trained: Sequence[Path], configs: Mapping[Target, EnsembleConfig], layout: RowLayout, tasks: Sequence[int]
) -> dict[Target, Ensemble]:
    """The ensembles of `tasks`, which are in these artefacts, by what they predict; raises ArtefactError where one is
    not."""
    parts = _stacks(trained, "models")
    places, models = _places(parts, tasks), {}
    for target, config in configs.items():
        joined = Ensemble.of_networks(config, layout, target, [StackedMLP.load(part[target]) for part in parts])
        models[target] = joined if places == list(range(joined.tasks)) else joined.select(torch.tensor(places))
    return models


def _places(parts: Sequence[dict[str, Any]], tasks: Sequence[int]) -> list[int]:
    """Where `tasks` stand in the tasks of several artefacts."""
    there = {task: place for place, task in enumerate(task for part in parts for task in part["tasks"])}
    if missing := set(tasks) - there.keys():
        raise ArtefactError(f"Artefacts of tasks {sorted(there)} cannot serve for tasks {sorted(missing)}.")
    return [there[task] for task in tasks]


def load_history(
    trained: Sequence[Path], config: EnsembleConfig, layout: RowLayout, some: Tensor | None = None
) -> Iterator[tuple[int, Ensemble]]:
    """The reward ensembles of all model artefacts, or of the tasks at `some` places, at the steps that were kept while
    they learned."""
    parts = _stacks(trained, "history", mapped=True)
    wanted, start = [], 0
    for part in parts:
        places = range(start, start := start + len(part["tasks"]))
        wanted.append(range(len(places)) if some is None else [i - places[0] for i in some.tolist() if i in places])
    for points in zip(*(part["history"] for part in parts), strict=True):
        chosen = [
            select_stack(
                StackedMLP.load(point["reward"]), [m + i * config.members for i in own for m in range(config.members)]
            )
            for point, own in zip(points, wanted, strict=True)
            if own
        ]
        yield points[0]["step"], Ensemble.of_networks(config, layout, "reward", chosen)


def _stacks(trained: Sequence[Path], name: str, *, mapped: bool = False) -> list[dict[str, Any]]:
    """A file of several artefacts, in the order of their tasks."""
    files = (load_tree(path / f"{name}.safetensors", mapped=mapped) for path in trained)
    return sorted(files, key=lambda part: part["tasks"][0])


def load_tables(path: Path) -> RelabelTables:
    """The relabelling tables of a relabel artefact, memory-mapped."""
    return RelabelTables(**load_tree(path / "tables.safetensors", mapped=True))


@contextmanager
def tables_in_place(
    path: Path, index: Sequence[Tensor], shapes: Mapping[str, tuple[tuple[int, ...], dtype]], ring: Ring
) -> Iterator[dict[str, Tensor]]:
    """Labels and flags of `shapes_of`, to be written where they will be read; see `mbml.serialise.tree_in_place`."""
    known = {"index": torch.cat([*index]), "sizes": torch.tensor([*map(len, index)]), "order": ring.order}
    with tree_in_place(path, {n: (tuple(t.shape), t.dtype) for n, t in known.items()} | dict(shapes)) as made:
        for name, value in known.items():
            made.pop(name).copy_(value)
        yield made


def load_returns(references: Path, tasks: Sequence[int]) -> Tensor:
    """Returns `[K, K]` (float64) of the teachers of `tasks` (first axis) on each of these, of a references artefact;
    NaN where they were not compared."""
    found, place = read_json(references / "references.json")["train"], {task: i for i, task in enumerate(tasks)}
    played, compared = ([place[t] for t in found[n]] for n in ("task", "candidates" if "own" in found else "task"))
    table = torch.full((len(place), len(place)), torch.nan, dtype=torch.float64)
    if "own" in found:
        table[played, played] = torch.tensor(found["own"], dtype=torch.float64)
    table[torch.tensor(compared).unsqueeze(1), played] = torch.tensor(found["teachers"], dtype=torch.float64)
    return table


def load_pooled_returns(references: Path, tasks: Sequence[int]) -> Tensor:
    """Returns `[1, K]` (float64) of the pooled teacher on `tasks`; NaN where it was not played."""
    found = read_json(references / "references.json")["train"]
    known = dict(zip(found["task"], found["teachers"][0], strict=True))
    return torch.tensor([[known.get(task, torch.nan) for task in tasks]], dtype=torch.float64)


def snapshot_of(trained: Path, step: int) -> Path:
    """The file of a multi-task policy in its learner's artefact."""
    return trained / "snapshots" / f"step-{step:07d}.safetensors"


def truth_table(environment: str, tasks: Sequence[Task], rows: Rows, *how: Any) -> Tensor | None:
    """`true_rewards` of the rows of K tasks, or None where they cannot be computed."""
    reward = envs.get(environment).reward
    return None if reward is None else true_rewards(rows, layout_of(environment), reward, tasks, *how)
