"""What surrounds the learners off the CPU, on the stand-in of `tests.mbml.meta`."""

from dataclasses import replace

import pytest
import torch
import torch.fx.experimental._config as fx_config
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mbml.baselines.batch_pearl import BatchPEARL, BatchPEARLConfig
from mbml.baselines.contextual_bcq import ContextualBCQ, ContextualBCQConfig
from mbml.collect import CollectConfig, Collection
from mbml.distill import MultiTaskLearner
from mbml.encoders import EncoderConfig
from mbml.fqe import FittedQ, FQEConfig, Logged
from mbml.nets import join_stacks
from mbml.rows import gather_rows, resident, sample_indices
from mbml.sac import SAC, SACConfig
from mbml.students import make_student
from mbml.teachers.bcq import BCQ, BCQConfig
from mbml.teaching import Teaching, TeachingConfig
from mbml.warmstart import ImitationConfig, TwoBatchSAC, critics_at, imitate
from tests.mbml.meta import MetaGenerator, OnlyMeta, assert_updates, fused_adam_on_meta
from tests.mbml.small_distill import ABLATIONS, STUDENT, B, K, M, N, ablated, make_tables, teachers
from tests.mbml.toys import LAYOUT, UMAZE, env_maker, random_rows, seeded

SMALL_SAC = SACConfig(policy_hidden=(8, 8), critic_hidden=(8, 8), batch_size=6)
SMALL_BCQ = BCQConfig(hidden=(6, 6), vae_hidden=(6, 6), batch_size=6)


__all__ = ["fused_adam_on_meta"]

pytestmark = [
    pytest.mark.usefixtures("fused_adam_on_meta"),
    pytest.mark.filterwarnings("ignore:.*to a meta parameter in the current model, which is a no-op"),
]


def meta_rows(tasks: int, number: int) -> Tensor:
    return random_rows(tasks, number).to("meta")


def test_the_stand_in_refuses_what_a_gpu_refuses():
    x = torch.empty(2, 3, 3, device="meta")
    with OnlyMeta():
        torch.bmm(x, x)
        for refused in (
            lambda: torch.bmm(x, torch.zeros(2, 3, 3)),
            lambda: x[torch.zeros(2, dtype=torch.long)],
            lambda: x + torch.zeros(()),
            lambda: torch.arange(3),
            lambda: x.cpu(),
            lambda: x.sum().item(),
            lambda: x.nonzero(),
        ):
            with pytest.raises((AssertionError, NotImplementedError, RuntimeError)):
                refused()


@pytest.mark.parametrize("partners", [0, 2])
@pytest.mark.parametrize("dynamics", [False, True])
@pytest.mark.parametrize("method", ABLATIONS)
def test_the_multi_task_learner_stays_on_its_device(method, dynamics, partners):
    """With relabelling it must ask for the number of eligible transitions (`nonzero`), for which it waits for the
    GPU, and its shapes change: it cannot be captured. Here all of them count as eligible."""
    config = ablated(method, partners=partners)
    tables = make_tables(pool=N - 2, dynamics=dynamics).to("meta") if config.union_context else None
    needed = {"teachers": teachers().to("meta"), "tables": tables}
    learner = MultiTaskLearner(config, LAYOUT, meta_rows(K, N), MetaGenerator(), MetaGenerator(), **needed)
    if config.union_context:
        with pytest.raises(NotImplementedError, match="nonzero"):
            learner.update()
    assume = {"meta_nonzero_assume_all_nonzero": config.union_context}
    with fx_config.patch(assume):  # pyright: ignore[reportAttributeAccessIssue]
        assert_updates(learner)


@pytest.mark.parametrize("encoder_losses", ["critic_and_vae", "critic"])
def test_contextual_bcq_and_its_policy_stay_on_their_device(encoder_losses):
    config = ContextualBCQConfig(
        student=STUDENT, vae_encoder_hidden=(6,), encoder_losses=encoder_losses, context_size=M, batch_size=B
    )
    learner = ContextualBCQ(config, LAYOUT, meta_rows(K, N), MetaGenerator(), MetaGenerator())
    assert_updates(learner)
    assert all(parameter.is_meta for parameter in learner.policy.parameters())


def test_batch_pearl_stays_on_its_device():
    config = BatchPEARLConfig(
        encoder=EncoderConfig(hidden=(8,), embedding_size=3),
        hidden=(8, 8),
        context_size=M,
        batch_size=B,
        tasks_per_step=3,
    )
    assert_updates(BatchPEARL(config, LAYOUT, meta_rows(K, N), MetaGenerator(), MetaGenerator()))


def test_fitted_q_stays_on_its_device():
    actions = torch.zeros(N, 3, LAYOUT.action_size)
    logged = [Logged(rows, actions, actions) for rows in random_rows(2, N)]
    learner = FittedQ(FQEConfig(hidden=(8,)), LAYOUT, logged, MetaGenerator())
    assert_updates(
        learner, torch.cat([meta_rows(2, B), actions[None, :B].expand(2, -1, -1, -1).flatten(2).to("meta")], -1)
    )


def test_a_warm_start_reaches_a_learner_on_another_device(monkeypatch):
    monkeypatch.setattr("mbml.warmstart.check_losses", lambda losses, step: None)  # which reads them, once at the end
    learner = TwoBatchSAC(replace(SMALL_SAC, critic_hidden=STUDENT.value_hidden), LAYOUT, 2, MetaGenerator(), 0.1)
    losses = imitate(learner.policy, LAYOUT, meta_rows(2, N), ImitationConfig(steps=2, batch_size=B), MetaGenerator())
    assert losses.is_meta
    learner.start_from(
        critics_at(make_student(STUDENT, LAYOUT, seeded()), torch.zeros(2, STUDENT.encoder.embedding_size))
    )
    assert_updates(learner, meta_rows(2, 12))


def test_copies_of_stacks_stay_on_their_device():
    kept = BCQ(SMALL_BCQ, LAYOUT, 2, MetaGenerator()).teachers()
    joined = join_stacks([kept.critic, kept.critic])
    assert joined.stack == 4
    assert all(parameter.is_meta for parameter in (*kept.parameters(), *joined.parameters()))


def test_teaching_moves_its_checkpoint_to_the_device(monkeypatch):
    config = TeachingConfig(iterations=300, evaluation_every=300, evaluation_episodes=1)
    rows = random_rows(2, N, UMAZE)
    make_envs = env_maker("umaze_goal", [0, 1], 5)
    started = Teaching("bcq", SMALL_BCQ, config, UMAZE, rows, make_envs, [0, 1], 0)
    started.advance()
    monkeypatch.setattr("mbml.teaching.generator_of", lambda *parts, device: MetaGenerator())
    resumed = Teaching("bcq", SMALL_BCQ, config, UMAZE, resident(rows, "meta"), make_envs, [0, 1], 0, "meta")
    resumed.load_state_dict(started.state_dict())
    resumed.advance()
    assert resumed.done > started.done > 0
    state = resumed.state_dict()
    parts = (state["learner"]["critic_optimiser"], resumed.best.parameters(), state["means"])
    tensors = [leaf for leaf in tree_leaves(parts) if isinstance(leaf, Tensor)]
    assert all(tensor.is_meta for tensor in tensors)


def test_collection_keeps_its_rows_where_its_learner_is():
    config = CollectConfig(steps=20, warmup_steps=10, evaluation_episodes=1, sac=SMALL_SAC)
    make_envs = env_maker("umaze_goal", [0, 1], 5)
    started = Collection(config, UMAZE, make_envs, [0, 1], 0)
    started.advance()
    resumed = Collection(config, UMAZE, make_envs, [0, 1], 0, SAC(SMALL_SAC, UMAZE, 2, MetaGenerator()))
    resumed.load_state_dict(started.state_dict())
    assert resumed.done == 10
    assert resumed.rows.is_meta
    assert_updates(resumed.learner, gather_rows(resumed.rows, sample_indices(2, 6, 10, resumed.learner.generator)))
