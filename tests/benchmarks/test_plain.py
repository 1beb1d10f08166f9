"""The learners against the plain loops of the benchmarks: they are right, and the clock compares like with like.

That a stack is its tasks alone is in tests/mbml/test_contract.py.
"""

import pytest
import torch

from benchmarks.ours.distillation import make_learner, plain_twin, unstacked
from benchmarks.plain.bcq import PlainBCQ
from benchmarks.plain.distill import PlainDistiller
from benchmarks.plain.ensembles import PlainEnsembles
from benchmarks.plain.sac import PlainSAC
from mbml.models import Ensemble, EnsembleConfig
from mbml.rows import RowLayout
from mbml.sac import SAC, SACConfig
from mbml.teachers.bcq import BCQ, BCQConfig
from tests.mbml.toys import random_rows, scatter, seeded

LAYOUT = RowLayout(5, 2)
UPDATES = 3
sizes = pytest.mark.parametrize("size", ["small", "measured"])
"""Small networks, and those of the table: the project's may take another way through large products."""


def copy_into(plain, network, member=0):
    plain.load_state_dict(unstacked(network, member).state_dict())


def same_weights(plain, network, member=0):
    for found, wanted in zip(unstacked(network, member).parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def agree(plain, ours):
    for name, value in plain.items():
        assert ours[name].mean().item() == pytest.approx(value.item(), rel=2e-4, abs=1e-6), name


@sizes
def test_soft_actor_critic(size):
    # One draw of sixteens is two of half the size: the plain loop draws twice.
    hidden, rows = ((16, 12), 24) if size == "small" else ((256, 256), 256)
    ours = SAC(SACConfig(policy_hidden=hidden, critic_hidden=hidden), LAYOUT, 1, seeded(1))
    scatter(ours.target_critics)
    with torch.no_grad():  # as initialised, all states look alike to the policy
        ours.policy.weights[-1].mul_(500)
    plain = PlainSAC(5, 2, list(hidden), seeded())
    pairs = [(plain.policy, ours.policy, 0)]
    for member in range(2):
        pairs += [(plain.critics[member], ours.critics, member), (plain.targets[member], ours.target_critics, member)]
    for pair in pairs:
        copy_into(*pair)
    plain.generator.set_state(ours.generator.get_state())
    for batch in random_rows(1, UPDATES * rows, LAYOUT).split(rows, dim=1):
        agree(plain.update(batch[0]), ours.update(batch))
    assert plain.log_alpha.item() == pytest.approx(ours.log_alpha.item(), rel=1e-4)
    assert plain.log_alpha.item() != 0
    for pair in pairs:
        same_weights(*pair)


@sizes
def test_bcq(size):
    config = BCQConfig(hidden=(16, 12), vae_hidden=(14, 14), target_candidates=3) if size == "small" else BCQConfig()
    ours = BCQ(config, LAYOUT, 1, seeded(1))
    scatter(ours.target_perturbation, ours.target_critics)
    plain = PlainBCQ(5, 2, list(config.hidden), list(config.vae_hidden), config.target_candidates, seeded())
    pairs = [(plain.actor, ours.perturbation, 0), (plain.target_actor, ours.target_perturbation, 0)]
    pairs += [(plain.encoder, ours.encoder, 0), (plain.decoder, ours.decoder, 0)]
    for member in range(2):
        pairs += [(plain.critics[member], ours.critics, member)]
        pairs += [(plain.target_critics[member], ours.target_critics, member)]
    for pair in pairs:
        copy_into(*pair)
    plain.generator.set_state(ours.generator.get_state())
    for batch in random_rows(1, UPDATES * 100, LAYOUT).split(100, dim=1):
        agree(plain.update(batch[0]), ours.update(batch))
    for pair in pairs:
        same_weights(*pair)


@sizes
def test_ensembles(size):
    config, tasks = (EnsembleConfig(members=3, hidden=(8,)), 2) if size == "small" else (EnsembleConfig(), 10)
    members = config.members
    ours = Ensemble(config, LAYOUT, tasks, "reward", seeded(1))
    plain = PlainEnsembles(5, 2, list(config.hidden), tasks, members)
    for task in range(tasks):
        for member in range(members):
            copy_into(plain.members[task][member], ours.network, task * members + member)
    for batch in random_rows(tasks, UPDATES * 128, LAYOUT).split(128, dim=1):
        expected = ours.update(batch)["loss"]
        assert torch.allclose(plain.update(batch), expected, rtol=1e-4)


@pytest.mark.parametrize(("width", "depths", "eligible"), [(16, [2, 1, 2], 0.01), (256, [3, 3, 3], 0.5)])
def test_distillation(width, depths, eligible):
    """Also where many pairs have no eligible transition."""
    ours = make_learner(5, 2, width=width, depths=depths, tasks=4, rows=300, eligible=eligible)
    with torch.no_grad():  # as initialised all contexts look alike
        ours.student.encoder.body.weights[-1].mul_(100)
    plain = plain_twin(ours)
    assert isinstance(plain, PlainDistiller)
    for _ in range(UPDATES):
        expected = ours.update()
        found = plain.update()
        agree(found, expected)
        assert found["loss_triplet"].item() != pytest.approx(2.0, abs=1e-3)
