"""The learner of the evidence against a step written row by row in float64, and against what it is for."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from mbml.encoders import EncoderConfig, Mixture, through
from mbml.evidence import EvidenceConfig, EvidenceLearner, evidence_loss
from mbml.policy import ContextAgent
from mbml.relabel import RelabelTables
from mbml.rows import RowLayout
from mbml.settings import changed
from mbml.students import GenerativeStudent, LedStudent, make_student
from mbml.teachers import TEACHERS
from tests.mbml.meta import MetaGenerator
from tests.mbml.small_distill import STUDENT, B, K, M, N, Z, make_tables, teachers
from tests.mbml.toys import (
    LAYOUT,
    assert_same_bits,
    clone,
    forward,
    layers_of,
    random_rows,
    seeded,
    small_student,
    trainable,
)

SMALL = EvidenceConfig(student=STUDENT, batch_size=B, context_size=M, own_share=0.4, learning_rate=1e-3)
RETURNS = torch.rand(K, K, generator=seeded(6))


def make_evidence(seed: Any = 0, tables: Any = None, teacher: Any = "bcq", **changes: Any) -> Any:
    needed = {"teachers": teachers(kind=teacher), "tables": tables or make_tables(), "returns": RETURNS}
    config = changed(SMALL, changes)
    return EvidenceLearner(config, LAYOUT, random_rows(K, N), seeded(seed), seeded(1_000 + seed), **needed)


class NaiveStep:
    """One step; draws from copies of the learner's generators in its order."""

    def __init__(self, learner, own_teachers):
        self.config, self.rows, self.tables = learner.config, learner.rows, learner.tables
        self.batches, self.contexts = clone(learner.generator), clone(learner.context_generator)
        student = learner.student
        assert isinstance(student, GenerativeStudent)
        assert isinstance(student.encoder, Mixture)
        self.networks = {
            "encoder": layers_of(student.encoder.body),
            "value": layers_of(student.value_network),
            "decoder": layers_of(student.decoder),
            "perturbation": layers_of(student.perturbation),
        }
        for layers in self.networks.values():
            trainable(layers)
        self.embeddings = student.encoder.embeddings.detach().double().requires_grad_()
        self.teachers = {n: [layers_of(net, i) for i in range(K)] for n, net in own_teachers.networks().items()}
        self.losses = {}

    def run(self):
        guides = [RETURNS[:, i].argmax().item() if self.config.guide == "best" else i for i in range(K)]
        guides.append(int(torch.stack([RETURNS[j].mean() for j in range(K)]).argmax()))
        own = torch.randint(N, (K, B), generator=self.batches)
        drawn = [self.rows[k, own[k, b]] for k in range(K) for b in range(B)]
        foreign = round(self.config.foreign_share * B)
        chosen = torch.randint(K * B, (K, foreign), generator=self.batches)
        untold = torch.randint(K * B, (1, B), generator=self.batches)
        batches = [drawn[k * B + foreign : (k + 1) * B] + [drawn[n] for n in chosen[k]] for k in range(K)]
        self.distill([*batches, [drawn[n] for n in untold[0]]], guides)
        self.evidence()
        return self

    def distill(self, batches, guides):
        latents = torch.randn(K + 1, B, 4, generator=self.batches).clamp(-0.5, 0.5).double()
        q = g = xi = 0.0
        for k, (batch, guide) in enumerate(zip(batches, guides, strict=True)):
            z = self.embeddings[k]
            for b, row in enumerate(batch):
                parts = LAYOUT.split(row)
                s, a, nu, fixed = parts.observation, parts.action, latents[k, b], z.detach()
                tq = forward(self.teachers["critic"][guide], s, a)
                tc = torch.tanh(forward(self.teachers["decoder"][guide], s, nu))
                tp = torch.tanh(forward(self.teachers["perturbation"][guide], s, tc))
                q = q + (forward(self.networks["value"], s, a, z) - tq).square().sum()
                g = g + (torch.tanh(forward(self.networks["decoder"], s, nu, fixed)) - tc).square().mean()
                xi = xi + (torch.tanh(forward(self.networks["perturbation"], s, tc, fixed)) - tp).square().mean()
        number = (K + 1) * B
        self.losses |= {"loss_q": q / number, "loss_g": g / number, "loss_xi": xi / number}

    def evidence(self):
        pool, tables = self.tables.reward.shape[-1], self.tables
        place = torch.randint(pool, (K, M), generator=self.contexts)
        other = torch.randint(K - 1, (K, M), generator=self.contexts)
        own, terms = round(self.config.own_share * M), []
        for j in range(K):
            for m in range(M):
                t, i = place[j, m], j if m < own else [n for n in range(K) if n != j][other[j, m]]
                context = LAYOUT.context(self.rows[j, tables.index[j, t]]).clone()
                if i != j:
                    context[-1] = tables.reward[i, j, t]
                    if tables.next_observation is not None:
                        context[5:8] = tables.next_observation[i, j, t]
                if i == j or tables.eligible[i, j, t]:
                    logits = forward(self.networks["encoder"], context)
                    terms.append(torch.logsumexp(logits, 0) - logits[i])
        self.losses["loss_evidence"] = sum(terms) / len(terms)
        self.losses["labelled_share"] = torch.tensor(len(terms) / (K * M))


CASES = {
    "reward": {},
    "dynamics": {"tables": make_tables(dynamics=True)},
    "pooled": {"tables": make_tables(pool=8)},
    "scarce": {"tables": make_tables(eligible=0.05)},
    "best": {"guide": "best"},
    "foreign": {"foreign_share": 0.5},
    "equal odds": {"own_share": 0.0},
}


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_of_a_step(case):
    learner = make_evidence(**CASES[case])
    naive = NaiveStep(learner, teachers()).run()
    found = learner.update()
    assert set(found) == set(naive.losses)
    for name, value in naive.losses.items():
        assert found[name].item() == pytest.approx(value.item(), rel=2e-4, abs=1e-6), name
    student = learner.student
    sources = {
        "loss_evidence": (student.encoder.body, naive.networks["encoder"]),
        "loss_q": (student.value_network, naive.networks["value"]),
        "loss_g": (student.decoder, naive.networks["decoder"]),
        "loss_xi": (student.perturbation, naive.networks["perturbation"]),
    }
    for name, (network, layers) in sources.items():
        parameters = [p for pair in layers for p in pair]
        wanted = torch.autograd.grad(naive.losses[name], parameters, retain_graph=True)
        found_pairs = zip(network.weights, network.biases, strict=True)
        for p, gradient in zip([p for pair in found_pairs for p in pair], wanted, strict=True):
            scale = gradient.abs().max().item() + 1e-8
            torch.testing.assert_close(p.grad.double().view_as(gradient), gradient, rtol=1e-3, atol=1e-4 * scale)
    (wanted,) = torch.autograd.grad(naive.losses["loss_q"], [naive.embeddings])
    torch.testing.assert_close(student.encoder.embeddings.grad.double(), wanted, rtol=1e-3, atol=1e-6)


def test_nothing_eligible_is_learned_from_own_transitions_alone():
    learner = make_evidence(tables=replace(make_tables(), eligible=torch.zeros(K, K, N, dtype=torch.bool)))
    assert learner.update()["labelled_share"] == pytest.approx(round(0.4 * M) / M)
    everything = make_evidence(tables=learner.tables, own_share=0.0).update()
    assert everything["loss_evidence"] == 0.0
    assert everything["labelled_share"] == 0.0


def test_the_encoder_has_an_anchor_for_each_task_whatever_its_configuration_says():
    learner = make_evidence(**{"student.encoder.kind": "mean"})
    assert isinstance(learner.student.encoder, Mixture)
    assert learner.student.encoder.embeddings.shape == (K + 1, Z)


def test_standardisation_is_fitted_to_everybody_s_rows():
    learner = make_evidence(**{"student.standardised": True, "student.encoder.standardised": True})
    rows = learner.rows.flatten(0, 1)
    torch.testing.assert_close(learner.student.seen.shift, rows[:, :3].mean(0))
    torch.testing.assert_close(learner.student.encoder.scale.scale[5:8], (rows[:, 5:8] - rows[:, :3]).std(0))


def test_the_evidence_follows_the_rewards_and_not_where_they_were_seen():
    """Tasks whose states and rewards differ; the states of one with the rewards of another are the other's."""
    layout, generator = RowLayout(1, 1), seeded(3)
    observation = torch.randn(3, 400, 1, generator=generator) + 2.0 * torch.arange(3).view(-1, 1, 1)
    action = torch.rand(3, 400, 1, generator=generator) * 2 - 1
    goals = torch.tensor([-1.0, 0.0, 1.0]).view(-1, 1, 1)
    truth = -(action.squeeze(-1) - goals).abs()  # [label, source, row]
    own = torch.stack([truth[k, k] for k in range(3)]).unsqueeze(-1)
    rows = torch.cat([observation, action, observation, own, torch.zeros(3, 400, 1)], -1)
    eligible = ~torch.eye(3, dtype=torch.bool).unsqueeze(-1).expand(-1, -1, 400)
    tables = RelabelTables(torch.arange(400).expand(3, -1), truth, eligible.clone())
    student = replace(small_student(), encoder=EncoderConfig(hidden=(32, 32), embedding_size=3, standardised=True))
    config = EvidenceConfig(student=student, batch_size=4, context_size=64, own_share=0.34, learning_rate=3e-3)
    needed = {"teachers": teachers(layout, tasks=3), "tables": tables, "returns": torch.eye(3)}
    learner: Any = EvidenceLearner(config, layout, rows, seeded(0), seeded(1), **needed)
    for _ in range(400):
        learner.update()
    encoder = learner.student.encoder
    for source in range(3):
        for label in range(3):
            context = layout.context(rows[source, :30]).clone()
            context[:, -1] = truth[label, source, :30]
            weights = encoder.weights(encoder.statistics(context).sum(0))
            assert weights.argmax() == label, (source, label, weights)
            assert evidence_loss(encoder, context, torch.full((30,), label), torch.ones(30)) < 1.0


@pytest.mark.parametrize("kind", TEACHERS)
def test_the_best_teacher_itself_may_act_where_nothing_was_seen(kind, tmp_path):
    learner = make_evidence(teacher=kind, untold="teacher", **{"student.kind": "acting"})
    start = teachers(kind=kind).select([int(RETURNS.mean(1).argmax())])
    for _ in range(3):
        learner.update()
    learner.policy.save(tmp_path / "policy.safetensors")
    policy = LedStudent.load(tmp_path / "policy.safetensors")
    assert_same_bits(policy.state_dict(), learner.policy.state_dict())
    assert_same_bits(list(policy.start.parameters()), start.parameters())
    observation, embeddings = torch.randn(5, 3, generator=seeded(1)), policy.encoder.get_parameter("embeddings")
    noise = policy.noise(5, seeded(2))
    for task, z in enumerate(embeddings):
        acted = policy.decide(observation, z.expand(5, -1), noise)
        led = start.decide(observation.unsqueeze(0), noise.unsqueeze(0))[0]
        own = torch.tanh(through(policy.actor, observation, z.expand(5, -1)))
        torch.testing.assert_close(acted, led if task == K else own)
        assert not torch.allclose(led, own)
    agent = ContextAgent(policy, seeded(3), tasks=5)
    noise = policy.noise(5, clone(agent.generator))
    wanted = start.decide(observation.unsqueeze(0), noise.unsqueeze(0))[0]
    torch.testing.assert_close(agent.act(observation), wanted)


def test_everything_is_on_the_device_of_the_generator():
    config = EvidenceConfig(student=small_student()).student
    student = make_student(
        changed(config, {"standardised": True, "encoder.standardised": True}), LAYOUT, MetaGenerator()
    )
    assert {tensor.device.type for tensor in student.state_dict().values()} == {"meta"}


def test_an_agent_renews_its_belief_every_so_many_steps():
    policy = make_evidence(**{"student.renewed_every": 3}).policy
    agent, rows = ContextAgent(policy, seeded(), tasks=2), random_rows(2, 8)
    untold = policy.encoder.embeddings[-1].expand(2, -1)
    beliefs = []
    for s, a, moved, r, _ in map(LAYOUT.split, rows.unbind(1)):
        agent.act(s)
        beliefs.append(agent.z)
        agent.observe(s, a, moved, r.squeeze(1))
    assert all(torch.equal(z, untold) for z in beliefs[:3])
    for step in (3, 6):
        expected = policy.encoder.infer(LAYOUT.context(rows[:, :step])).mean
        for z in beliefs[step : step + 3]:
            torch.testing.assert_close(z, expected)


def test_an_arbitrated_agent_plays_untold_then_told_and_then_as_has_earned_more():
    policy = make_evidence(**{"student.arbitrated": True}).policy
    agent, rows = ContextAgent(policy, seeded(), tasks=2), random_rows(2, 5)
    untold = policy.encoder.embeddings[-1]
    rewards = [[1.0, 1.0], [3.0, 0.0], [-9.0, 1.0], [0.0, 0.0]]  # by episode and task
    told = [[False, False], [True, True], [True, False], [False, False]]
    for episode in range(4):
        for n, (s, a, moved, _, _) in enumerate(map(LAYOUT.split, rows.unbind(1))):
            agent.act(s)
            assert agent.told.tolist() == told[episode]
            for task in range(2):
                assert torch.equal(agent.z[task], untold) != told[episode][task]
            agent.observe(s, a, moved, torch.tensor(rewards[episode]), torch.tensor([True, n < 3]))
        agent.begin_episode()
    earned = agent.state_dict()["earned"]
    assert earned[0].tolist() == [[5.0, 2.0], [-30.0, 2.0]]
    assert earned[1].tolist() == [[6.0, 3.0], [0.0, 1.0]]
    waited = agent.state_dict()  # nobody moved: nothing is booked
    agent.begin_episode()
    assert torch.equal(agent.state_dict()["earned"], waited["earned"])
