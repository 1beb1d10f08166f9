"""MetaGenRL on the batch of one training task."""

from dataclasses import dataclass
from typing import Any

from actors.artefacts import env_maker, layout_of, load_rows, write_lines
from actors.stage import Ref, Run, stage
from mbml.baselines.metagenrl import MetaGenRLConfig, metagenrl_training
from mbml.serialise import save_tree


@dataclass(frozen=True)
class MetaGenRL:
    """One agent, learning from the batch of `task` and evaluated there."""

    env: str
    horizon: int
    task: int
    config: MetaGenRLConfig
    seed: str
    collect: tuple[Ref, ...]


@stage(version=1)
def metagenrl(spec: MetaGenRL, run: Run) -> dict[str, Any]:
    """Leaves `curves.jsonl` and `policy.safetensors`."""
    rows, make_envs = load_rows(run.paths(spec.collect), [spec.task]), env_maker(spec.env, [spec.task], spec.horizon)
    training = metagenrl_training(spec.config, layout_of(spec.env), rows, make_envs, spec.task, spec.seed)
    run.train(training)
    policy = {"hidden": spec.config.hidden, "weights": training.learner.policy.state_dict()}
    save_tree(run.out / "policy.safetensors", {"tasks": [spec.task], "policy": policy})
    write_lines(run.out / "curves.jsonl", training.curve)
    return {"return": training.curve[-1]["return"]}
