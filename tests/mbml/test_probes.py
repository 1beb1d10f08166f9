"""Probes on encoders built by hand, of which the answer is known."""

import numpy as np
import pytest
import torch

from mbml import envs
from mbml.encoders import Belief
from mbml.evaluate import EvaluateConfig, Evaluation, make_envs
from mbml.policy import ContextAgent
from mbml.probes import (
    SWAPS,
    identification,
    known_tasks,
    nearest_known,
    own_posteriors,
    returns_under,
    reward_swap,
    swapped_returns,
)
from mbml.seeding import generator_of, seed_of
from mbml.settings import changed
from mbml.students import GenerativeStudent
from tests.mbml.small_distill import teachers
from tests.mbml.toys import LAYOUT, UMAZE, layers_of, naive_kl, naive_posterior, random_rows, seeded, small_student

K, P = 4, 200


def reader(column, layout=LAYOUT, kind="product"):
    """A student whose embedding is the mean of one column of the context, with unit variance per transition.

    A mean of bounded embeddings has no variance, and a fiftieth of the column beside two constants: what it normalises
    and bounds still says how large the column is.
    """
    config = changed(small_student(1 if kind == "product" else 3, (2,)), {"encoder.kind": kind})
    student = GenerativeStudent(config, layout, seeded())
    body = student.encoder.body
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.zero_()
        body.weights[0][0, column] = torch.tensor([1.0, -1.0])
        body.weights[1][0, :, 0] = torch.tensor([1.0, -1.0]) * (1.0 if kind == "product" else 0.02)
        body.biases[1][0, 0, 1:] = 0.5413 if kind == "product" else torch.tensor([0.4, -0.4])
    return student


def world():
    """Task j is at s = 10 j and pays 10 i to task i."""
    rows = random_rows(K, P)
    rows[..., 0] += 10 * torch.arange(K).unsqueeze(1)
    truth = torch.randn(K, K, P, generator=seeded(1)) + 10 * torch.arange(K).view(K, 1, 1)
    everyone = torch.arange(K)
    rows[..., -2] = truth[everyone, everyone]
    return rows, truth


@pytest.mark.parametrize("kind", ["product", "mean"])
@pytest.mark.parametrize(("column", "winner"), [(-1, "follows_reward"), (0, "follows_state_action")])
def test_reward_swap_of_encoders_that_read_one_column(column, winner, kind):
    rows, truth = world()
    found = reward_swap(reader(column, kind=kind), rows, truth, seeded(), size=32, repeats=2)
    shares = {name: found[name] for name in ("follows_reward", "follows_state_action", "other")}
    assert shares == {name: float(name == winner) for name in shares}
    assert found["own_identified"] == 1.0
    assert found["pairs"] == K * (K - 1)


def test_reward_swap_of_an_encoder_that_reads_something_else():
    rows, truth = world()
    rows[..., 3] = 10 * torch.arange(K).roll(0).unsqueeze(1)  # an action column, the same signal as the state
    assert reward_swap(reader(3), rows, truth, seeded(), size=32)["follows_state_action"] == 1.0
    rows[..., 3] = 0
    found = reward_swap(reader(3), rows, truth, seeded(), size=32)  # every context looks the same
    assert found["own_identified"] == pytest.approx(1 / K)
    assert found["follows_reward"] + found["follows_state_action"] + found["other"] == pytest.approx(1.0)


def test_own_posteriors():
    rows, _ = world()
    student = reader(-1)
    q = own_posteriors(student, rows, 6, 3, seeded(2))
    assert q.mean.shape == (K, 3, 1)
    indices = torch.randint(P, (K, 18), generator=seeded(2))
    for j in range(K):
        for n in range(3):
            chosen = [LAYOUT.context(rows[j, t]) for t in indices[j, n * 6 : (n + 1) * 6]]
            expected = naive_posterior(layers_of(student.encoder.body), chosen, 1)
            torch.testing.assert_close(q.mean[j, n].double(), expected.mean, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(q.variance[j, n].double(), expected.variance, rtol=1e-4, atol=1e-6)


def test_known_tasks_and_the_nearest_of_them():
    rows, _ = world()
    known = known_tasks(reader(-1), rows, 50, seeded())
    assert known.mean.shape == (K, 1)
    assert known.mean.squeeze(1).tolist() == pytest.approx([0, 10, 20, 30], abs=1)
    generator = seeded(5)
    contexts = Belief(torch.randn(3, 2, 4, generator=generator), torch.rand(3, 2, 4, generator=generator) + 0.1)
    others = Belief(torch.randn(5, 4, generator=generator), torch.rand(5, 4, generator=generator) + 0.1)
    found = nearest_known(reader(-1).encoder, contexts, others)
    for i in range(3):
        for j in range(2):
            own = Belief(contexts.mean[i, j], contexts.variance[i, j])
            distances = [naive_kl(own, Belief(others.mean[k], others.variance[k])) for k in range(5)]
            assert found[i, j] == int(torch.stack(distances).argmin())


def test_identification_from_own_rollouts():
    """In the maze the mean reward of a rollout that stays near the start tells the goals apart."""
    distribution = envs.get("umaze_goal")
    tasks = [distribution.tasks("train")[i] for i in (1, 5, 3)]
    horizon = 20
    evaluation = Evaluation(distribution, tasks, horizon, EvaluateConfig(episodes=3, repeats=2), 0)
    policy = reader(-1, UMAZE)
    # What it will see in each task, from rollouts of its own.
    rewards = []
    for task in tasks:
        stack = make_envs(distribution, [task], horizon)
        stack.seed([0])
        agent = ContextAgent(policy, seeded())
        total = sum(stack.step(agent.act(stack.observation)).reward.item() for _ in range(horizon))
        rewards.append([total / horizon])
    known = Belief(torch.tensor(rewards), torch.full((3, 1), 1e-4))
    assert identification(policy, known, evaluation) == [1.0, 1.0, 1.0]
    swapped = Belief(known.mean[[1, 0, 2]], known.variance)
    assert identification(policy, swapped, evaluation) == pytest.approx([1 / 3] * 3)


def test_returns_under_given_contexts():
    distribution = envs.get("umaze_goal")
    tasks = list(distribution.tasks("test")[:3])
    policy = GenerativeStudent(small_student(), UMAZE, seeded())
    with torch.no_grad():
        for network in (policy.encoder.body, policy.value_network, policy.decoder, policy.perturbation):
            network.weights[-1].mul_(200)
    contexts = UMAZE.context(random_rows(3, 5, UMAZE))
    found = returns_under(policy, contexts, Evaluation(distribution, tasks, 15, EvaluateConfig(repeats=2), 9))
    generator = generator_of(9, "contexts", "policy")
    beliefs = [naive_posterior(layers_of(policy.encoder.body), list(contexts[i]), 3) for i in range(3)]
    noise = torch.randn(6, 3, generator=generator)
    z = torch.stack([beliefs[i // 2].mean + beliefs[i // 2].variance.sqrt() * noise[i] for i in range(6)]).float()
    stack = make_envs(distribution, tasks, 15, 2)
    stack.seed([seed_of(9, "contexts", "test", t.index, r) for t in tasks for r in range(2)])
    stack.reset()
    total = np.zeros(6)
    for _ in range(15):
        total += stack.step(policy.act(stack.observation, z, generator)).reward.numpy()
    np.testing.assert_allclose(found, total.reshape(3, 2).mean(1), rtol=1e-3)
    assert len(set(found.round(4))) == 3


@pytest.mark.parametrize("kind", ["bcq", "td3_bc"])
def test_returns_with_networks_of_the_teachers_in_place_of_the_student_s(kind):
    train = envs.get("umaze_goal").tasks("train")[:2]
    evaluation = Evaluation(envs.get("umaze_goal"), train, 12, EvaluateConfig(repeats=2), seed=3)
    contexts = UMAZE.context(random_rows(2, 9, UMAZE))
    bank = teachers(UMAZE, tasks=2, kind=kind)

    def played(student, teachers):
        return swapped_returns(student, teachers, contexts, evaluation)

    def loud(seed):
        made = GenerativeStudent(small_student(), UMAZE, seeded(seed))
        with torch.no_grad():  # as initialised all networks are nearly zero
            for network in (made.value_network, made.decoder, made.perturbation):
                network.weights[-1].mul_(300)
        return made

    found, again = played(loud(1), bank), played(loud(1), bank)
    other_student, other_teachers = played(loud(2), bank), played(loud(1), bank.select([1, 0]))
    assert found.keys() == SWAPS.keys()
    for name, returns in found.items():
        assert returns.shape == (2,)
        np.testing.assert_array_equal(returns, again[name])
        assert np.array_equal(returns, other_student[name]) == (name == "all"), name
        silent = name == "none" or (kind == "td3_bc" and name == "perturbation")  # such teachers perturb nothing
        assert np.array_equal(returns, other_teachers[name]) == silent, name
