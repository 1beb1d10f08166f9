"""What every learner must hold to, whatever it learns.

A new one is a row of `CASES`, and needs none of these tests in a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from mbml.assess import AssessConfig
from mbml.baselines.metagenrl import MetaGenRL, MetaGenRLConfig
from mbml.collect import CollectConfig
from mbml.encoders import EncoderConfig
from mbml.evaluate import EvaluateConfig
from mbml.fqe import FittedQ, FQEConfig, Logged
from mbml.learner import Learner, NotFinite, check_losses
from mbml.methods import METHODS
from mbml.models import Ensemble, EnsembleConfig
from mbml.nets import StackedMLP, select_stack
from mbml.relabel import RelabelConfig
from mbml.sac import SAC, SACConfig
from mbml.settings import ConfigError, changed, check_fields, hints
from mbml.students import StudentConfig
from mbml.teachers import TEACHERS
from mbml.teachers.bcq import BCQConfig
from mbml.teachers.iql import IQLConfig
from mbml.teachers.td3_bc import TD3BCConfig
from mbml.teaching import TeachingConfig
from mbml.warmstart import ImitationConfig, TwoBatchSAC, WarmStartConfig
from tests.mbml.meta import MetaGenerator, assert_updates, fused_adam_on_meta
from tests.mbml.toys import LAYOUT, assert_same_bits, random_rows, scatter, seeded, snapshot, through_disk

__all__ = ["fused_adam_on_meta"]

SMALL_SAC = SACConfig(policy_hidden=(8, 8), critic_hidden=(8, 8))


class Case(NamedTuple):
    """One learner."""

    make: Callable[[int, torch.Generator], Learner]
    """Of so many tasks, and a generator, on whose device it is. If it needs a second one: `another(generator)`."""
    trained: str
    """Networks and parameters that two updates change, by the names of their attributes."""
    targets: str = ""
    """Those that only follow others."""
    untouched: Callable[[Any], Sequence[Tensor]] = lambda learner: ()
    """Tensors that it reads and that are somebody else's, such as a teacher's."""
    batch: int = 8
    """Rows per task of an update; 0: it draws its own."""
    extra: int = 0
    """Columns behind each of those rows."""
    tasks: int = 2
    stacked: bool = True
    """Whether its tasks share nothing, so that T of them are T learners of one."""
    task_major: bool = False
    """Whether the members of one task lie side by side in a stack, and not those of one role."""
    meta: bool = True
    """Whether it can be built on another device."""


def another(generator: torch.Generator) -> torch.Generator:
    """A second generator of the same kind, with a seed that follows from the first's."""
    made = type(generator)()
    made.manual_seed(generator.initial_seed() + 1_000)
    return made


def _ensemble(target: Any, hidden: tuple[int, ...] = (8,)) -> Case:
    config = EnsembleConfig(members=3, hidden=hidden, learning_rate=1e-3)
    return Case(lambda tasks, g: Ensemble(config, LAYOUT, tasks, target, g), "network", task_major=True)


def _teacher(name: str, config: Any, trained: str, targets: str) -> Case:
    return Case(lambda tasks, g: TEACHERS[name].make(config, LAYOUT, tasks, g), trained, targets)


def _metagenrl(tasks: int, generator: torch.Generator) -> Learner:
    sizes: dict[str, Any] = {"segments": 3, "objective_segments": 4, "segment_length": 4}
    config = MetaGenRLConfig(hidden=(6, 5), objective_hidden=(6, 4), lstm=3, **sizes)
    return MetaGenRL(config, LAYOUT, random_rows(1, 60), generator)


def _fitted_q(tasks: int, generator: torch.Generator) -> Learner:
    actions = torch.zeros(20, 3, LAYOUT.action_size)  # only how many policies there are is read
    logged = [Logged(rows, actions, actions) for rows in random_rows(1, 20).expand(tasks, -1, -1)]
    return FittedQ(FQEConfig(hidden=(8,)), LAYOUT, logged, generator)


CASES: dict[str, Case] = {
    "sac": Case(lambda tasks, g: SAC(SMALL_SAC, LAYOUT, tasks, g), "policy critics log_alpha", "target_critics"),
    "two_batch_sac": Case(
        lambda tasks, g: TwoBatchSAC(SMALL_SAC, LAYOUT, tasks, g, 0.1), "policy critics log_alpha", "target_critics"
    ),
    "bcq": _teacher(
        "bcq",
        BCQConfig(hidden=(6, 6), vae_hidden=(6, 6), target_candidates=3),
        "encoder decoder critics perturbation",
        "target_critics target_perturbation",
    ),
    "iql": _teacher("iql", IQLConfig(hidden=(8, 8)), "policy log_std value critics", "target_critics"),
    "td3_bc": _teacher("td3_bc", TD3BCConfig(hidden=(8, 8)), "policy critics", "target_policy target_critics"),
    "reward_ensemble": _ensemble("reward"),
    "deep_reward_ensemble": _ensemble("reward", (8, 8)),
    "next_observation_ensemble": _ensemble("next_observation"),
    "fitted_q": Case(_fitted_q, "network", "target", extra=3 * LAYOUT.action_size, meta=False),  # always on the CPU
    "metagenrl": Case(
        _metagenrl,
        "policy critics objective",
        "target_policy target_critics",
        untouched=lambda learner: [learner.sampler.rows],
        batch=0,
        tasks=1,
        stacked=False,
        meta=False,  # its layers are drawn on the CPU, where one agent is fastest
    ),
}
every_learner = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def make(case: Case, seed: int = 0, tasks: int = 0) -> Learner:
    return case.make(tasks or case.tasks, seeded(seed))


def batch(case: Case, number: int, tasks: int = 0) -> tuple[Tensor, ...]:
    """The arguments of the update of this number."""
    if not case.batch:
        return ()
    tasks = tasks or case.tasks
    behind = torch.rand(tasks, case.batch, case.extra, generator=seeded(number))
    return (torch.cat([random_rows(tasks, case.batch, seed=number), behind], -1),)


def update(case: Case, learner: Learner, numbers: Sequence[int]) -> list[dict[str, Tensor]]:
    return [learner.update(*batch(case, number)) for number in numbers]


def weights(learner: Learner) -> dict[str, list[Tensor]]:
    """Every network's and parameter's tensors."""
    parts = {n: p for n, p in learner.parts().items() if isinstance(p, nn.Module | nn.Parameter)}
    return {n: list(p.parameters()) if isinstance(p, nn.Module) else [p] for n, p in parts.items()}


@every_learner
def test_updates_change_its_own_parts_and_nothing_else(case):
    learner = make(case)
    trained, targets = case.trained.split(), case.targets.split()
    assert weights(learner).keys() == {*trained, *targets}
    before, others = snapshot(weights(learner)), snapshot(list(case.untouched(learner)))
    update(case, learner, range(2))
    for name, tensors in weights(learner).items():
        for old, new in zip(before[name], tensors, strict=True):
            assert not torch.equal(old, new), name
            assert new.requires_grad == (name in trained), name
    assert_same_bits(others, list(case.untouched(learner)))


@every_learner
def test_losses_are_detached_and_updates_are_counted(case):
    learner = make(case)
    for losses in update(case, learner, range(2)):
        assert losses
        assert all(loss.isfinite().all() and not loss.requires_grad for loss in losses.values())
        assert all(loss.shape in ((), (case.tasks,)) for loss in losses.values())
    assert learner.steps_done == 2


@every_learner
@pytest.mark.parametrize("before", [0, 3])
def test_saved_loaded_and_gone_on_it_is_one_that_never_stopped(case, before, tmp_path):
    whole, resumed = make(case), make(case, seed=9)
    update(case, whole, range(before))
    resumed.load_state_dict(through_disk(tmp_path, whole.state_dict()))
    for number in range(before, before + 3):
        arguments = batch(case, number)
        assert_same_bits(whole.update(*arguments), resumed.update(*arguments))
    assert_same_bits(whole.state_dict(), resumed.state_dict())


@every_learner
def test_its_own_seed_decides_every_bit(case):
    def trained(seed: int) -> Learner:
        learner = make(case, seed)
        update(case, learner, range(2))
        return learner

    torch.manual_seed(1)
    first = trained(0)
    torch.manual_seed(2)
    assert_same_bits(first.state_dict(), trained(0).state_dict())
    for name, tensors in weights(trained(1)).items():
        assert not torch.equal(tensors[0], weights(first)[name][0]), name


@every_learner
def test_targets_start_as_copies(case):
    learner = make(case)
    for target in case.targets.split():
        assert_same_bits(weights(learner)[target], weights(learner)[target.removeprefix("target_")])


@every_learner
def test_a_weight_that_is_not_finite_is_named(case):
    learner = make(case)
    learner.check_finite()
    name = case.trained.split()[0]
    with torch.no_grad():
        weights(learner)[name][-1].view(-1)[0] = torch.nan
    with pytest.raises(NotFinite, match=f"weights of {name} are not finite after 0 updates"):
        learner.check_finite()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.meta])
def test_it_stays_on_its_device(name, fused_adam_on_meta):
    case = CASES[name]
    arguments = [rows.to("meta") for rows in batch(case, 0)]
    assert_updates(case.make(case.tasks, MetaGenerator()), *arguments)


def _noise_by_task(tasks: Sequence[int]) -> Callable[..., Tensor]:
    """A torch.randn whose part for a task depends on its number and on the count of calls, however large the stack."""
    calls = iter(range(1_000))

    def randn(*shape: Any, **options: Any) -> Tensor:
        _, *rest = shape[0] if len(shape) == 1 else shape
        call = next(calls)
        return torch.stack([torch.empty(rest).normal_(generator=seeded(100 * call + task)) for task in tasks])

    return randn


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.stacked])
def test_a_stack_is_its_tasks_alone(name, monkeypatch):
    case, number = CASES[name], 3
    stack = make(case, tasks=number)
    scatter(*(part for part in stack.parts().values() if isinstance(part, StackedMLP)))
    alone = [make(case, tasks=1) for _ in range(number)]
    for task, one in enumerate(alone):
        for part, whole in stack.parts().items():
            own = one.parts()[part]
            if isinstance(whole, StackedMLP) and isinstance(own, StackedMLP):
                own.load_state_dict(select_stack(whole, _members(case, task, number, own.stack)).state_dict())
    rows = [batch(case, seed, number)[0] for seed in range(4)]
    monkeypatch.setattr(torch, "randn", _noise_by_task(range(number)))
    together = [stack.update(r) for r in rows]
    for task, one in enumerate(alone):
        monkeypatch.setattr(torch, "randn", _noise_by_task([task]))
        for r, found in zip(rows, together, strict=True):
            for loss, value in one.update(r[task : task + 1]).items():
                torch.testing.assert_close(found[loss][task], value[0], rtol=1e-4, atol=1e-5)
        for part, tensors in weights(one).items():
            for single, whole in zip(tensors, weights(stack)[part], strict=True):
                own = whole[_members(case, task, number, len(single))]
                torch.testing.assert_close(own, single, rtol=1e-4, atol=1e-5)


def _members(case: Case, task: int, tasks: int, each: int) -> list[int]:
    """Places in a stack of the members of one task, of which it has `each`."""
    return [task * each + k if case.task_major else k * tasks + task for k in range(each)]


CONFIGS = [
    *(type(make(case).config) for case in CASES.values()),
    *(entry.config for registry in (TEACHERS, METHODS) for entry in registry.values() if entry.config is not None),
    AssessConfig,
    StudentConfig,
    EncoderConfig,
    RelabelConfig,
    EvaluateConfig,
    CollectConfig,
    TeachingConfig,
    WarmStartConfig,
    ImitationConfig,
]
every_config = pytest.mark.parametrize("config", dict.fromkeys(CONFIGS), ids=lambda config: config.__name__)


@every_config
def test_a_configuration_survives_json(config):
    adapter = TypeAdapter(config)
    assert adapter.validate_json(adapter.dump_json(config())) == config()
    check_fields(config())


@every_config
def test_every_field_of_a_configuration_has_bounds(config):
    for item, hint in hints(config).items():
        if hint in (int, float) or (get_origin(hint) is tuple and get_args(hint)[0] in (int, float)):
            pytest.fail(f"{config.__name__}.{item} has no bounds")
        default = getattr(config(), item)
        beyond = {int: -1, float: float("nan"), tuple: (8, 0), str: "nonsense"}.get(type(default))
        named = isinstance(default, str) or (get_origin(hint) is tuple and get_args(hint)[0] is str)
        if beyond is not None and (not named or get_origin(hint) is Literal):  # names are looked up, not bounded
            with pytest.raises(ConfigError, match=f"{item} is"):
                check_fields(changed(config(), {item: beyond}))


@pytest.mark.parametrize("name", TEACHERS)
def test_presets_of_a_registered_configuration_are_within_its_bounds(name):
    entry = TEACHERS[name]
    assert entry.config is not None
    for changes in entry.presets.values():
        check_fields(changed(entry.config(), changes))


def test_a_loss_that_is_not_finite_is_named_with_its_step():
    check_losses({"critic_loss": torch.ones(2)}, 40)
    with pytest.raises(NotFinite, match="critic_loss is not finite within the updates up to 40"):
        check_losses({"fine": torch.ones(()), "critic_loss": torch.tensor([0.0, torch.inf])}, 40)


def test_the_learning_rate_falls_linearly_to_its_share():
    class Annealed(Learner):
        config = type("Config", (), {"steps": 100, "learning_rate": 1e-2, "final_learning_rate": 0.1})

        def __init__(self) -> None:
            self.weight = nn.Parameter(torch.zeros(1))
            self.optimiser = torch.optim.Adam([self.weight])

        def update(self, *arguments: Any) -> dict[str, Tensor]:
            raise NotImplementedError

    learner, rates = Annealed(), []
    for learner.steps_done in (0, 50, 100, 120):
        learner.anneal()
        rates.append(learner.optimiser.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-2, 5.5e-3, 1e-3, 1e-3])
