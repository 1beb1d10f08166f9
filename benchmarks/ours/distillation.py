"""The multi-task learner, its plain twin and its limit, on random batches, teachers and labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks import limit
from benchmarks.ours.learners import random_rows, seeded
from benchmarks.peers.protocol import Measure, milliseconds
from benchmarks.plain.distill import PlainDistiller, Shapes, Teacher
from benchmarks.plain.nets import mlp
from mbml.distill import DistillConfig, MultiTaskLearner
from mbml.nets import StackedMLP
from mbml.relabel import RelabelTables, pool_indices
from mbml.rows import RowLayout
from mbml.students import GenerativeStudent, StudentConfig
from mbml.teachers.bcq import BCQ, BCQConfig


def make_learner(
    observation_size: int, action_size: int, width: int, depths: Sequence[int], tasks: int, rows: int, eligible: float
) -> MultiTaskLearner:
    """The full model with students of `width` and the defaults otherwise; a share `eligible` of all labels counts."""
    layout = RowLayout(observation_size, action_size)
    value, decoder, perturbation = ((width,) * depth for depth in depths)
    student = StudentConfig(value_hidden=value, decoder_hidden=decoder, perturbation_hidden=perturbation)
    teachers = BCQ(BCQConfig(), layout, tasks, seeded(4)).teachers()
    tables = random_tables(tasks, rows, eligible)
    config = DistillConfig(student=student)
    data = random_rows(tasks, rows, layout)
    return MultiTaskLearner(config, layout, data, seeded(5), seeded(6), teachers=teachers, tables=tables)


def random_tables(tasks: int, rows: int, eligible: float) -> RelabelTables:
    """Standard normal labels of all rows for all tasks, of which a share `eligible` counts."""
    generator = seeded(3)
    mask = torch.rand(tasks, tasks, rows, generator=generator) < eligible
    mask[torch.arange(tasks), torch.arange(tasks)] = False
    labels = torch.randn(tasks, tasks, rows, generator=generator)
    return RelabelTables(pool_indices(tasks, rows, 0, generator), labels, mask)


def plain_twin(learner: MultiTaskLearner) -> PlainDistiller:
    """A plain loop with the same weights, data, teachers and draws."""
    config, student, tables = learner.config, learner.config.student, learner.tables
    assert tables is not None
    assert isinstance(learner.rows, Tensor)
    shapes = Shapes(
        learner.layout.observation_size,
        learner.layout.action_size,
        student.encoder.embedding_size,
        list(student.encoder.hidden),
        list(student.value_hidden),
        list(student.decoder_hidden),
        list(student.perturbation_hidden),
        config.context_size,
        config.batch_size,
        config.kl_weight,
        config.margin,
        config.learning_rate,
    )
    networks = learner.teachers.networks()
    teachers = [Teacher(**{n: unstacked(net, i) for n, net in networks.items()}) for i in range(learner.tasks)]
    generators = [seeded().set_state(g.get_state()) for g in (learner.generator, learner.context_generator)]
    plain = PlainDistiller(shapes, learner.rows, teachers, tables.reward, tables.eligible, *generators)
    policy = learner.student
    assert isinstance(policy, GenerativeStudent)
    for target, source in (
        (plain.encoder, policy.encoder.body),
        (plain.value, policy.value_network),
        (plain.decoder, policy.decoder),
        (plain.perturbation, policy.perturbation),
    ):
        target.load_state_dict(unstacked(source, 0).state_dict())
    return plain


def unstacked(network: StackedMLP, member: int) -> nn.Sequential:
    """One member of a stack as a plain network."""
    result = mlp(network.sizes)
    parameters = zip(network.weights, network.biases, strict=True)
    values: list[Tensor] = [t for w, b in parameters for t in (w[member].t(), b[member, 0])]
    with torch.no_grad():
        for parameter, value in zip(result.parameters(), values, strict=True):
            parameter.copy_(value)
    return result


def step(**sizes: object) -> Measure:
    """Milliseconds per step of the project's learner."""
    return milliseconds(make_learner(**sizes).update)  # pyright: ignore[reportArgumentType]


def plain_step(**sizes: object) -> Measure:
    """Milliseconds per step of the plain loop."""
    return milliseconds(plain_twin(make_learner(**sizes)).update)  # pyright: ignore[reportArgumentType]


def step_limit(
    library: limit.Library,
    observation_size: int,
    action_size: int,
    width: int,
    depths: Sequence[int],
    tasks: int,
    eligible: float,
) -> Measure:
    """Milliseconds for the products of the same step."""
    rows = DistillConfig().context_size, DistillConfig().batch_size
    products = limit.distillation(observation_size, action_size, width, depths, tasks, *rows, eligible)
    return milliseconds(products.step(library))
