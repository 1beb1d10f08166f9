"""Single-task teachers of a stack of training tasks, or one teacher of all of them together."""

from dataclasses import dataclass, replace
from typing import Any

from actors.artefacts import env_maker, layout_of, load_rows, load_tables, write_json, write_lines
from actors.stage import Ref, Run, Stack, stage
from mbml import envs
from mbml.envs.logged import LoggedFamily
from mbml.rows import resident, together
from mbml.serialise import save_tree
from mbml.settings import later
from mbml.teaching import Teaching, TeachingConfig


@dataclass(frozen=True)
class Teach(Stack):
    """A teacher for each of `tasks`, from its batch, or one from all their batches."""

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
    pooled: tuple[int, ...] = later(())
    """Those of `tasks` that one teacher of them all is evaluated on."""


@stage(version=2)
def teach(spec: Teach, run: Run) -> dict[str, Any]:
    """Leaves `teachers.safetensors`, every task's best checkpoint (of logged data the last), with `curves.jsonl` and
    `selected.json`."""
    rows = load_rows(run.paths(spec.collect), spec.relabelled or spec.tasks)
    rows = resident(together(rows) if spec.pooled else rows, run.device)
    tables = load_tables(run.inputs[spec.relabel]).to(run.device) if spec.relabel else None
    logged = isinstance(envs.get(spec.env), LoggedFamily)
    make_envs = None if logged else env_maker(spec.env, spec.pooled or spec.tasks, spec.horizon)
    tasks, config = spec.tasks, spec.config
    if spec.pooled:  # one learner, of which every episode on any task is an episode
        each, make = len(spec.pooled), make_envs
        tasks, config = tasks[:1], replace(config, evaluation_episodes=config.evaluation_episodes * each)
        make_envs = make and (lambda copies: make(copies // each))
    configs = spec.teacher, spec.learner, config
    where = (make_envs, tasks, spec.seed, run.device)
    more = {"tables": tables, "cuda_graphs": spec.cuda_graphs}
    teaching = Teaching(*configs, layout_of(spec.env), rows, *where, **more)
    run.train(teaching)
    save_tree(run.out / "teachers.safetensors", {"tasks": list(tasks), "teachers": teaching.best.state_dict()})
    write_lines(run.out / "curves.jsonl", teaching.curve)
    write_json(run.out / "selected.json", teaching.selected)
    return {} if logged else {"return": teaching.best_return}
