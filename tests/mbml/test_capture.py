"""Captured updates, as far as they can be checked without a GPU."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._pytree import tree_leaves

from mbml.teachers.bcq import BCQ, BCQConfig
from mbml.capture import _Captured, captured, kept
from mbml.models import Ensemble, EnsembleConfig
from mbml.sac import SAC, SACConfig
from mbml.warmstart import TwoBatchSAC
from tests.mbml.toys import LAYOUT, assert_same_bits, random_rows, seeded, snapshot

SMALL_SAC = SACConfig(policy_hidden=(8, 8), critic_hidden=(8, 8))
MAKE = {
    "sac": lambda generator: SAC(SMALL_SAC, LAYOUT, 2, generator),
    "two_batch_sac": lambda generator: TwoBatchSAC(SMALL_SAC, LAYOUT, 2, generator, 0.1),
    "bcq": lambda generator: BCQ(BCQConfig(hidden=(6, 6), vae_hidden=(6, 6)), LAYOUT, 2, generator),
    "ensemble": lambda generator: Ensemble(EnsembleConfig(members=3, hidden=(8,)), LAYOUT, 2, "reward", generator),
}


def pair(kind):
    """Two learners alike, with their generators."""
    return [(MAKE[kind](generator), generator) for generator in (seeded(), seeded())]


def batch(number):
    return random_rows(2, 6, seed=number)


def test_on_a_cpu_a_captured_update_is_the_update_itself():
    learner, generator = pair("sac")[0]
    assert captured(learner, generator) == learner.update


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("kind", MAKE)
def test_warming_up_leaves_the_learner_as_it_was_in_the_same_memory(kind, before):
    (warmed, generator), (plain, _) = pair(kind)
    for n in range(before):
        assert_same_bits(warmed.update(batch(n)), plain.update(batch(n)))

    def places():
        state = {name: value for name, value in warmed.state_dict().items() if name != "generator"}
        return [leaf.data_ptr() for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]

    with kept(warmed, generator):
        for n in range(3):
            warmed.update(batch(10 + n))
        used = places()
    assert places() == used
    if before:  # otherwise Adam has its zeros already
        assert_same_bits(snapshot(warmed.state_dict()), snapshot(plain.state_dict()))
    for n in range(before, before + 3):
        assert_same_bits(warmed.update(batch(n)), plain.update(batch(n)))
    assert_same_bits(warmed.state_dict(), plain.state_dict())


@pytest.mark.parametrize("kind", MAKE)
def test_a_graph_gets_each_batch_and_gives_results_that_stay(kind, monkeypatch):
    """Everything around the graph; the graph itself needs a GPU and is stood in for by a call that does the same."""
    (learner, generator), (plain, _) = pair(kind)
    update = _Captured(learner, generator)
    said = []

    class Graph:
        def register_generator_state(self, registered):
            assert registered is generator
            said.append("register")

        def replay(self):
            said.append("replay")
            for name, value in learner.update(update._rows).items():
                update._outputs[name].copy_(value)

    class Stream:
        def wait_stream(self, other):
            said.append("wait")

    monkeypatch.setattr("torch.cuda.Stream", Stream)
    monkeypatch.setattr("torch.cuda.current_stream", Stream)
    monkeypatch.setattr("torch.cuda.stream", lambda stream: nullcontext())
    monkeypatch.setattr("torch.cuda.CUDAGraph", Graph)
    monkeypatch.setattr("torch.cuda.graph", lambda graph: nullcontext(said.append("capture")))
    found = [update(batch(n)) for n in range(4)]
    assert said == ["wait", "wait", "register", "capture", *["replay"] * 4]
    for n, values in enumerate(found):
        assert_same_bits(values, plain.update(batch(n)))
    assert_same_bits(learner.state_dict(), plain.state_dict())
