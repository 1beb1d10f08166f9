"""Collection on real environments: the schedule, the rows, and resuming."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mbml import envs
from mbml.collect import CollectConfig, Collection
from mbml.data import Dataset, DatasetError, DatasetWriter, validate
from mbml.learner import NotFinite
from mbml.rows import MappedRows, RowLayout, gather_rows
from mbml.sac import SACConfig
from mbml.training import run
from tests.mbml.toys import UMAZE, assert_same_bits, env_maker, snapshot, through_disk

WALKER = RowLayout(17, 6)
SMALL = CollectConfig(
    steps=210,
    warmup_steps=65,
    epoch_steps=50,
    evaluation_episodes=2,
    sac=SACConfig(policy_hidden=(8, 8), critic_hidden=(8, 8), batch_size=8),
)


def make(config=SMALL, env="umaze_goal", layout=UMAZE, tasks=(1, 4), horizon=20, seed=0):
    return Collection(config, layout, env_maker(env, tasks, horizon), tasks, seed)


def finish(collection):
    run(collection)
    return collection


def write(root, collection, env, layout, horizon, **columns):
    with DatasetWriter(
        root,
        environment=env,
        observation_size=layout.observation_size,
        action_size=layout.action_size,
        horizon=horizon,
        collection={},
    ) as writer:
        for task, batch in zip(collection.tasks, collection.batches(), strict=True):
            writer.add_task(task, replace(batch, **columns), parameter=task, label=str(task))


def test_the_schedule():
    collection = make()
    trace = []
    while collection.done < collection.total:
        collection.advance()
        trace.append((collection.done, collection.learner.steps_done))
    # Warm-up, then rounds of 50 steps with as many updates, the last one cut at N.
    assert trace == [(65, 0), (115, 50), (165, 100), (210, 145)]
    assert [row["step"] for row in collection.curve] == [115, 115, 165, 165, 210, 210]
    assert [row["task"] for row in collection.curve] == [1, 4] * 3


def test_it_learns_from_what_is_collected_so_far_only():
    collection = make()
    collection.rows[:] = torch.nan
    collection.advance()
    collection.advance()
    assert all(torch.isfinite(p).all() for p in collection.learner.critics.parameters())
    assert torch.isfinite(collection.rows[:, :115]).all()


def test_the_warm_up_is_the_untrained_stochastic_policy():
    collection = make()
    policy = snapshot(collection.learner.policy.state_dict())
    collection.advance()
    assert_same_bits(policy, collection.learner.policy.state_dict())
    # Untrained, the mean is near 0 and the deviation near 1.
    action = collection.layout.split(collection.rows[:, :65]).action.atanh()
    assert action.std().item() == pytest.approx(1.0, abs=0.15)
    collection.advance()
    assert not torch.equal(policy["weights.0"], collection.learner.policy.weights[0])


@pytest.mark.parametrize(("ratio", "updates"), [(0.5, 72), (2.0, 290)])
def test_updates_per_step(ratio, updates):
    assert finish(make(replace(SMALL, updates_per_step=ratio))).learner.steps_done == updates


def test_rows_without_terminations(tmp_path):
    collection = finish(make())
    write(tmp_path / "data", collection, "umaze_goal", UMAZE, 20)
    validate(tmp_path / "data")
    starts = {0, 65, 115, 165}
    for index, batch in enumerate(collection.batches()):
        assert len(batch) == 210
        assert not batch.terminated.any()
        # 65 = 20 + 20 + 20 + 5, then 50 = 20 + 20 + 10, ..., 45: cut where a round ends.
        lengths = np.bincount(batch.episode)
        assert lengths.tolist() == [20, 20, 20, 5] + [20, 20, 10] * 2 + [20, 20, 5]
        assert np.flatnonzero(batch.truncated).tolist() == (np.cumsum(lengths) - 1).tolist()
        assert starts <= set(np.flatnonzero(batch.step == 0).tolist())
        reward = envs.get("umaze_goal").reward
        assert reward is not None
        task = envs.get("umaze_goal").tasks("train")[collection.tasks[index]]
        truth = reward(batch.observation, batch.action, batch.next_observation, task.parameter)
        np.testing.assert_allclose(batch.reward, truth, atol=1e-5)
        assert (np.abs(batch.action) <= 1).all()


def test_rows_with_terminations(tmp_path):
    collection = finish(make(env="walker_param", layout=WALKER, horizon=40, tasks=(0, 1, 2)))
    write(tmp_path / "data", collection, "walker_param", WALKER, 40)
    validate(tmp_path / "data")
    falls = 0
    for batch in collection.batches():
        falls += batch.terminated.sum()
        fallen = ~((batch.next_observation[:, 0] > 0.8) & (batch.next_observation[:, 0] < 2.0))
        fallen |= np.abs(batch.next_observation[:, 1]) >= 1.0
        assert np.array_equal(fallen, batch.terminated)
        over = batch.terminated | batch.truncated
        assert np.array_equal(np.flatnonzero(over)[:-1] + 1, np.flatnonzero(batch.step == 0)[1:])
        assert over[-1]
        at_round_end = np.isin(np.arange(210), [64, 114, 164, 209])
        assert not (batch.truncated & ~at_round_end & (batch.step < 39)).any()
        # A fall is no time limit.
        assert not (batch.terminated & batch.truncated & (batch.step < 39)).any()
    assert falls > 3


def test_a_dataset_that_mixes_up_terminated_and_truncated_would_be_found(tmp_path):
    write(tmp_path / "data", finish(make()), "umaze_goal", UMAZE, 20, truncated=np.zeros(SMALL.steps, dtype=bool))
    with pytest.raises(DatasetError, match="truncated"):
        validate(tmp_path / "data")


def test_batches_are_what_the_learner_learned_from(tmp_path):
    collection = finish(make())
    write(tmp_path / "data", collection, "umaze_goal", UMAZE, 20)
    dataset = Dataset.open(tmp_path / "data")
    stored = MappedRows([dataset.shards(task) for task in collection.tasks])
    everything = torch.arange(SMALL.steps).repeat(len(stored), 1)
    assert torch.equal(gather_rows(stored, everything), collection.rows)


def test_a_batch_of_warm_up_only():
    collection = finish(make(replace(SMALL, steps=40)))
    assert collection.done == 40
    assert collection.learner.steps_done == 0
    assert len(collection.batches()[0]) == 40


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("env", ["umaze_goal", "walker_param"])
def test_a_resumed_collection_is_one_that_never_stopped(env, rounds, tmp_path):
    layout = UMAZE if env == "umaze_goal" else WALKER
    whole = make(env=env, layout=layout)
    for _ in range(rounds):
        whole.advance()
    state = through_disk(tmp_path, whole.state_dict())
    resumed = make(env=env, layout=layout, seed=0)
    # Whatever happened in the new process before must not matter.
    resumed.learner.act(torch.zeros(2, 1, layout.observation_size))
    resumed.envs.reset()
    resumed.load_state_dict(state)
    finish(whole)
    finish(resumed)
    assert_same_bits(whole.state_dict(), resumed.state_dict())


def test_the_seed_decides_every_bit():
    torch.manual_seed(1)
    first = finish(make()).state_dict()
    torch.manual_seed(2)
    np.random.seed(3)  # noqa: NPY002
    assert_same_bits(first, finish(make()).state_dict())
    assert not torch.equal(first["rows"], finish(make(seed=1)).rows)


def test_evaluating_more_often_changes_nothing_but_the_curve():
    often = finish(make())
    seldom = finish(make(replace(SMALL, evaluation_every=100, evaluation_episodes=1)))
    assert torch.equal(often.rows, seldom.rows)
    assert_same_bits(often.learner.state_dict(), seldom.learner.state_dict())
    assert len(seldom.curve) == 2  # the last round is always evaluated
    assert often.evaluate().tolist() == often.evaluate().tolist()


def test_evaluation_is_the_mean_return_of_the_deterministic_policy():
    collection = finish(make())
    found = collection.evaluate()
    assert [row["return"] for row in collection.curve[-2:]] == found.tolist()
    envs_ = collection.evaluation_envs
    starts = envs_.observation  # where the episodes ended: all copies went their own way
    assert len({tuple(row) for row in starts.tolist()}) == 4
    assert (found > 0).all()
    assert (found < 20).all()


def test_what_is_not_finite_ends_the_collection_with_a_sentence():
    collection = make()
    collection.advance()
    collection.rows[0, :, -2] = torch.inf  # rewards
    with pytest.raises(NotFinite, match="critic_loss is not finite within the updates up to 50"):
        collection.advance()
