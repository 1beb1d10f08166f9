"""What every multi-task learner, student and policy must hold to, with every encoder: one row of `CASES` each."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mbml.baselines.batch_pearl import BatchPEARL, BatchPEARLConfig
from mbml.baselines.contextual_bcq import ContextualBCQ, ContextualBCQConfig
from mbml.encoders import ENCODERS, EncoderConfig
from mbml.learner import Learner, NotFinite
from mbml.methods import METHODS
from mbml.models import Ensemble, EnsembleConfig
from mbml.policy import ContextAgent, ContextPolicy, PolicyError
from mbml.registry import UnknownName
from mbml.settings import ConfigError, changed, check_fields
from mbml.students import STUDENTS, make_student
from mbml.teachers import TEACHERS
from tests.mbml.small_distill import ABLATIONS, K, N, Z, make_learner, make_tables
from tests.mbml.test_evidence import RETURNS, make_evidence
from tests.mbml.toys import (
    LAYOUT,
    assert_same_bits,
    random_rows,
    seeded,
    small_student,
    snapshot,
    through_disk,
)


class Case(NamedTuple):
    """One learner."""

    make: Callable[[int], Any]
    """From a seed."""
    trained: str
    """Networks that two updates change, by the names of their attributes."""
    targets: str = ""
    """Those that only follow others."""


def _distill(method: str, student: str, encoder: str = "product", teacher: str = "bcq") -> Case:
    def make(seed: int) -> Learner:
        changes: dict[str, Any] = {"student.kind": student, "student.encoder.kind": encoder}
        return make_learner(method, make_tables(), seed, teacher=teacher, **changes)

    return Case(make, "student")


def _evidence(student: str, teacher: str) -> Case:
    return Case(lambda seed: make_evidence(seed, teacher=teacher, **{"student.kind": student}), "student")


def _contextual_bcq(encoder: str) -> Case:
    student = changed(small_student(), {"encoder.kind": encoder})
    config = ContextualBCQConfig(student, (8,), kl_weight=0.1, context_size=5, batch_size=4, target_candidates=3)

    def make(seed: int) -> Learner:
        return ContextualBCQ(config, LAYOUT, random_rows(K, N), seeded(seed), seeded(1_000 + seed))

    return Case(make, "encoder critics vae_encoder decoder perturbation", "target_critics target_perturbation")


def _batch_pearl(encoder: str) -> Case:
    config = BatchPEARLConfig(EncoderConfig(encoder, (8,), Z), (8,), context_size=5, batch_size=6, tasks_per_step=4)

    def make(seed: int) -> Learner:
        return BatchPEARL(config, LAYOUT, random_rows(K, N), seeded(seed), seeded(1_000 + seed))

    return Case(make, "policy critics value", "target_value")


CASES = {
    **{
        f"{method}-{student}-{encoder}": _distill(method, student, encoder)
        for method, student, encoder in itertools.product(ABLATIONS, STUDENTS, ENCODERS)
    },
    **{
        f"full-{student}-of-{teacher}": _distill("full", student, teacher=teacher)
        for student, teacher in itertools.product(STUDENTS, TEACHERS)
        if teacher != "bcq"
    },
    **{
        f"evidence-{student}-of-{teacher}": _evidence(student, teacher)
        for student, teacher in itertools.product(STUDENTS, TEACHERS)
    },
    **{f"contextual_bcq-{encoder}": _contextual_bcq(encoder) for encoder in ENCODERS},
    **{f"batch_pearl-{encoder}": _batch_pearl(encoder) for encoder in ENCODERS},
}
every_learner = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def update(learner: Learner, number: int) -> list[dict[str, Tensor]]:
    return [learner.update() for _ in range(number)]


def weights(learner: Learner) -> dict[str, dict[str, Tensor]]:
    return {n: dict(p.named_parameters()) for n, p in learner.parts().items() if isinstance(p, nn.Module)}


def borrowed(learner: Any) -> list[Any]:
    """What it reads and does not own."""
    own = [learner.rows]
    if hasattr(learner, "teachers"):
        own += [learner.teachers.state_dict(), learner.tables.tensors() if learner.tables else None]
    return own


@every_learner
def test_updates_change_its_own_parts_and_nothing_else(case):
    learner = case.make(0)
    trained, targets = case.trained.split(), case.targets.split()
    assert weights(learner).keys() == {*trained, *targets}
    for target in targets:
        online = weights(learner)[target.removeprefix("target_")]
        assert_same_bits(weights(learner)[target], online)
    before, others = snapshot(weights(learner)), snapshot(borrowed(learner))
    for losses in update(learner, 3):
        assert losses
        assert all(loss.isfinite().all() and not loss.requires_grad for loss in losses.values())
    for part, tensors in weights(learner).items():
        for name, tensor in tensors.items():
            assert not torch.equal(tensor, before[part][name]), f"{part}.{name}"
            assert tensor.requires_grad == (part in trained), f"{part}.{name}"
    assert_same_bits(others, borrowed(learner))
    assert learner.steps_done == 3


@every_learner
def test_saved_loaded_and_gone_on_it_is_one_that_never_stopped(case, tmp_path):
    whole, resumed = case.make(0), case.make(9)
    update(whole, 3)
    resumed.load_state_dict(through_disk(tmp_path, whole.state_dict()))
    for one, other in zip(update(whole, 2), update(resumed, 2), strict=True):
        assert_same_bits(one, other)
    assert_same_bits(whole.state_dict(), resumed.state_dict())


@every_learner
def test_its_own_seed_decides_every_bit(case):
    def trained(seed: int) -> Learner:
        learner = case.make(seed)
        update(learner, 2)
        return learner

    torch.manual_seed(1)
    first = trained(0)
    torch.manual_seed(2)
    assert_same_bits(first.state_dict(), trained(0).state_dict())
    for part, tensors in weights(trained(1)).items():
        for name, tensor in tensors.items():
            assert not torch.equal(tensor, weights(first)[part][name]), f"{part}.{name}"


@every_learner
def test_its_learning_rates_fall_where_asked(case):
    learner = case.make(0)
    learner.config = replace(learner.config, steps=4, final_learning_rate=0.2)
    update(learner, 2)
    rates = [group["lr"] for optimiser in learner.optimisers() for group in optimiser.param_groups]
    assert rates == pytest.approx([0.8 * learner.config.learning_rate] * len(rates))


@every_learner
def test_a_weight_that_is_not_finite_is_named(case):
    learner = case.make(0)
    learner.check_finite()
    part = case.trained.split()[-1]
    with torch.no_grad():
        next(iter(weights(learner)[part].values())).view(-1)[0] = torch.nan
    with pytest.raises(NotFinite, match=f"weights of {part} are not finite after 0 updates"):
        learner.check_finite()


@every_learner
def test_its_policy_acts_and_survives_the_disk(case, tmp_path):
    learner = case.make(0)
    update(learner, 1)
    policy, path = learner.policy, tmp_path / "policy.safetensors"
    policy.save(path, step=1)
    loaded = ContextPolicy.load(path)
    assert type(loaded) is type(policy)
    assert (loaded.config, loaded.layout) == (policy.config, policy.layout)
    assert_same_bits(policy.state_dict(), loaded.state_dict())
    observation, z = torch.randn(5, 3, generator=seeded(1)), torch.randn(5, Z, generator=seeded(2))
    action = policy.act(observation, z, seeded(3))
    assert action.shape == (5, 2)
    assert action.abs().max() <= 1
    assert not action.requires_grad
    assert torch.equal(action, loaded.act(observation, z, seeded(3)))
    # The policy is handed over as it is now, on generators of nobody.
    learner.update()
    assert torch.equal(action, loaded.act(observation, z, seeded(3)))


@every_learner
def test_a_saved_belief_acts_on_as_if_it_had_never_been_away(case, tmp_path):
    policy, rows = case.make(0).policy, random_rows(3, 8)
    stayed = ContextAgent(policy, seeded(1), tasks=3)
    for s, a, moved, r, _ in map(LAYOUT.split, rows[:, :5].unbind(1)):
        stayed.observe(s, a, moved, r.squeeze(1))
    stayed.begin_episode()
    left = ContextAgent(policy, seeded(99), tasks=3)
    left.load_state_dict(through_disk(tmp_path, stayed.state_dict()))
    left.generator.set_state(stayed.generator.get_state())
    for s, a, moved, r, _ in map(LAYOUT.split, rows[:, 5:].unbind(1)):
        assert torch.equal(stayed.act(s), left.act(s))
        for agent in (stayed, left):
            agent.observe(s, a, moved, r.squeeze(1))
    assert_same_bits(list(stayed.belief()), list(left.belief()))
    for agent in (stayed, left):
        agent.begin_episode()
    assert torch.equal(stayed.z, left.z)


@pytest.mark.parametrize("kind", STUDENTS)
def test_a_student_s_losses_reach_its_own_networks_and_only_the_value_reaches_z(kind):
    learner = make_learner(**{"student.kind": kind})
    student, rows = learner.student, random_rows(K, 6)
    z = torch.randn(K, 6, Z, generator=seeded(1)).requires_grad_()
    losses = student.losses(learner.teachers, LAYOUT.split(rows), LAYOUT.pair(rows), z, seeded(2))
    reached: dict[str, set[str]] = {}
    for name, loss in losses.items():
        student.zero_grad()
        z.grad = None
        loss.backward(retain_graph=True)
        reached[name] = {n.partition(".")[0] for n, p in student.named_parameters() if p.grad is not None}
        assert (z.grad is not None) == (name == "loss_q")
    assert reached.pop("loss_q") == {"value_network"}
    others = [network for networks in reached.values() for network in networks]
    trained = {name.partition(".")[0] for name, _ in student.named_parameters()}
    assert sorted(others) == sorted(trained - {"encoder", "value_network"})
    assert not any(p.grad is not None for network in learner.teachers.networks().values() for p in network.parameters())


def _bad_inputs() -> dict[str, tuple[Any, str]]:
    good = torch.zeros(2, 3)
    return {
        "numpy": (good.numpy(), r"observation is a ndarray; it should be a float32 tensor of shape \(2, 3\)"),
        "double": (good.double(), r"observation is torch.float64; it should be a float32 tensor of shape \(2, 3\)"),
        "one task": (good[0], r"observation has shape \(3,\); it should be \(2, 3\)"),
        "another size": (good[:, :2], r"observation has shape \(2, 2\); it should be \(2, 3\)"),
        "nan": (good + torch.nan, r"\(2, .\) holds a value that is not finite"),
    }


@pytest.mark.parametrize("case", _bad_inputs())
def test_what_an_agent_cannot_take_is_refused_in_one_sentence(case):
    agent = ContextAgent(make_student(small_student(), LAYOUT, seeded()), seeded(), tasks=2)
    value, words = _bad_inputs()[case]
    with pytest.raises(PolicyError, match=words):
        agent.act(value)
    action, following, reward = torch.zeros(2, 2), torch.zeros(2, 3), torch.zeros(2)
    with pytest.raises(PolicyError, match=words):
        agent.observe(value, action, following, reward)
    with pytest.raises(PolicyError, match=r"reward has shape \(2, 1\); it should be \(2,\)"):
        agent.observe(following, action, following, reward.unsqueeze(1))
    assert_same_bits(agent.state_dict()["statistics"], torch.zeros(2, 6))


def test_a_belief_of_another_encoder_is_refused():
    agents = [
        ContextAgent(make_student(changed(small_student(), {"encoder.kind": kind}), LAYOUT, seeded()), seeded())
        for kind in ("product", "mean")
    ]
    with pytest.raises(PolicyError, match=r"statistics have shape \(1, 6\); they should be \(1, 4\)"):
        agents[1].load_state_dict(agents[0].state_dict())


def test_a_file_that_holds_no_policy_of_the_kind_asked_for_is_refused(tmp_path):
    path = tmp_path / "policy.safetensors"
    through_disk(tmp_path, {"kind": "nonsense"})
    with pytest.raises(PolicyError, match=r"does not hold a policy of one of these kinds: .*generative"):
        ContextPolicy.load(tmp_path / "state.safetensors")
    make_student(small_student(), LAYOUT, seeded()).save(path)
    with pytest.raises(PolicyError, match="does not hold a policy of one of these kinds: acting"):
        STUDENTS["acting"].make.load(path)


@pytest.mark.parametrize("name", METHODS)
def test_presets_of_a_method_are_within_its_bounds_and_its_factory_makes_a_learner(name):
    method = METHODS[name]
    assert method.config is not None
    for changes in method.presets.values():
        check_fields(changed(method.config(), changes))
    config = changed(method.config(), method.presets["smoke"])
    prefix = f"{method.learner}."
    config = changed(config, {p.removeprefix(prefix): v for p, v in method.changes.items() if p.startswith(prefix)})
    needs = method.needs(config)
    assert needs <= {"teachers", "tables", "models", "returns"}
    models = {"reward": Ensemble(EnsembleConfig(members=2, hidden=(6,)), LAYOUT, K, "reward", seeded())}
    given = {"teachers": make_learner().teachers, "tables": make_tables(), "models": models, "returns": RETURNS}
    tasks = 1 if name == "metagenrl" else K
    learner = method.make(config, LAYOUT, random_rows(tasks, 40), seeded(), seeded(1), **{n: given[n] for n in needs})
    assert all(value.isfinite() for value in learner.update().values())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("student.encoder.embedding_size", 0),
        ("student.value_hidden", (8, 0)),
        ("kl_weight", -0.1),
        ("learning_rate", 0.0),
        ("final_learning_rate", 1.5),
        ("triplet", "soft"),
    ],
)
def test_a_value_out_of_bounds_is_named_with_its_path(path, value):
    config = METHODS["full"].config
    assert config is not None
    with pytest.raises(ConfigError, match=f"^{path} is .*; it should be "):
        check_fields(changed(config(), {path: value}))


def test_a_student_that_does_not_exist_is_refused_by_name():
    with pytest.raises(UnknownName, match="There is no student 'actor'; choose one of generative, acting"):
        replace(small_student(), kind="actor")
