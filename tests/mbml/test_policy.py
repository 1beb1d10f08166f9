"""The student networks and the adaptive agent."""

import pytest
import torch

from mbml.encoders import EncoderConfig
from mbml.policy import ContextAgent
from mbml.students import ActingStudent, GenerativeStudent, StudentConfig
from tests.mbml.toys import (
    LAYOUT,
    assert_same_bits,
    clone,
    forward,
    layers_of,
    naive_posterior,
    random_rows,
    seeded,
    small_student,
)

Z = 3
SMALL = StudentConfig("generative", EncoderConfig("product", (8, 8), Z), (9, 7), (8, 6), (7, 5), acting_candidates=4)


def make_student(seed=0):
    student = GenerativeStudent(SMALL, LAYOUT, seeded(seed))
    with torch.no_grad():  # as initialised, all outputs are near zero
        for network in (student.encoder.body, student.value_network, student.decoder, student.perturbation):
            network.weights[-1].mul_(200)
    return student


def test_networks_take_their_parts_in_order():
    student = make_student()
    parts = [torch.randn(2, 5, n, generator=seeded(n)) for n in (3, 2, 4, Z)]
    s, a, nu, z = parts
    for found, network, inputs, squash in (
        (student.value(s, a, z), student.value_network, (s, a, z), lambda x: x),
        (student.generate(s, nu, z), student.decoder, (s, nu, z), torch.tanh),
        (student.perturb(s, a, z), student.perturbation, (s, a, z), torch.tanh),
    ):
        expected = squash(forward(layers_of(network), *inputs))
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_acting_takes_the_candidate_that_the_student_values_most():
    student = make_student()
    observation, z = torch.randn(6, 3, generator=seeded(1)), torch.randn(6, Z, generator=seeded(2))
    actions = student.act(observation, z, seeded(3))
    latents = torch.randn(1, 24, 4, generator=seeded(3))[0].clamp(-0.5, 0.5)
    value, decoder, xi = (layers_of(n) for n in (student.value_network, student.decoder, student.perturbation))
    for n in range(6):
        best, best_value = None, -float("inf")
        for m in range(4):
            generated = torch.tanh(forward(decoder, observation[n], latents[n * 4 + m], z[n]))
            raw = torch.tanh(forward(xi, observation[n], generated, z[n]))
            action = (generated + 0.05 * raw).clamp(-1, 1)
            q = forward(value, observation[n], action, z[n]).item()
            if q > best_value:
                best, best_value = action, q
        torch.testing.assert_close(actions[n].double(), best, rtol=1e-4, atol=1e-5)


def test_an_acting_student_imitates_what_its_teachers_do():
    """Its action loss, and its action, by hand; a teacher needs no generator and no perturbation for it."""

    class Pushers:
        """Two teachers: one pushes to the left, one to the right, by a random amount."""

        def act(self, observation, generator):
            amount = torch.rand(2, observation.shape[1], 1, generator=generator)
            return torch.tensor([-1.0, 1.0]).view(2, 1, 1) * amount.expand(-1, -1, 2)

    student = ActingStudent(small_student(), LAYOUT, seeded())
    observation, z = torch.randn(2, 5, 3, generator=seeded(1)), torch.randn(2, 5, Z, generator=seeded(2))
    losses = student.action_losses(Pushers(), observation, z, seeded(3))  # pyright: ignore[reportArgumentType]
    target, total = Pushers().act(observation, seeded(3)), 0.0
    for i in range(2):
        for b in range(5):
            action = torch.tanh(forward(layers_of(student.actor), observation[i, b], z[i, b]))
            total += (action - target[i, b]).square().mean().item() / 10
            found = student.act(observation[i, b : b + 1], z[i, b : b + 1], seeded())
            torch.testing.assert_close(found[0].double(), action, rtol=1e-4, atol=1e-6)
    assert losses.keys() == {"loss_action"}
    assert losses["loss_action"].item() == pytest.approx(total, rel=1e-5)


def test_before_anything_is_observed_z_comes_from_the_prior():
    policy = ContextAgent(make_student(), seeded(1), tasks=2)
    assert torch.equal(policy.belief().mean, torch.zeros(2, Z))
    assert torch.equal(policy.belief().variance, torch.ones(2, Z))
    assert torch.equal(policy.z, torch.randn(2, Z, generator=seeded(1)))


@pytest.mark.parametrize("every", [1, 4, 100])
def test_belief_is_the_posterior_of_all_transitions_however_often_it_is_asked(every):
    student, rows = make_student(), random_rows(3, 20)
    policy = ContextAgent(student, seeded(1), tasks=3)
    active = torch.rand(20, 3, generator=seeded(2)) < 0.7
    active[:, 2] = False  # a task of which nothing is seen
    for t in range(20):
        s, a, s2, r, _ = LAYOUT.split(rows[:, t])
        policy.observe(s, a, s2, r.squeeze(1), active[t])
        if t % every == 0:
            policy.belief()
    belief = policy.belief()
    for task in range(3):
        seen = [LAYOUT.context(rows[task, t]) for t in range(20) if active[t, task]]
        expected = naive_posterior(layers_of(student.encoder.body), seen, Z)
        torch.testing.assert_close(belief.mean[task].double(), expected.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(belief.variance[task].double(), expected.variance, rtol=1e-4, atol=1e-6)
    assert torch.equal(belief.variance[2], torch.ones(Z))


def test_z_is_sampled_from_the_belief_and_kept_for_the_episode():
    student, rows = make_student(), random_rows(2, 5)
    policy = ContextAgent(student, seeded(1), tasks=2)
    first = policy.z.clone()
    for t in range(5):
        s, a, s2, r, _ = LAYOUT.split(rows[:, t])
        policy.act(s)
        policy.observe(s, a, s2, r.squeeze(1))
    assert torch.equal(policy.z, first)
    belief, generator = policy.belief(), clone(policy.generator)
    policy.begin_episode()
    noise = torch.randn(2, Z, generator=generator)
    torch.testing.assert_close(policy.z, belief.mean + belief.variance.sqrt() * noise)
    expected = student.act(rows[:, 0, :3], policy.z, clone(policy.generator))
    assert torch.equal(policy.act(rows[:, 0, :3]), expected)
    assert not policy.z.requires_grad


def test_what_is_remembered_is_a_copy():
    policy, row = ContextAgent(make_student(), seeded(1)), random_rows(1, 1)[:, 0]
    again = ContextAgent(make_student(), seeded(1))
    s, a, s2, r, _ = LAYOUT.split(row.clone())
    policy.observe(s, a, s2, r.squeeze(1))
    s.zero_()
    a.zero_()
    s, a, s2, r, _ = LAYOUT.split(row)
    again.observe(s, a, s2, r.squeeze(1))
    assert_same_bits(list(policy.belief()), list(again.belief()))
