"""Teachers of several kinds in one stack, against each of them asked alone."""

import pytest
import torch

from mbml.evidence import EvidenceLearner
from mbml.registry import UnknownName
from mbml.settings import changed
from mbml.teachers.various import Various
from tests.mbml.small_distill import K, N, make_tables, teachers
from tests.mbml.test_evidence import SMALL
from tests.mbml.toys import LAYOUT, assert_same_bits, random_rows, seeded

KINDS = ("bcq", "td3_bc", "iql")


def alone(place: int):
    """The teacher at a place of all three kinds' stacks, one after the other, as a stack of its own."""
    return teachers(kind=KINDS[place // K]).select([place % K])


def several() -> Various:
    return Various([teachers(kind=kind) for kind in KINDS])


@pytest.mark.parametrize("places", [list(range(3 * K)), [11, 0, 5, 4, 0, 8], [7, 1], [6]])
def test_each_answers_as_it_does_alone(places):
    stack, count = several().select(places), len(places)
    assert stack.tasks == count
    observation, latent, action = (torch.randn(count, 5, size, generator=seeded(size)) for size in (3, 4, 2))
    asked = {"value": (torch.cat([observation, action], -1),), "generate": (observation, latent)}
    asked["perturb"] = (observation, action)
    for name, inputs in asked.items():
        found = getattr(stack, name)(*inputs)
        wanted = [getattr(alone(place), name)(*(each[[i]] for each in inputs)) for i, place in enumerate(places)]
        torch.testing.assert_close(found, torch.cat(wanted), rtol=1e-5, atol=1e-6)
    acted = stack.act(observation, seeded(3))
    assert acted.abs().max() <= 1
    for i, place in enumerate(places):
        if KINDS[place // K] != "bcq":  # whose candidates are drawn
            wanted = alone(place).act(observation[[i]], seeded(3))[0]
            torch.testing.assert_close(acted[i], wanted, rtol=1e-5, atol=1e-6)


def test_a_selection_of_a_selection_and_one_of_a_single_kind():
    pair = torch.randn(2, 5, LAYOUT.pair_size, generator=seeded(1))
    twice = several().select([9, 2, 5, 11]).select(torch.tensor([3, 1]))
    assert torch.equal(twice.value(pair), several().select([11, 2]).value(pair))
    plain = several().select([6, 5])
    assert plain.kind == "td3_bc"
    assert_same_bits(plain.state_dict(), teachers(kind="td3_bc").select([2, 1]).state_dict())


def test_a_kind_that_there_is_not_is_refused():
    with pytest.raises(UnknownName, match="There is no teacher 'dqn'"):
        changed(SMALL, {"besides": ("bcq", "dqn")})


def test_one_teacher_of_all_tasks_together_may_guide_the_untold_start_and_a_task():
    pooled = teachers(kind="iql").select([0])
    returns = torch.zeros(K + 1, K)
    returns[1, 2], returns[K, :2] = 2.0, 1.5  # each embedding's guide: the pooled one, where it is the better one
    returns[3, 3] = 1.0
    needed = {"teachers": Various([teachers(), pooled]), "tables": make_tables(), "returns": returns}
    learner = EvidenceLearner(
        changed(SMALL, {"guide": "best", "student.kind": "acting"}),
        LAYOUT,
        random_rows(K, N),
        seeded(1),
        seeded(2),
        **needed,
    )
    pair = torch.randn(K + 1, 5, LAYOUT.pair_size, generator=seeded(1))
    wanted = [pooled.value(pair[[i]]) for i in (0, 1, 4)]
    own = [teachers().select([teacher]).value(pair[[i]]) for i, teacher in ((2, 1), (3, 3))]
    torch.testing.assert_close(learner.teachers.value(pair), torch.cat([*wanted[:2], *own, wanted[2]]))


def test_guides_are_the_best_of_all_kinds():
    returns = torch.zeros(3 * K, K)
    best = [K + 2, 0, 2 * K + 1, K]
    for task, teacher in enumerate(best):
        returns[teacher, task] = 1.0
    returns[3] = 0.9  # nowhere the best, and best on average
    needed = {"teachers": several(), "tables": make_tables(), "returns": returns}
    config = changed(SMALL, {"guide": "best", "student.kind": "acting"})
    learner = EvidenceLearner(config, LAYOUT, random_rows(K, N), seeded(1), seeded(2), **needed)
    observation = torch.randn(K + 1, 5, LAYOUT.pair_size, generator=seeded(1))
    torch.testing.assert_close(learner.teachers.value(observation), several().select([*best, 3]).value(observation))
    before = [parameter.clone() for parameter in learner.teachers.parameters()]
    losses = learner.update()
    assert torch.isfinite(torch.stack(list(losses.values()))).all()
    assert_same_bits(before, learner.teachers.parameters())
