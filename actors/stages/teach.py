"""Single-task teachers of a stack of training tasks."""

from dataclasses import dataclass
from typing import Any

from actors.artefacts import env_maker, layout_of, load_rows, load_tables, write_json, write_lines
from actors.stage import Ref, Run, Stack, stage
from mbml import envs
from mbml.envs.logged import LoggedFamily
from mbml.rows import resident
from mbml.serialise import save_tree
from mbml.settings import later
from mbml.teaching import Teaching, TeachingConfig


@dataclass(frozen=True)
class Teach(Stack):
    """A teacher for each of `tasks`, from its batch."""

    horizon: int
    teacher: str
    config: TeachingConfig
    learner: Any
    """Configuration of the teacher."""
    seed: int
    collect: tuple[Ref, ...]
    relabelled: tuple[int, ...] = later(())
    """All tasks, where teachers learn from the others' transitions as well."""
    relabel: Ref | None = later(None)


@stage(version=2)
def teach(spec: Teach, run: Run) -> dict[str, Any]:
    """Leaves `teachers.safetensors`, every task's best checkpoint (of logged data the last), with `curves.jsonl` and
    `selected.json`."""
    rows = resident(load_rows(run.paths(spec.collect), spec.relabelled or spec.tasks), run.device)
    tables = load_tables(run.inputs[spec.relabel]).to(run.device) if spec.relabel else None
    logged = isinstance(envs.get(spec.env), LoggedFamily)
    make_envs = None if logged else env_maker(spec.env, spec.tasks, spec.horizon)
    configs = spec.teacher, spec.learner, spec.config
    where = (make_envs, spec.tasks, spec.seed, run.device)
    more = {"tables": tables, "cuda_graphs": spec.cuda_graphs}
    teaching = Teaching(*configs, layout_of(spec.env), rows, *where, **more)
    run.train(teaching)
    tasks, teachers = list(spec.tasks), teaching.best.state_dict()
    save_tree(run.out / "teachers.safetensors", {"tasks": tasks, "teachers": teachers})
    write_lines(run.out / "curves.jsonl", teaching.curve)
    write_json(run.out / "selected.json", teaching.selected)
    return {} if logged else {"return": teaching.best_return}
