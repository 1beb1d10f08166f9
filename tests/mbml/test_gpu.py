"""Whole trainings on a GPU, where there is one: they resume, with and without graphs, and leave what a CPU can use."""

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mbml.collect import CollectConfig, Collection
from mbml.distill import MultiTaskLearner
from mbml.models import EnsembleConfig, EnsembleTraining, Target
from mbml.policy import ContextPolicy
from mbml.rows import resident
from mbml.sac import SACConfig
from mbml.settings import changed
from mbml.teachers import TEACHERS
from mbml.teachers import load as load_teachers
from mbml.teaching import Teaching, TeachingConfig
from mbml.training import Process, Training, run
from tests.mbml.small_distill import ABLATIONS, K, N, ablated, make_tables, teachers
from tests.mbml.toys import LAYOUT, UMAZE, env_maker, on_disk, random_rows, seeded, through_disk

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
_Process = TypeVar("_Process", bound=Process)
with_and_without_graphs = pytest.mark.parametrize("graphs", [False, True])


def rows(tasks, number, layout=LAYOUT):
    return resident(random_rows(tasks, number, layout), "cuda")


def generator(seed):
    return torch.Generator("cuda").manual_seed(seed)


def assert_resumes(make: Callable[[], _Process], tmp_path) -> _Process:
    """One that goes on from a checkpoint ends like one that never stopped; returns the latter."""
    whole, stopped, resumed = make(), make(), make()
    run(whole)
    while stopped.done < stopped.total // 2:
        stopped.advance()
    resumed.load_state_dict(through_disk(tmp_path, stopped.state_dict()))
    assert 0 < resumed.done == stopped.done < whole.done
    run(resumed)
    ends = [tree_leaves(through_disk(tmp_path, process.state_dict())) for process in (whole, resumed)]
    for one, other in zip(*ends, strict=True):
        if isinstance(one, Tensor):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
    return whole


@with_and_without_graphs
def test_collection(graphs, tmp_path):
    small = SACConfig(policy_hidden=(8, 8), critic_hidden=(8, 8), batch_size=6)
    config = CollectConfig(steps=40, warmup_steps=10, epoch_steps=10, evaluation_episodes=1, sac=small)

    def make():
        make_envs = env_maker("umaze_goal", [0, 1], 5)
        return Collection(config, UMAZE, make_envs, [0, 1], 0, device="cuda", cuda_graphs=graphs)

    collection = assert_resumes(make, tmp_path)
    assert collection.rows.is_cuda
    assert [len(batch) for batch in collection.batches()] == [40, 40]


@with_and_without_graphs
@pytest.mark.parametrize("name", TEACHERS)
def test_teaching(name, graphs, tmp_path):
    entry = TEACHERS[name]
    assert entry.config is not None
    learner = changed(entry.config(), entry.presets["smoke"])
    config = TeachingConfig(iterations=60, evaluation_every=30, evaluation_episodes=2)

    def make():
        make_envs = env_maker("umaze_goal", [0, 1], 5)
        data = rows(2, N, UMAZE)
        return Teaching(name, learner, config, UMAZE, data, make_envs, [0, 1], 0, "cuda", cuda_graphs=graphs)

    kept = load_teachers(through_disk(tmp_path, assert_resumes(make, tmp_path).best.state_dict()))
    assert kept.act(torch.zeros(2, 3, 4), seeded()).shape == (2, 3, 2)


@with_and_without_graphs
def test_ensembles(graphs, tmp_path):
    configs: dict[Target, EnsembleConfig] = {
        "reward": EnsembleConfig(members=2, hidden=(6,), steps=60, batch_size=4),
        "next_observation": EnsembleConfig(members=3, hidden=(5, 5), steps=40, batch_size=4),
    }

    def make():
        return EnsembleTraining(configs, LAYOUT, rows(2, 50), [1, 4], 0, "cuda", cuda_graphs=graphs)

    training = assert_resumes(make, tmp_path)
    assert len(training.history) == 10


@pytest.mark.parametrize("method", ABLATIONS)
def test_multi_task_learner(method, tmp_path):
    config = ablated(method, steps=60)

    def make():
        tables = make_tables().to("cuda") if config.union_context else None
        given = {"teachers": teachers().to("cuda"), "tables": tables}
        return Training(
            MultiTaskLearner(config, LAYOUT, rows(K, N), generator(0), generator(1), **given), tuple, 60, 20
        )

    learner = assert_resumes(make, tmp_path).learner
    learner.policy.save(tmp_path / "policy.safetensors")
    policy = ContextPolicy.load(tmp_path / "policy.safetensors")
    assert policy.act(torch.zeros(1, 3), torch.zeros(1, 3), seeded()).shape == (1, 2)


def test_mapped_rows_become_resident(tmp_path):
    expected = random_rows(2, 12)
    copied = resident(on_disk(tmp_path, expected, shard_rows=(5, 12)), "cuda")
    assert isinstance(copied, Tensor)
    assert copied.is_cuda
    assert torch.equal(copied.cpu(), expected)
