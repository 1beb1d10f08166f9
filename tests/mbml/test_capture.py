"""Captured updates: what surrounds the graph on any machine, and the graph itself where there is a GPU."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from mbml.capture import captured, kept
from tests.mbml.test_contract import CASES, batch, make, update, weights
from tests.mbml.toys import assert_same_bits, snapshot

CAPTURED = [name for name, case in CASES.items() if case.batch and make(case).constant]


def test_on_a_cpu_a_captured_update_is_the_update_itself():
    learner = make(CASES["sac"])
    assert captured(learner) == learner.update


def test_learners_whose_updates_differ_are_not_captured():
    assert not make(CASES["td3_bc"]).constant
    assert "td3_bc" not in CAPTURED
    assert {"sac", "bcq", "iql"} < set(CAPTURED)


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("name", CAPTURED)
def test_warming_up_leaves_the_learner_as_it_was_in_the_same_memory(name, before):
    case = CASES[name]
    warmed, plain = make(case), make(case)
    for learner in (warmed, plain):
        update(case, learner, range(before))

    def places():
        state = {name: value for name, value in warmed.state_dict().items() if name != "generator"}
        return [leaf.data_ptr() for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]

    with kept(warmed):
        update(case, warmed, range(10, 13))
        used = places()
    assert places() == used
    if before:  # otherwise Adam has its zeros already
        assert_same_bits(snapshot(warmed.state_dict()), snapshot(plain.state_dict()))
    numbers = range(before, before + 3)
    assert_same_bits(update(case, warmed, numbers), update(case, plain, numbers))
    assert_same_bits(warmed.state_dict(), plain.state_dict())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CAPTURED)
def test_a_graph_gives_what_the_update_gives(name):
    """Losses that stay as they were while the graph goes on, weights, the count of updates, and what is drawn next."""
    case = CASES[name]
    graph, plain = (case.make(case.tasks, torch.Generator("cuda").manual_seed(0)) for _ in range(2))
    run = captured(graph)
    rows = [batch(case, number)[0].cuda() for number in range(4)]
    found, expected = [run(r) for r in rows], [plain.update(r) for r in rows]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert graph.steps_done == plain.steps_done == 4
    torch.testing.assert_close(weights(graph), weights(plain), rtol=1e-4, atol=1e-5)
    drawn, expected = ([own.get_state() for own in learner.generators()] for learner in (graph, plain))
    assert_same_bits(drawn, expected)
