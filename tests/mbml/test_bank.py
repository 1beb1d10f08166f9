"""The likelihood teacher against a Gaussian density written out in float64, and what it plays."""

import math
from typing import Any

import pytest
import torch

from mbml.bank import BankConfig, BankLearner, LikelihoodEncoder, TeacherBank
from mbml.evidence import EvidenceConfig
from mbml.models import Ensemble, EnsembleConfig, Target
from mbml.policy import ContextAgent, ContextPolicy, PolicyError
from mbml.serialise import load_tree, save_tree
from mbml.teachers import TEACHERS
from tests.mbml.small_distill import K, teachers
from tests.mbml.toys import LAYOUT, assert_same_bits, forward, layers_of, random_rows, seeded

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
    encoder = LikelihoodEncoder(ensembles, LAYOUT, untold=2)
    encoder.fit(own)
    found = encoder.statistics(LAYOUT.context(rows))
    expected = torch.tensor([naive(ensembles, own, row) for row in rows])
    expected -= expected.amax(1, keepdim=True)
    torch.testing.assert_close(found[:, :-1], expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(found[:, -1], torch.ones(7))
    assert encoder.belief(found.sum(0)).mean.argmax() == expected.sum(0).argmax()
    nothing = encoder.statistics(LAYOUT.context(rows[:0])).sum(0)
    assert encoder.belief(nothing).mean.tolist() == [0.0, 0.0, 1.0, 0.0]
    assert encoder.weights(nothing).tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]
    odds = (expected.sum(0) - expected.sum(0).max()).exp()
    torch.testing.assert_close(encoder.weights(found.sum(0))[:-1], odds / odds.sum(), rtol=1e-2, atol=1e-4)
    assert encoder.weights(found.sum(0))[-1] == 0


def test_one_transition_unlike_any_logged_does_not_drown_what_is_seen_after_it():
    encoder = LikelihoodEncoder(models(dynamics=False), LAYOUT, untold=2)
    encoder.fit(random_rows(K, 5))
    context = LAYOUT.context(random_rows(1, 400, seed=3)[0])
    seen, wrong = encoder.statistics(context), context[:1].clone()
    wrong[:, -1] = 1e17
    odd = encoder.statistics(wrong)
    total = odd[0].clone()
    for one in seen:
        total += one
    gained = (total - odd)[0, :-1]
    torch.testing.assert_close(gained, seen.sum(0)[:-1], rtol=0, atol=len(seen) * 0.07)  # float32 at a million
    assert seen.sum(0)[:-1].min() < -100


def test_a_kind_of_teachers_without_a_name_is_refused():
    for config in (BankConfig, EvidenceConfig):
        with pytest.raises(ValueError, match="There is no teacher ''; choose one of"):
            config(teacher="")


def make_bank(kind, dynamics=False, every=20):
    encoder = LikelihoodEncoder(models(dynamics), LAYOUT, untold=1)
    encoder.fit(random_rows(K, 5))
    return TeacherBank.of(teachers(kind=kind), encoder, every)


def test_the_bank_acts_by_the_teacher_that_it_believes_in():
    bank = make_bank("td3_bc", every=0)
    observation = torch.randn(3, 3, generator=seeded(1))
    z = torch.eye(K)[[2, 0, 2]]
    everybody = bank.teachers.act(observation.expand(K, -1, -1), seeded())
    found = bank.act(observation, z, seeded())
    for n, teacher in enumerate((2, 0, 2)):
        assert torch.equal(found[n], everybody[teacher, n])
    agent = ContextAgent(bank, seeded(), tasks=3)  # nothing seen: the untold teacher
    torch.testing.assert_close(agent.act(observation), everybody[1])


def test_an_observation_that_no_action_follows_from_is_refused():
    agent = ContextAgent(make_bank("td3_bc"), seeded(), tasks=1)
    before = agent.state_dict()
    with pytest.raises(PolicyError, match=r"what follows from the observation \(1, 2\) holds .* not finite"):
        agent.act(torch.full((1, LAYOUT.observation_size), 3e38))
    assert_same_bits(agent.state_dict(), before)


@pytest.mark.parametrize("dynamics", [False, True])
@pytest.mark.parametrize("kind", TEACHERS)
def test_a_bank_that_was_saved_acts_and_believes_as_before(tmp_path, kind, dynamics):
    bank = make_bank(kind, dynamics)
    bank.save(tmp_path / "bank.safetensors")
    again = ContextPolicy.load(tmp_path / "bank.safetensors")
    assert isinstance(again, TeacherBank)
    assert (again.config, again.renewed_every, again.noise_shape) == (bank.config, 20, bank.noise_shape)
    assert_same_bits(bank.state_dict(), again.state_dict())
    observation, z = torch.randn(5, 3, generator=seeded(2)), torch.eye(K)[[0, 3, 2, 1, 1]]
    assert torch.equal(bank.act(observation, z, seeded(4)), again.act(observation, z, seeded(4)))
    context = LAYOUT.context(random_rows(2, 9, seed=5))
    assert_same_bits(bank.encoder.infer(context)._asdict(), again.encoder.infer(context)._asdict())


@pytest.mark.parametrize("kind", TEACHERS)
def test_given_the_noise_that_it_draws_a_bank_decides_as_it_acts(kind):
    bank = make_bank(kind)
    observation, z = torch.randn(5, 3, generator=seeded(2)), torch.eye(K)[[0, 3, 2, 1, 1]]
    noise = torch.randn(K, 5, *bank.noise_shape, generator=seeded(4))  # one draw for each teacher
    decided = torch.cat([bank.decide(observation[[n]], z[[n]], noise[z[n].argmax(), [n]]) for n in range(5)])
    torch.testing.assert_close(decided, bank.act(observation, z, seeded(4)))


def test_the_learner_s_one_update_finds_the_noise_and_its_bank_starts_with_the_blind_teacher():
    returns = torch.tensor([[1.0, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 2], [0, 0, 0, 0]])
    rows, made = random_rows(K, 40), models(True)
    learner = BankLearner(BankConfig(), LAYOUT, rows, teachers=teachers(), models=made, returns=returns)
    losses = learner.update()
    assert learner.policy.encoder.untold == 1
    columns: dict[Target, slice] = {"reward": slice(8, 9), "next_observation": slice(5, 8)}
    for target, column in columns.items():
        predicted = made[target].predict(LAYOUT.pair(rows)).mean(1)
        expected = (predicted - LAYOUT.context(rows)[..., column]).square().mean(1)
        torch.testing.assert_close(learner.policy.encoder.noise[target].data, expected)
        torch.testing.assert_close(losses[f"error_{target}"], expected.mean())


@pytest.mark.parametrize(
    ("path", "value"),
    [("untold", K), ("tasks", 2), ("renewed_every", -1), ("teachers.kind", "nobody"), ("teachers.acting_candidates", 0),
     ("teachers.critic", [3, 1]), ("models.reward.members", 1), ("models", {})],
)  # fmt: skip
def test_a_file_that_makes_no_bank_is_refused_in_one_sentence(tmp_path, path, value):
    make_bank("bcq").save(tmp_path / "bank.safetensors")
    tree = load_tree(tmp_path / "bank.safetensors")
    part, (*way, last) = tree["config"], path.split(".")
    for name in way:
        part = part[name]
    part[last] = value
    save_tree(tmp_path / "bank.safetensors", tree)
    with pytest.raises(PolicyError, match=r"bank\.safetensors is damaged and makes no bank policy: [^\n]+$"):
        ContextPolicy.load(tmp_path / "bank.safetensors")
