"""Collection of the batches of a stack of training tasks with SAC."""

from dataclasses import asdict, dataclass
from typing import Any

from actors.artefacts import env_maker, layout_of, tasks_of, write_lines
from actors.stage import Run, Stack, stage
from mbml.collect import CollectConfig, Collection
from mbml.data import DatasetWriter, validate


@dataclass(frozen=True)
class Collect(Stack):
    """The batches of `tasks` of the training split."""

    horizon: int
    config: CollectConfig
    seed: int


@stage(version=2)  # 2: the order of the random draws is another than that of the first batches
def collect(spec: Collect, run: Run) -> dict[str, Any]:
    """Leaves `dataset/` and `curves.jsonl`, the returns while learning."""
    layout, make_envs = layout_of(spec.env), env_maker(spec.env, spec.tasks, spec.horizon)
    where = {"device": run.device, "cuda_graphs": spec.cuda_graphs}
    collection = Collection(spec.config, layout, make_envs, spec.tasks, spec.seed, **where)
    run.train(collection)
    about = {"environment": spec.env, "horizon": spec.horizon, **asdict(layout)}
    made = {"method": "sac", "seed": spec.seed, "steps": spec.config.steps}
    with DatasetWriter(run.out / "dataset", **about, collection=made) as writer:
        for task, batch in zip(tasks_of(spec.env, "train", spec.tasks), collection.batches(), strict=True):
            writer.add_task(task.index, batch, parameter=task.vector.tolist(), label=task.label)
    validate(run.out / "dataset")
    write_lines(run.out / "curves.jsonl", collection.curve)
    return collection.latest()
