"""Ensembles against separate regressors written a row at a time in float64."""

import statistics
from typing import Any

import pytest
import torch

from mbml.models import Ensemble, EnsembleConfig, EnsembleTraining, Target
from mbml.nets import select_stack
from mbml.rows import RowLayout
from mbml.seeding import generator_of
from mbml.training import batches, run
from tests.mbml.toys import (
    LAYOUT,
    assert_same_bits,
    forward,
    layers_of,
    random_rows,
    seeded,
    through_disk,
    trainable,
)

SMALL = EnsembleConfig(members=3, hidden=(6,), batch_size=8)
TARGETS = {"reward": 1, "next_observation": 3}


def ensemble(target: Any = "reward", tasks=2, seed=0, config=SMALL):
    return Ensemble(config, LAYOUT, tasks, target, seeded(seed))


def target_of(row, target):
    parts = LAYOUT.split(row)
    return (parts.reward if target == "reward" else parts.next_observation).double()


@pytest.mark.parametrize("target", TARGETS)
def test_members_are_separate_regressors_that_see_the_same_rows(target):
    models = ensemble(target)
    members = [layers_of(models.network, k) for k in range(6)]  # task by task
    optimisers = [torch.optim.Adam(trainable(member), lr=3e-4, foreach=False) for member in members]
    for step in range(3):
        rows = random_rows(2, 8, seed=step)
        found = models.update(rows)["loss"]
        for task in range(2):
            losses = []
            for e in range(3):
                member = members[task * 3 + e]
                errors = [
                    (forward(member, LAYOUT.pair(row)) - target_of(row, target)).square().mean() for row in rows[task]
                ]
                loss = torch.stack(errors).mean()
                optimisers[task * 3 + e].zero_grad()
                loss.backward()
                optimisers[task * 3 + e].step()
                losses.append(loss.item())
            assert found[task].item() == pytest.approx(statistics.mean(losses), rel=1e-4)
    for k, member in enumerate(members):
        for found_pair, wanted_pair in zip(layers_of(models.network, k), member, strict=True):
            for f, w in zip(found_pair, wanted_pair, strict=True):
                torch.testing.assert_close(f, w.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("target", "size"), TARGETS.items())
def test_mean_and_uncertainty(target, size):
    models = ensemble(target)
    with torch.no_grad():
        models.network.weights[-1].mul_(300)
    pair = torch.randn(2, 5, 5, generator=seeded(1))
    mean, std = models.mean_and_std(pair)
    assert mean.shape == (2, 5, size)
    assert std.shape == (2, 5)
    for task in range(2):
        for n in range(5):
            predictions = [forward(layers_of(models.network, task * 3 + e), pair[task, n]).tolist() for e in range(3)]
            columns = list(zip(*predictions, strict=True))
            assert mean[task, n].tolist() == pytest.approx([statistics.mean(c) for c in columns], rel=1e-4, abs=1e-5)
            # statistics.stdev is the unbiased one.
            spread = statistics.mean(statistics.stdev(c) for c in columns)
            assert std[task, n].item() == pytest.approx(spread, rel=1e-4)


def test_one_member_has_no_uncertainty():
    models = ensemble(config=EnsembleConfig(members=1, hidden=(6,)))
    mean, std = models.mean_and_std(torch.randn(2, 5, 5))
    assert torch.equal(std, torch.zeros(2, 5))
    assert torch.isfinite(mean).all()


def test_it_learns_the_target_and_agrees_with_itself_where_it_has_data():
    config = EnsembleConfig(members=5, hidden=(32,), learning_rate=3e-3)
    models = ensemble(config=config, tasks=1)
    rows = random_rows(1, 512)
    rows[..., -2] = rows[..., 0] - 0.5 * rows[..., 3]
    losses = [models.update(rows)["loss"].item() for _ in range(300)]
    assert losses[-1] < 0.05 * losses[0]
    near = LAYOUT.pair(rows)[:, :50]
    assert models.mean_and_std(near)[1].mean() < 0.3 * models.mean_and_std(near * 20)[1].mean()


def test_stacks_join_in_the_order_of_their_tasks():
    whole = ensemble("next_observation", tasks=3)
    parts = [select_stack(whole.network, range(6)), select_stack(whole.network, range(6, 9))]
    joined = Ensemble.of_networks(SMALL, LAYOUT, "next_observation", parts)
    assert joined.tasks == 3
    pair = torch.randn(3, 5, 5, generator=seeded(1))
    assert_same_bits(list(whole.mean_and_std(pair)), list(joined.mean_and_std(pair)))


@pytest.mark.parametrize("target", TARGETS)
def test_paper_size_makes_a_step(target):
    layout = RowLayout(17, 6)
    shapes = {"reward": (128,), "next_observation": (256,) * 6}
    models = Ensemble(EnsembleConfig(hidden=shapes[target]), layout, 2, target, seeded())  # pyright: ignore[reportArgumentType]
    assert models.network.stack == 40
    assert models.network.sizes == (23, *shapes[target], 1 if target == "reward" else 17)
    assert torch.isfinite(models.update(random_rows(2, 128, layout))["loss"]).all()


def training(seed=0):
    configs: dict[Target, EnsembleConfig] = {
        "reward": EnsembleConfig(members=2, hidden=(6,), steps=120, batch_size=4),
        "next_observation": EnsembleConfig(members=3, hidden=(5, 5), steps=75, batch_size=4),
    }
    return EnsembleTraining(configs, LAYOUT, random_rows(2, 50), [1, 4], seed)


def test_training_is_an_ensemble_per_target_on_uniform_batches():
    whole = training()
    run(whole)
    assert (whole.done, whole.total) == (195, 195)
    for target, ensemble in whole.ensembles.items():
        plain = Ensemble(ensemble.config, LAYOUT, 2, target, generator_of(0, "models", target, 1, 4))
        draw = batches(random_rows(2, 50), 4, plain.generator)
        losses = [plain.update(*draw())["loss"].mean().item() for _ in range(ensemble.config.steps)]
        assert_same_bits(plain.state_dict(), ensemble.state_dict())
        # Fifty points or a few more, each the mean since the one before.
        points, start = [row for row in whole.curve if row["target"] == target], 0
        for point in points:
            assert point["loss"] == pytest.approx(statistics.mean(losses[start : point["step"]]), rel=1e-5)
            start = point["step"]
        assert 50 <= len(points) <= 75
        assert start == ensemble.config.steps


def test_the_history_is_the_reward_ensembles_on_the_way():
    whole = training()
    while whole.ensembles["reward"].steps_done < 24:
        whole.advance()
    kept = {point["step"]: point["reward"] for point in whole.history}
    assert list(kept) == [12, 24]
    assert_same_bits(kept[24]["weights"], whole.ensembles["reward"].network.state_dict())
    run(whole)
    assert [point["step"] for point in whole.history] == [12 * (n + 1) for n in range(10)]
    assert not torch.equal(kept[24]["weights"]["weights.0"], whole.history[-1]["reward"]["weights"]["weights.0"])


@pytest.mark.parametrize("rounds", [0, 5, 80])
def test_a_resumed_training_is_one_that_never_stopped(rounds, tmp_path):
    whole, resumed = training(), training()
    for _ in range(rounds):
        whole.advance()
    resumed.load_state_dict(through_disk(tmp_path, whole.state_dict()))
    run(whole)
    run(resumed)
    assert_same_bits(whole.state_dict(), resumed.state_dict())
    assert whole.curve == resumed.curve
