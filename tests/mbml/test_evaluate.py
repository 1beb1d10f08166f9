"""The evaluation protocol against one written for a single task with plain loops, and who owns its random numbers."""

from itertools import islice

import numpy as np
import pytest
import torch

from mbml import envs
from mbml.baselines.batch_pearl import BatchPEARLConfig, PEARLPolicy
from mbml.encoders import EncoderConfig
from mbml.evaluate import (
    EvaluateConfig,
    Evaluation,
    best_of,
    counted_score,
    evaluate_last_trajectory,
    evaluate_simple_references,
    evaluate_student,
    evaluate_teachers,
    make_envs,
    nearest_tasks,
    trace_behaviour,
)
from mbml.policy import ContextAgent
from mbml.rollout import run_episode
from mbml.rows import RowLayout
from mbml.seeding import generator_of, seed_of
from mbml.students import GenerativeStudent
from mbml.teachers.bcq import BCQ, BCQConfig
from tests.mbml.small_distill import make_learner
from tests.mbml.toys import UMAZE, assert_same_bits, layers_of, naive_posterior, seeded, small_student, snapshot

Z = 3
HORIZON = {"umaze_goal": 12, "walker_param": 60}
CONFIG = EvaluateConfig()


def make_student(name, seed=0):
    distribution = envs.get(name)
    layout = RowLayout(distribution.observation_size, distribution.action_size)
    student = GenerativeStudent(small_student(), layout, seeded(seed))
    with torch.no_grad():
        for network in (student.encoder.body, student.value_network, student.decoder, student.perturbation):
            network.weights[-1].mul_(200)
    return student


def make_pearl(name):
    distribution = envs.get(name)
    layout = RowLayout(distribution.observation_size, distribution.action_size)
    pearl = PEARLPolicy(BatchPEARLConfig(EncoderConfig("product", (8, 8), Z), (8, 8)), layout, seeded(4))
    with torch.no_grad():
        for network in (pearl.encoder.body, pearl.actor):
            network.weights[-1].mul_(200)
    return pearl


def naive_protocol(policy, name, task, seed, over_after):
    """Episodes of one task until `over_after(lengths)`; their returns and lengths, and the posterior after the last."""
    env = envs.get(name).environment(task, HORIZON[name])
    env.reset(seed=seed_of(seed, "evaluate", task.split, task.index, 0))
    generator = generator_of(seed, "evaluate", "policy")
    mean, variance = torch.zeros(Z), torch.ones(Z)  # the prior
    transitions, returns, lengths = [], [], []
    while not over_after(lengths):
        z = mean + variance.sqrt() * torch.randn(1, Z, generator=generator)[0]
        s, _ = env.reset()
        total, length, over = 0.0, 0, False
        while not over:
            s_tensor = torch.from_numpy(s.copy())
            a = policy.act(s_tensor.unsqueeze(0), z.unsqueeze(0), generator)[0]
            s, r, terminated, truncated, _ = env.step(a.numpy())
            transitions.append(torch.cat([s_tensor, a, torch.from_numpy(s.copy()), torch.tensor([r]).float()]))
            total, length, over = total + r, length + 1, terminated or truncated
        q = naive_posterior(layers_of(policy.encoder.body), transitions, Z)
        mean, variance = q.mean.float(), q.variance.float()
        returns.append(total)
        lengths.append(length)
    return returns, lengths, mean


@pytest.mark.parametrize("name", HORIZON)
def test_the_protocol_of_one_task(name):
    student = make_student(name)
    distribution = envs.get(name)
    task = distribution.tasks("test")[2]
    returns, lengths, mean = naive_protocol(student, name, task, 3, lambda lengths: len(lengths) == 5)
    if name == "walker_param":
        assert max(lengths) < HORIZON[name]  # all of them end early
    scores = evaluate_student(student, Evaluation(distribution, [task], HORIZON[name], CONFIG, 3))
    assert scores.returns.shape == (1, 1, 5)
    np.testing.assert_allclose(scores.returns[0, 0], returns, rtol=2e-3)
    np.testing.assert_allclose(scores.posterior_mean[0], mean.detach(), rtol=1e-2, atol=1e-3)
    assert counted_score(scores.returns, CONFIG)[0] == pytest.approx(np.mean(returns[2:]), rel=2e-3)


def test_walkers_that_end_early_add_nothing_after_their_end():
    """Side by side some wait for others; each one's posterior holds its own steps only."""
    student, distribution = make_student("walker_param"), envs.get("walker_param")
    tasks = distribution.tasks("test")[:3]
    with torch.no_grad():
        # Every transition is one unit of precision: the posterior counts them.
        student.encoder.body.weights[-1].zero_()
        student.encoder.body.biases[-1][..., :Z] = 1.0
        student.encoder.body.biases[-1][..., Z:] = 0.5413  # softplus = 1
    stack = make_envs(distribution, tasks, 60)
    policy, lengths = ContextAgent(student, seeded(), tasks=3), torch.zeros(3)
    stack.seed([1, 2, 3])

    def observe(observation, action, step, active):
        lengths.add_(active)
        policy.observe(observation, action, step.next_observation, step.reward, active)

    run_episode(stack, policy.act, observe)
    assert len(set(lengths.tolist())) > 1
    torch.testing.assert_close(1 / policy.belief().variance[:, 0], lengths, rtol=1e-3, atol=0)


@pytest.mark.parametrize("make", [make_student, make_pearl])
def test_the_last_trajectory_of_one_task_that_can_end_early(make):
    name, budget = "walker_param", 5 * HORIZON["walker_param"]
    policy, distribution = make(name), envs.get(name)
    task = distribution.tasks("test")[2]
    returns, lengths, _ = naive_protocol(policy, name, task, 3, lambda lengths: sum(lengths) >= budget)
    assert len(lengths) > 5
    assert sum(lengths[:-1]) < budget
    score = evaluate_last_trajectory(policy, Evaluation(distribution, [task], HORIZON[name], CONFIG, 3))
    assert score.shape == (1,)
    assert score[0] == pytest.approx(returns[-1], rel=2e-3)


@pytest.mark.parametrize("make", [make_student, make_pearl])
def test_where_nothing_terminates_the_last_trajectory_is_the_last_episode(make):
    name, config = "umaze_goal", EvaluateConfig(repeats=2)
    policy, distribution = make(name), envs.get(name)
    evaluation, heard = Evaluation(distribution, distribution.tasks("test")[:3], 12, config, 0), []
    score = evaluate_last_trajectory(policy, evaluation)
    returns = evaluate_student(policy, evaluation, heard.append).returns
    assert np.array_equal(score, returns[:, :, -1].mean(1))
    assert heard == [1, 2, 3, 4, 5]


def test_behaviour_is_what_the_protocol_s_own_agent_does():
    """The maze shows where the point is, and its reward follows from that."""
    student, family = make_student("umaze_goal"), envs.get("umaze_goal")
    evaluation = Evaluation(family, family.tasks("test")[:2], 12, EvaluateConfig(repeats=2), 3)
    shown = trace_behaviour(student, evaluation)
    returns = list(islice(evaluation.play(evaluation.stranger(student), envs=evaluation.envs("trace")), 5))
    assert [len(episodes) for episodes in shown] == [5, 5]
    for place, (task, episodes) in enumerate(zip(evaluation.tasks, shown, strict=True)):
        for path, earned in zip(episodes, returns, strict=True):
            assert path.shape == (12, 2)
            rewards = np.exp(-np.linalg.norm(path - task.parameter, axis=1))
            assert rewards.sum() == pytest.approx(earned[2 * place], rel=1e-6)


def test_tasks_that_have_spent_their_steps_wait_for_the_others():
    """The policy is deaf to z, so that every task must score as if it were alone."""
    name, budget = "walker_param", 5 * HORIZON["walker_param"]
    policy, distribution = make_pearl(name), envs.get(name)
    with torch.no_grad():
        policy.actor.weights[0][:, -Z:] = 0
    tasks = distribution.tasks("test")[:3]
    alone = [naive_protocol(policy, name, t, 3, lambda lengths: sum(lengths) >= budget) for t in tasks]
    assert len({len(lengths) for _, lengths, _ in alone}) > 1
    evaluation = Evaluation(distribution, tasks, HORIZON[name], CONFIG, 3)
    score = evaluate_last_trajectory(policy, evaluation)
    np.testing.assert_allclose(score, [returns[-1] for returns, *_ in alone], rtol=2e-3)
    rounds = list(evaluation.play(evaluation.stranger(policy), budget))
    assert len(rounds) == max(len(lengths) for _, lengths, _ in alone)
    for number, played in enumerate(rounds):
        expected = [returns[min(number, len(returns) - 1)] for returns, *_ in alone]
        np.testing.assert_allclose(played, expected, rtol=2e-3)


def test_repeats_and_tasks_keep_their_places():
    name = "umaze_goal"
    student, distribution = make_student(name), envs.get(name)
    tasks = distribution.tasks("test")[:3]
    config = EvaluateConfig(repeats=2)
    scores = evaluate_student(student, Evaluation(distribution, tasks, 12, config, 0))
    assert scores.returns.shape == (3, 2, 5)
    assert scores.posterior_mean.shape == (3, Z)
    expected = [np.mean([scores.returns[n, r, e] for r in range(2) for e in (2, 3, 4)]) for n in range(3)]
    np.testing.assert_allclose(counted_score(scores.returns, config), expected)
    # Zero action drifts little: the tasks differ by their goals more than by anything random.
    still = evaluate_simple_references(Evaluation(distribution, tasks, 12, CONFIG, 0))["zero_action"]
    assert np.array_equal(np.argsort(still), np.argsort(scores.returns.mean((1, 2))))


def test_the_seed_decides_every_bit_and_nothing_else_does():
    name = "umaze_goal"
    student, distribution = make_student(name), envs.get(name)
    before = snapshot(student.state_dict())
    tasks = distribution.tasks("test")[:2]
    torch.manual_seed(1)
    first = evaluate_student(student, Evaluation(distribution, tasks, 12, CONFIG, 0))
    torch.manual_seed(2)
    again = evaluate_student(student, Evaluation(distribution, tasks, 12, CONFIG, 0))
    assert np.array_equal(first.returns, again.returns)
    other = evaluate_student(student, Evaluation(distribution, tasks, 12, CONFIG, 1))
    assert not np.array_equal(first.returns, other.returns)
    assert_same_bits(before, student.state_dict())


def test_a_task_starts_alike_whichever_tasks_are_evaluated_with_it():
    distribution = envs.get("umaze_goal")
    tasks = distribution.tasks("test")
    few = evaluate_simple_references(Evaluation(distribution, tasks[1:2], 12, CONFIG, 0))["zero_action"]
    many = evaluate_simple_references(Evaluation(distribution, tasks[:3], 12, CONFIG, 0))["zero_action"]
    assert few[0] == many[1]


def test_evaluating_changes_nothing_about_training():
    trained, evaluated = make_learner(layout=UMAZE), make_learner(layout=UMAZE)
    distribution = envs.get("umaze_goal")
    for step in range(3):
        trained.update()
        evaluated.update()
        tasks = distribution.tasks("test")[: step + 1]
        evaluate_student(evaluated.student, Evaluation(distribution, tasks, 5, EvaluateConfig(repeats=step + 1), step))
    assert_same_bits(trained.state_dict(), evaluated.state_dict())


def test_references_are_what_they_say():
    distribution = envs.get("umaze_goal")
    tasks = distribution.tasks("test")[:2]
    config = EvaluateConfig(reference_episodes=3)
    found = evaluate_simple_references(Evaluation(distribution, tasks, 12, config, 0))
    for i, task in enumerate(tasks):
        env = distribution.environment(task, 12)
        env.reset(seed=seed_of(0, "references", task.split, task.index))
        totals = []
        for _ in range(3):
            env.reset()
            totals.append(sum(env.step(np.zeros(2))[1] for _ in range(12)))
        assert found["zero_action"][i] == pytest.approx(np.mean(totals), rel=1e-5)
    assert found["random"].shape == (2,)
    assert not np.array_equal(found["random"], found["zero_action"])


def test_every_teacher_meets_every_task():
    distribution = envs.get("umaze_goal")
    tasks = distribution.tasks("test")[:3]
    bcq = BCQ(BCQConfig(hidden=(6, 6), vae_hidden=(6, 6)), RowLayout(4, 2), 2, seeded())
    with torch.no_grad():  # teacher 0 always pushes to the lower left, teacher 1 to the upper right
        bcq.decoder.weights[-1].zero_()
        bcq.decoder.biases[-1].copy_(torch.tensor([-9.0, 9.0]).view(2, 1, 1))
    config = EvaluateConfig(reference_episodes=2)
    table = evaluate_teachers(bcq.teachers(), Evaluation(distribution, tasks, 20, config, 0))
    assert table.shape == (2, 3, 2)
    for k, push in enumerate((-1.0, 1.0)):
        for n, task in enumerate(tasks):
            env = distribution.environment(task, 20)
            env.reset(seed=seed_of(0, "references", task.split, task.index, k))
            totals = []
            for _ in range(2):
                env.reset()
                totals.append(sum(env.step(np.full(2, push))[1] for _ in range(20)))
            assert table[k, n] == pytest.approx(totals, rel=0.1)


def test_luck_does_not_make_a_best_teacher():
    """Of teachers that are all alike the best one by the mean of all episodes would seem better than they are."""
    noise = np.random.default_rng(0).normal(size=(20, 4_000, 3))
    assert noise.mean(-1).max(0).mean() > 1.0
    assert abs(best_of(noise).mean()) < 0.05
    for n in range(5):  # episodes 1 and 3 choose and 2 scores, then the other way round
        odd, even = noise[:, n, [0, 2]].mean(1), noise[:, n, 1]
        assert best_of(noise[:, : n + 1])[n] == pytest.approx((even[odd.argmax()] + odd[even.argmax()]) / 2)


def test_nearest_tasks():
    distribution = envs.get("umaze_goal")
    train, test = distribution.tasks("train"), distribution.tasks("test")
    assert nearest_tasks(distribution, train, train).tolist() == list(range(10))
    for found, task in zip(nearest_tasks(distribution, test, train), test, strict=True):
        distances = [sum((a - b) ** 2 for a, b in zip(task.vector, known.vector, strict=True)) for known in train]
        assert found == distances.index(min(distances))
