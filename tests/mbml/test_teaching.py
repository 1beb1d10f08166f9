"""Training of teachers on real environments: schedule, selection, resuming."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mbml.rollout import run_episode
from mbml.rows import gather_rows, sample_indices
from mbml.seeding import generator_of
from mbml.teachers.bcq import BCQ, BCQConfig
from mbml.teachers.iql import IQLConfig
from mbml.teachers.td3_bc import TD3BCConfig
from mbml.teaching import Teaching, TeachingConfig
from mbml.training import run
from tests.mbml.toys import UMAZE, assert_same_bits, env_maker, random_rows, snapshot, through_disk

SMALL = TeachingConfig(iterations=25, evaluation_every=10, evaluation_episodes=2)
LEARNER = BCQConfig(hidden=(8, 8), vae_hidden=(8, 8), batch_size=8, target_candidates=2, acting_candidates=3)
ROWS = random_rows(2, 50, UMAZE)


def make(config=SMALL, tasks=(1, 4), seed=0, teacher="bcq", learner: Any = LEARNER):
    return Teaching(teacher, learner, config, UMAZE, ROWS, env_maker("umaze_goal", tasks, 15), tasks, seed)


def finish(teaching):
    run(teaching)
    return teaching


def test_the_schedule():
    teaching = finish(make())
    assert teaching.done == 25
    assert [(row["task"], row["iteration"]) for row in teaching.curve] == [
        (task, iteration) for iteration in (10, 20, 25) for task in (1, 4)
    ]
    assert {"return", "vae_loss", "critic_loss", "actor_loss"} <= set(teaching.curve[0])


def test_it_is_bcq_on_uniform_batches():
    teaching = make()
    plain = BCQ(LEARNER, UMAZE, 2, generator_of(0, "bcq", 1, 4))
    losses = []
    for _ in range(10):
        losses.append(plain.update(gather_rows(ROWS, sample_indices(2, 8, 50, plain.generator))))
    teaching.advance()
    assert_same_bits(plain.state_dict(), teaching.learner.state_dict())
    for i in range(2):
        for name in losses[0]:
            mean = sum(found[name][i].item() for found in losses) / 10
            assert teaching.curve[i][name] == pytest.approx(mean, rel=1e-5)


def test_every_task_keeps_its_own_best_checkpoint():
    teaching = make(replace(SMALL, iterations=60))
    checkpoints = {}
    while teaching.done < teaching.total:
        teaching.advance()
        checkpoints[teaching.done] = snapshot(teaching.learner.teachers().state_dict())
    for i, (task, chosen) in enumerate(zip((1, 4), teaching.selected, strict=True)):
        curve = {row["iteration"]: row["return"] for row in teaching.curve if row["task"] == task}
        assert chosen == {"task": task, "iteration": max(curve, key=curve.__getitem__), "return": max(curve.values())}
        best = checkpoints[chosen["iteration"]]
        for name, network in teaching.best.networks().items():
            for key, value in network.state_dict().items():
                assert torch.equal(value[i], best[name]["weights"][key][i]), (name, key)
    # The test says nothing unless the tasks choose differently or one of them does not choose the last.
    assert {row["iteration"] for row in teaching.selected} != {60}


def test_evaluation_is_the_mean_return_of_the_teachers():
    teaching = make()
    teaching.advance()
    teachers, generator = teaching.learner.teachers(), generator_of(9)
    stack = env_maker("umaze_goal", (1, 4), 15)(200)
    stack.seed(range(400))
    many = run_episode(stack, lambda o: teachers.act(o.view(2, 200, -1), generator).flatten(0, 1)).reshape(2, 200)
    few = teaching.evaluate()
    error = many.std(1) / np.sqrt(2)
    assert (np.abs(few - many.mean(1)) < 5 * error).all()
    assert few.tolist() == [row["return"] for row in teaching.curve]


def test_evaluating_touches_neither_the_learner_nor_its_generator():
    teaching = make()
    before = snapshot(teaching.learner.state_dict())
    assert teaching.evaluate().tolist() == teaching.evaluate().tolist()
    assert_same_bits(before, teaching.learner.state_dict())
    often, seldom = finish(make(replace(SMALL, evaluation_every=5))), finish(make(replace(SMALL, evaluation_every=25)))
    assert_same_bits(often.learner.state_dict(), seldom.learner.state_dict())


OTHERS = {"iql": IQLConfig(hidden=(8, 8), batch_size=8), "td3_bc": TD3BCConfig(hidden=(8, 8), batch_size=8)}


@pytest.mark.parametrize("teacher", OTHERS)
def test_other_teachers_are_trained_and_selected_alike(teacher):
    teaching = finish(make(teacher=teacher, learner=OTHERS[teacher]))
    assert [(row["task"], row["iteration"]) for row in teaching.curve[:2]] == [(1, 10), (4, 10)]
    assert {"return", "critic_loss", "policy_loss"} <= set(teaching.curve[0])
    assert (teaching.best.kind, teaching.best.tasks) == (teacher, 2)
    for row in teaching.selected:
        assert row["return"] == max(point["return"] for point in teaching.curve if point["task"] == row["task"])


def test_every_kind_has_random_numbers_of_its_own():
    kinds = {"bcq": LEARNER, **OTHERS}
    made = [make(teacher=kind, learner=learner).learner.generator.get_state() for kind, learner in kinds.items()]
    assert len({tuple(state.tolist()) for state in made}) == 3


@pytest.mark.parametrize(("teacher", "learner"), [("bcq", LEARNER), *OTHERS.items()])
@pytest.mark.parametrize("rounds", [1, 2])
def test_a_resumed_training_is_one_that_never_stopped(rounds, teacher, learner, tmp_path):
    whole = make(teacher=teacher, learner=learner)
    for _ in range(rounds):
        whole.advance()
    state = through_disk(tmp_path, whole.state_dict())
    resumed = make(teacher=teacher, learner=learner)
    resumed.load_state_dict(state)
    assert not any(p.requires_grad for p in resumed.best.parameters())
    finish(whole)
    finish(resumed)
    assert_same_bits(whole.state_dict(), resumed.state_dict())
    assert whole.selected == resumed.selected


def test_a_state_of_the_very_beginning(tmp_path):
    resumed = make()
    resumed.load_state_dict(through_disk(tmp_path, make().state_dict()))
    assert_same_bits(finish(make()).state_dict(), finish(resumed).state_dict())


def test_the_seed_decides_every_bit():
    torch.manual_seed(1)
    first = finish(make()).state_dict()
    torch.manual_seed(2)
    assert_same_bits(first, finish(make()).state_dict())
    assert first["curve"] != finish(make(seed=1)).curve
