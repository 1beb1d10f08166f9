"""Relabelling tables entry by entry."""

import math

import pytest
import torch

from mbml import envs
from mbml.models import Ensemble, EnsembleConfig, Target
from mbml.relabel import (
    RelabelConfig,
    cross_task_error,
    diagnostics,
    pool_indices,
    relabel,
    relabel_with_truth,
    true_rewards,
)
from tests.mbml.toys import LAYOUT, UMAZE, forward, layers_of, random_rows, seeded

K, P = 3, 7


def ensemble(target, members=4, seed=0, layout=LAYOUT, hidden=(6,)):
    models = Ensemble(EnsembleConfig(members=members, hidden=hidden), layout, K, target, seeded(seed))
    with torch.no_grad():
        models.network.weights[-1].mul_(300)
    return models


def naive_label(models, task, pair):
    """Mean prediction and uncertainty of one task's ensemble for one state-action pair."""
    members = models.config.members
    predictions = torch.stack([forward(layers_of(models.network, task * members + e), pair) for e in range(members)])
    mean = predictions.mean(0)
    variance = ((predictions - mean) ** 2).sum(0) / (members - 1)
    return mean, variance.sqrt().mean().item()


@pytest.mark.parametrize("dynamics", [False, True])
def test_every_entry_of_the_tables(dynamics):
    rows = random_rows(K, P)
    reward_model, next_model = ensemble("reward"), ensemble("next_observation", seed=1)
    models: dict[Target, Ensemble] = {"reward": reward_model}
    if dynamics:
        models["next_observation"] = next_model
    # Thresholds near the medians, so that each of the two lets some rows through and not others.
    config = RelabelConfig(reward_threshold=0.5, next_observation_threshold=0.55)
    tables = relabel(rows, pool_indices(K, P, 0, seeded()), LAYOUT, models, config)
    assert tables.reward.shape == tables.eligible.shape == (K, K, P)
    passed = {"reward": 0, "next": 0, "both": 0}
    for i in range(K):
        for j in range(K):
            for t in range(P):
                pair = LAYOUT.pair(rows[j, t])
                label, std = naive_label(reward_model, i, pair)
                assert tables.reward[i, j, t].item() == pytest.approx(label.item(), rel=1e-4, abs=1e-5)
                certain = std < 0.5
                passed["reward"] += certain
                if dynamics:
                    assert tables.next_observation is not None
                    following, spread = naive_label(next_model, i, pair)
                    torch.testing.assert_close(
                        tables.next_observation[i, j, t].double(), following, rtol=1e-4, atol=1e-5
                    )
                    passed["next"] += spread < 0.55
                    certain = certain and spread < 0.55
                    passed["both"] += certain
                assert bool(tables.eligible[i, j, t]) == (certain and i != j)
    assert 0 < passed["reward"] < K * K * P
    if dynamics:
        assert passed["both"] < min(passed["reward"], passed["next"])
    else:
        assert tables.next_observation is None


def test_pools_larger_than_a_chunk():
    rows = random_rows(K, 5_000)
    models: dict[Target, Ensemble] = {"reward": ensemble("reward", members=2, hidden=(2,))}
    tables = relabel(rows, pool_indices(K, 5_000, 0, seeded()), LAYOUT, models, RelabelConfig())
    tail = relabel(rows, tables.index[:, 4_090:4_110], LAYOUT, models, RelabelConfig())
    torch.testing.assert_close(tables.reward[..., 4_090:4_110], tail.reward)
    assert torch.equal(tables.eligible[..., 4_090:4_110], tail.eligible)


def test_a_single_member_makes_everything_eligible():
    tables = relabel(
        random_rows(K, P), pool_indices(K, P, 0, seeded()), LAYOUT, {"reward": ensemble("reward", 1)}, RelabelConfig()
    )
    assert torch.equal(tables.eligible, ~torch.eye(K, dtype=torch.bool).unsqueeze(-1).expand(K, K, P))


def test_true_rewards_of_umaze():
    distribution = envs.get("umaze_goal")
    tasks = distribution.tasks("train")[:K]
    rows = random_rows(K, P, UMAZE)
    assert distribution.reward is not None
    truth = true_rewards(rows, UMAZE, distribution.reward, tasks)
    for i in range(K):
        goal = tasks[i].vector
        for j in range(K):
            for t in range(P):
                x, y = UMAZE.split(rows[j, t]).next_observation[:2].tolist()
                expected = math.exp(-math.hypot(x - goal[0], y - goal[1]))
                assert truth[i, j, t].item() == pytest.approx(expected, rel=1e-5)
    index = torch.tensor([[6, 0], [3, 3], [1, 5]])
    pooled = true_rewards(rows, UMAZE, distribution.reward, tasks[1:], index)
    assert torch.equal(pooled, truth[1:].gather(2, index.expand(2, -1, -1)))
    tables = relabel_with_truth(pool_indices(K, P, 0, seeded()), truth)
    assert torch.equal(tables.reward, truth)
    assert torch.equal(tables.eligible, ~torch.eye(K, dtype=torch.bool).unsqueeze(-1).expand(K, K, P))
    assert tables.next_observation is None


def test_pools():
    everything = torch.arange(9).repeat(2, 1)
    assert torch.equal(pool_indices(2, 9, 0, seeded()), everything)
    assert torch.equal(pool_indices(2, 9, 20, seeded()), everything)
    index = pool_indices(2, 100, 30, seeded())
    assert index.shape == (2, 30)
    assert (index.diff(dim=1) > 0).all()  # sorted and without repetition
    assert index.min() >= 0
    assert index.max() < 100
    assert not torch.equal(index[0], index[1])
    assert torch.equal(index, pool_indices(2, 100, 30, seeded()))
    assert not torch.equal(index, pool_indices(2, 100, 30, seeded(1)))


def test_diagnostics():
    tables = relabel(
        random_rows(K, P), pool_indices(K, P, 0, seeded()), LAYOUT, {"reward": ensemble("reward")}, RelabelConfig(0.5)
    )
    tables.eligible[0, 1] = False
    truth = torch.randn(K, K, P, generator=seeded(2))
    found = diagnostics(tables, truth)
    share, eligible, everything = found["share"], found["error_eligible"], found["error_all"]
    assert share is not None
    assert eligible is not None
    assert everything is not None
    for i in range(K):
        for j in range(K):
            squared = [(tables.reward[i, j, t] - truth[i, j, t]).item() ** 2 for t in range(P)]
            assert everything[i][j] == pytest.approx(math.sqrt(sum(squared) / P), abs=1e-5)
            kept = [s for t, s in enumerate(squared) if tables.eligible[i, j, t]]
            if i == j:
                assert share[i][j] is None
                assert eligible[i][j] is None
                continue
            assert share[i][j] == pytest.approx(len(kept) / P, abs=1e-5)
            if kept:
                assert eligible[i][j] == pytest.approx(math.sqrt(sum(kept) / len(kept)), abs=1e-5)
            else:
                assert eligible[i][j] is None
    assert share[0][1] == 0.0
    without = diagnostics(tables, None)
    assert without["share"] == share
    assert without["error_eligible"] is None
    assert without["error_all"] is None


@pytest.mark.parametrize(("members", "threshold"), [(4, 0.5), (1, 0.5), (4, 1e-9)])
def test_error_of_members_on_the_rows_of_other_tasks_that_they_would_relabel(members, threshold):
    """The errors of single members are averaged, not the error of their mean."""
    rows, models = random_rows(K, P), ensemble("reward", members=members)
    truth = torch.randn(K, K, P, generator=seeded(2))
    found = cross_task_error(models, rows, truth, LAYOUT, threshold)
    kept_in_all = 0
    for i in range(K):
        errors = []
        for j in range(K):
            for t in range(P):
                pair = LAYOUT.pair(rows[j, t])
                labels = [forward(layers_of(models.network, i * members + e), pair).item() for e in range(members)]
                if i != j and (members == 1 or torch.tensor(labels).std() < threshold):
                    errors.append(sum((label - truth[i, j, t].item()) ** 2 for label in labels) / members)
        kept_in_all += len(errors)
        if errors:
            assert found["error"][i] == pytest.approx(sum(errors) / len(errors), rel=1e-4)
        else:
            assert found["error"][i] is None
    assert found["kept"] == pytest.approx(kept_in_all / (K * (K - 1) * P))
    assert (found["kept"] == 0) == (threshold < 1e-6)
    if members == 1:
        assert found["kept"] == 1.0
