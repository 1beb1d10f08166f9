"""The unfamiliarity score: its parts by hand, and what it says of a point in a maze whose rewards are not its own."""

import numpy as np
import pytest
import torch

from mbml import AdaptivePolicy, PolicyError, envs
from mbml.deploy.description import Calibration
from mbml.deploy.familiarity import Familiarity, FamiliarityTraining, TaskModels, fit_familiarity
from mbml.evaluate import make_envs
from mbml.nets import StackedMLP
from mbml.rollout import run_episode
from mbml.rows import RowLayout
from mbml.serialise import load_tree, save_tree
from mbml.training import run
from tests.mbml.deploy.small import EVERY, transitions, write
from tests.mbml.toys import LAYOUT, UMAZE, forward, layers_of, random_rows, seeded


def wander(tasks, steps, seed):
    """Rows `[n, steps, row]` of random forces that last some steps, in mazes with the goals of `tasks`."""
    stack, rows, generator = make_envs(envs.get("umaze_goal"), tasks, steps), [], seeded(seed)
    stack.seed([seed + i for i in range(len(tasks))])
    force = torch.zeros(len(tasks), 2)

    def act(observation):
        if len(rows) % 8 == 0:
            force.copy_(torch.rand(force.shape, generator=generator) * 2 - 1)
        return force.clone()

    run_episode(stack, act, lambda s, a, step, active: rows.append(step.rows(s, a)))
    return torch.stack(rows, 1)


@pytest.fixture(scope="module")
def maze():
    """Task models of six goals, and the training tasks."""
    tasks = envs.get("umaze_goal").tasks("train")[:6]
    rows = torch.cat([wander(tasks, 300, seed) for seed in (0, 10, 20)], 1)
    return fit_familiarity(UMAZE, list(rows)), tasks


def score(familiarity, rows):
    """Unfamiliarity `[n]` of whole stretches of rows `[n, steps, row]`."""
    with torch.no_grad():
        return familiarity.unfamiliarity(familiarity.misfits(UMAZE.context(rows)).sum(1)).numpy()


def test_what_fits_no_training_task_is_less_familiar_than_what_does(maze):
    familiarity, tasks = maze
    known, new = wander(tasks, 100, 77), wander(envs.get("umaze_goal").tasks("test")[:6], 100, 77)
    order = torch.randperm(100, generator=seeded(1))
    shuffled, slow = known.clone(), known.clone()
    shuffled[..., -2] = known[:, order, -2]
    moved = UMAZE.split(slow)
    moved.next_observation[...] = moved.observation + 0.5 * (moved.next_observation - moved.observation)
    levels = {
        n: score(familiarity, r) for n, r in [("known", known), ("new", new), ("shuffled", shuffled), ("slow", slow)]
    }
    mean = {name: found.mean() for name, found in levels.items()}
    assert mean["known"] + 0.2 < mean["shuffled"], levels
    assert mean["known"] <= mean["new"] + 0.05 < mean["shuffled"] + 0.05, levels
    assert levels["slow"].min() > 0.9 > levels["known"].max(), levels


def test_the_same_rows_give_the_same_models(maze):
    rows = list(random_rows(3, 60))
    first, second = (fit_familiarity(LAYOUT, rows) for _ in range(2))
    assert first.calibration == second.calibration
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.models.state_dict().values(), second.models.state_dict().values(), strict=True)
    )


def test_of_very_many_tasks_some_have_models(monkeypatch, tmp_path):
    rows = list(random_rows(7, 40))
    some = fit_familiarity(LAYOUT, [rows[place] for place in (0, 2, 4)])
    monkeypatch.setattr("mbml.deploy.familiarity.MOST_TASKS", 3)
    found = fit_familiarity(LAYOUT, rows)
    assert found.calibration == some.calibration
    found.models.save(tmp_path / "models")
    assert TaskModels.load(tmp_path / "models", LAYOUT, tasks=7).tasks == 3
    with pytest.raises(PolicyError, match="no networks of 2 tasks"):
        TaskModels.load(tmp_path / "models", LAYOUT, tasks=2)


def by_hand():
    """Models of two tasks with any weights, and a calibration of two lengths."""
    models = TaskModels(LAYOUT, StackedMLP(6, [5, 6, 4], generator=seeded(), initialisation="torch"))
    models.seen.fit(torch.randn(50, 5, generator=seeded(1)) * 2 + 1)
    models.wanted.fit(torch.randn(50, 4, generator=seeded(2)) * 3 - 1)
    models.noise.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    return Familiarity(
        models, Calibration([1, 3], [[0.5, 1.5, 2.5, 3.5], [1.0, 2.0, 3.0, 4.0]], [[0.0, 1.0, 2.0, 9.0]] * 2)
    )


def test_misfits_and_score_by_hand():
    familiarity, context = by_hand(), LAYOUT.context(random_rows(1, 5)[0])
    models = familiarity.models
    found = familiarity.misfits(context)
    for t, row in enumerate(context.double()):
        s, a, following, r = row.split([3, 2, 3, 1])
        pair = (torch.cat([s, a]) - models.seen.shift) / models.seen.scale
        wanted = (torch.cat([r, following - s]) - models.wanted.shift) / models.wanted.scale
        for k in range(2):
            said = torch.stack([forward(layers_of(models.network, 3 * k + m), pair) for m in range(3)])
            spread = (said - said.mean(0)).square().sum(0) / 2
            misfit = torch.log(1 + (said.mean(0) - wanted).square() / (models.noise.square() + spread))
            assert found[t, k].item() == pytest.approx(misfit[0].item(), rel=1e-4)
            assert found[t, 2 + k].item() == pytest.approx(misfit[1:].mean().item(), rel=1e-4)
    assert found[:, 4].tolist() == [1.0] * 5
    for number in (0, 1, 2, 3, 5):
        seen = found[:number].sum(0)
        levels = familiarity.calibration.reward[0 if number < 3 else 1]
        reward, following = ((seen[i : i + 2] / max(number, 1)).min().item() for i in (0, 2))
        shares = np.mean([reward > q for q in levels]), np.mean([following > q for q in (0.0, 1.0, 2.0, 9.0)])
        assert familiarity.unfamiliarity(seen).item() == pytest.approx(max(shares) if number else 0.0)


@pytest.mark.parametrize("kind", EVERY)
def test_every_kind_of_policy_has_it_and_none_acts_otherwise_for_it(tmp_path, kind):
    with_models, without = write(tmp_path / "a", kind, rows=list(random_rows(3, 60))), write(tmp_path / "b", kind)
    watched, plain = (AdaptivePolicy.load(folder, deterministic=True) for folder in (with_models, without))
    assert watched.unfamiliarity == 0.0
    for s, a, r, following, ended in transitions(6, 1):
        np.testing.assert_allclose(watched.act(s), plain.act(s), atol=1e-6)
        for policy in (watched, plain):
            policy.observe(s, a, r, following, ended)
        assert 0 <= watched.unfamiliarity <= 1
    with pytest.raises(PolicyError, match="written without task models"):
        _ = plain.unfamiliarity


def test_the_fallback_acts_untold_for_whom_it_does_not_know(tmp_path):
    folder = write(tmp_path / "policy", rows=list(random_rows(3, 200)))
    kept = AdaptivePolicy.load(folder, entities=2, renewed_every=1)
    careful = AdaptivePolicy.load(folder, entities=2, renewed_every=1, fallback="untold", threshold=0.9)
    untold = AdaptivePolicy.load(folder, entities=2)
    place = np.zeros((2, 3))
    for s, a, r, following, _ in transitions(6, 1):
        for policy in (kept, careful):
            paid = [r, r + 1e4]  # the second one is paid as in no training task
            policy.observe([s, s], [a, a], paid, [following, following])
    assert careful.unfamiliarity[1] > 0.9 >= careful.unfamiliarity[0]
    action = careful.act(place)
    assert action[0].tolist() == kept.act(place)[0].tolist()
    assert action[1].tolist() == untold.act(place)[1].tolist()
    assert careful.belief.untold[1] == 0  # what is believed is told as it is
    with pytest.raises(PolicyError, match="was never taught what to do untold"):
        AdaptivePolicy.load(write(tmp_path / "other", rows=list(random_rows(3, 60)), untold=False), fallback="untold")


def test_few_rows_of_unequal_length_are_enough():
    rows = [random_rows(1, n, seed=n)[0] for n in (1, 5, 300)]
    familiarity = fit_familiarity(RowLayout(3, 2), rows)
    assert familiarity.calibration.lengths[0] == 1
    assert bool(familiarity.unfamiliarity(familiarity.misfits(LAYOUT.context(rows[2])).sum(0)).isfinite())


def test_learning_goes_on_from_a_checkpoint_with_the_same_bits(tmp_path):
    rows = list(random_rows(3, 200))
    straight, first, second = (FamiliarityTraining(LAYOUT, rows) for _ in range(3))
    run(straight)
    for _ in range(3):
        first.advance()
    save_tree(tmp_path / "checkpoint", first.state_dict())
    second.load_state_dict(load_tree(tmp_path / "checkpoint"))
    run(second)
    a, b = straight.calibrated(), second.calibrated()
    assert a.calibration == b.calibration
    assert all(torch.equal(p, q) for p, q in zip(a.models.parameters(), b.models.parameters(), strict=True))
