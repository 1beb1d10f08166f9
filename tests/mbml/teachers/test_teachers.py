"""What every kind of teacher must hold to: frozen copies of what acts, files, joining, and a batch that it beats."""

import pytest
import torch

from mbml import teachers
from mbml.registry import UnknownName
from mbml.rows import sample_indices
from mbml.settings import changed
from mbml.teachers import TEACHERS, Teachers
from tests.mbml.toys import (
    LAYOUT,
    POINT,
    assert_same_bits,
    forward,
    layers_of,
    point_rows,
    point_step,
    random_rows,
    seeded,
    snapshot,
    through_disk,
)

every_kind = pytest.mark.parametrize("kind", TEACHERS)


def make(kind, tasks=2, seed=0, layout=LAYOUT, **changes):
    entry = TEACHERS[kind]
    assert entry.config is not None
    config = changed(entry.config(), {**entry.presets["smoke"], **changes})
    return entry.make(config, layout, tasks, seeded(seed))


@every_kind
def test_teachers_are_frozen_copies(kind):
    learner = make(kind)
    policies = learner.teachers()
    before = snapshot(policies.state_dict())
    for n in range(3):
        learner.update(random_rows(2, 6, seed=n))
    assert_same_bits(before, policies.state_dict())
    assert not any(p.requires_grad for p in policies.parameters())
    assert (policies.kind, policies.tasks) == (kind, 2)
    pair = torch.randn(2, 5, 5, generator=seeded(1))
    for task in range(2):
        expected = forward(layers_of(learner.critics, task), pair[task])
        found = learner.teachers().value(pair)[task]
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@every_kind
def test_actions_are_in_range_and_their_generator_decides_them(kind):
    policies, observation = make(kind).teachers(), torch.randn(2, 7, 3, generator=seeded(1))
    action = policies.act(observation, seeded(2))
    assert action.shape == (2, 7, 2)
    assert action.abs().max() <= 1
    assert torch.equal(action, policies.act(observation, seeded(2)))


@pytest.mark.parametrize("kind", [kind for kind in TEACHERS if kind != "bcq"])
def test_a_deterministic_teacher_generates_what_it_does(kind):
    learner = make(kind)
    policies, observation = learner.teachers(), torch.randn(2, 7, 3, generator=seeded(1))
    action = policies.generate(observation, torch.randn(2, 7, 4))
    assert torch.equal(action, policies.act(observation, seeded()))
    assert not policies.perturb(observation, action).any()
    for task in range(2):
        expected = torch.tanh(forward(layers_of(learner.policy, task), observation[task]))
        torch.testing.assert_close(action[task].double(), expected, rtol=1e-5, atol=1e-6)


@every_kind
def test_they_join_in_order_and_survive_the_disk(kind, tmp_path):
    two, one = make(kind, 2, seed=1).teachers(), make(kind, 1, seed=2).teachers()
    joined = Teachers.join([two, one])
    pair, s, nu = torch.randn(3, 4, 5), torch.randn(3, 4, 3), torch.randn(3, 4, 4)
    a = s[..., :2]
    torch.testing.assert_close(joined.value(pair), torch.cat([two.value(pair[:2]), one.value(pair[2:])]))
    separate = [two.generate(s[:2], nu[:2]), one.generate(s[2:], nu[2:])]
    torch.testing.assert_close(joined.generate(s, nu), torch.cat(separate))
    torch.testing.assert_close(joined.perturb(s, a), torch.cat([two.perturb(s[:2], a[:2]), one.perturb(s[2:], a[2:])]))
    loaded = teachers.load(through_disk(tmp_path, joined.state_dict()))
    assert type(loaded) is type(joined)
    assert_same_bits(joined.state_dict(), loaded.state_dict())
    assert_same_bits(joined.act(s, seeded()), loaded.act(s, seeded()))
    assert not any(p.requires_grad for p in loaded.parameters())


@every_kind
def test_they_move_to_a_device(kind):
    assert all(p.is_meta for p in make(kind).teachers().to("meta").parameters())


def test_an_unknown_kind_is_refused_by_name():
    state = make("iql").teachers().state_dict()
    with pytest.raises(UnknownName, match="no teacher 'cql'; choose one of bcq, iql, td3_bc"):
        teachers.load(state | {"kind": "cql"})


@every_kind
def test_it_beats_the_behaviour_in_its_batch(kind):
    vae = {"vae_hidden": (32, 32), "acting_candidates": 10, "target_candidates": 10} if kind == "bcq" else {}
    sizes = {"hidden": (32, 32), "batch_size": 64, "learning_rate": 3e-3, "discount": 0.9, "tau": 0.02}
    learner = make(kind, 1, layout=POINT, **sizes, **vae)
    # Behaviour: random actions that push inwards a little more often than outwards.
    rows = point_rows(3_000)
    x, a = rows[..., :1], rows[..., 1:2]
    kept = (x * a < 0).squeeze() | (torch.rand(3_000, generator=seeded(3)) < 0.6)
    rows = rows[:, kept]
    batches = seeded(1)
    for _ in range(500):
        learner.update(rows[:, sample_indices(1, 64, rows.shape[1], batches)[0]])

    def returns(act):
        position, total = torch.linspace(-1, 1, 21).view(1, -1, 1), 0.0
        for _ in range(20):
            position = point_step(position, act(position))
            total -= position.square().mean().item()
        return total

    acting = seeded(4)

    def behave(position):
        proposed = torch.rand(position.shape, generator=acting) * 2 - 1
        outward = position * proposed > 0
        return torch.where(outward & (torch.rand(position.shape, generator=acting) < 0.4), -proposed, proposed)

    policies = learner.teachers()
    assert returns(lambda s: policies.act(s, acting)) > 0.5 * returns(behave)


@every_kind
def test_the_authors_size_makes_an_update(kind):
    entry = TEACHERS[kind]
    assert entry.config is not None
    learner = entry.make(entry.config(), LAYOUT, 3, seeded())
    for _ in range(2):
        losses = learner.update(random_rows(3, learner.config.batch_size))
    assert all(value.isfinite().all() and value.shape == (3,) for value in losses.values())
