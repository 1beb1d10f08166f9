"""The likelihood teacher against a Gaussian density written out in float64, and what it plays."""

import math
from typing import Any

import pytest
import torch

from mbml.bank import LikelihoodEncoder, TeacherBank
from mbml.models import Ensemble, EnsembleConfig, Target
from mbml.policy import ContextAgent
from tests.mbml.small_distill import K, teachers
from tests.mbml.toys import LAYOUT, forward, layers_of, random_rows, seeded

E = 3


def models(dynamics: bool, hidden: tuple[int, ...] = (6, 6)) -> dict[Target, Ensemble]:
    config = EnsembleConfig(members=E, hidden=hidden)
    targets: list[Any] = ["reward", "next_observation"] if dynamics else ["reward"]
    made = {t: Ensemble(config, LAYOUT, K, t, seeded(n)) for n, t in enumerate(targets)}
    for ensemble in made.values():
        with torch.no_grad():
            ensemble.network.weights[-1].mul_(100)  # members as initialised are alike
    return made


def parts(row):
    found = LAYOUT.split(row)
    return torch.cat([found.observation, found.action]), {"reward": found.reward, "next_observation": found[2]}


def naive(ensembles, own, row):
    """Log-likelihood of one transition under each task's models, summed over what they predict."""
    totals = []
    for task in range(K):
        total = 0.0
        for target, ensemble in ensembles.items():
            members = [layers_of(ensemble.network, task * E + e) for e in range(E)]

            def predicted(pair, members=members):
                return torch.stack([forward(layers, pair) for layers in members])

            errors = []
            for seen in own[task]:
                pair, true = parts(seen)
                errors.append((predicted(pair).mean(0) - true[target].double()).square())
            noise = torch.stack(errors).mean(0)
            pair, true = parts(row)
            values = predicted(pair)
            variance = values.var(0, correction=0) + noise
            for d in range(values.shape[-1]):
                error = (values.mean(0)[d] - true[target].double()[d]).item()
                total -= 0.5 * (error**2 / variance[d].item() + math.log(2 * math.pi * variance[d].item()))
        totals.append(total)
    return totals


@pytest.mark.parametrize("hidden", [(6, 6), (6,)])
@pytest.mark.parametrize("dynamics", [False, True])
def test_statistics_are_gaussian_log_likelihoods_and_the_likeliest_task_is_believed(dynamics, hidden):
    ensembles, own, rows = models(dynamics, hidden), random_rows(K, 5), random_rows(1, 7, seed=3)[0]
    encoder = LikelihoodEncoder(ensembles, own, LAYOUT, untold=2)
    found = encoder.statistics(LAYOUT.context(rows))
    expected = torch.tensor([naive(ensembles, own, row) for row in rows])
    torch.testing.assert_close(found[:, :-1], expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(found[:, -1], torch.ones(7))
    assert encoder.belief(found.sum(0)).mean.argmax() == expected.sum(0).argmax()
    nothing = encoder.statistics(LAYOUT.context(rows[:0])).sum(0)
    assert encoder.belief(nothing).mean.tolist() == [0.0, 0.0, 1.0, 0.0]


def test_the_bank_acts_by_the_teacher_that_it_believes_in():
    bank = TeacherBank(teachers(kind="td3_bc"), LikelihoodEncoder(models(False), random_rows(K, 5), LAYOUT, 1), 0)
    observation = torch.randn(3, 3, generator=seeded(1))
    z = torch.eye(K)[[2, 0, 2]]
    everybody = bank.teachers.act(observation.expand(K, -1, -1), seeded())
    found = bank.act(observation, z, seeded())
    for n, teacher in enumerate((2, 0, 2)):
        assert torch.equal(found[n], everybody[teacher, n])
    agent = ContextAgent(bank, seeded(), tasks=3)  # nothing seen: the untold teacher
    torch.testing.assert_close(agent.act(observation), everybody[1])
