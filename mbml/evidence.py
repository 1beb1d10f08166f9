"""Distillation under a learned embedding per training task, and task inference by the evidence of single transitions.

The students never see an encoder's error: under each task's own embedding a teacher is distilled, the task's own or the
one that does best on it. A classifier of single transitions is trained on original and relabelled ones, so that the
same (s, a, s') appears with the rewards and labels of several tasks: the argument of the paper's triplet loss, as a
classification. Its log-probabilities add up over what an agent has seen, and weigh the embeddings. What they say of
the place alone, by `own_share` and by how many labels of each task are eligible, adds up as well: nothing with an
`own_share` of 1 / K and equal shares; with more, a transition that tells nothing speaks for the task whose batch visits
that place.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mbml.encoders import EncoderConfig, Mixture
from mbml.learner import Learner, Schedule
from mbml.losses import distillation_objective
from mbml.nets import adam, step
from mbml.partners import some_tasks
from mbml.relabel import RelabelTables
from mbml.rows import RowLayout, Rows, gather_rows, sample_indices, sample_rows
from mbml.settings import Count, Share, Whole, later
from mbml.students import LedStudent, Student, StudentConfig, make_student
from mbml.teachers import TEACHERS, Teachers


@dataclass(frozen=True)
class EvidenceConfig(Schedule):
    """Students under an embedding per task, and the classifier that finds the task."""

    student: StudentConfig = field(
        default_factory=lambda: StudentConfig(
            encoder=EncoderConfig(standardised=True), standardised=True, renewed_every=20
        )
    )
    """Which networks, and their shapes. The encoder is a `mixture` with an anchor for each task, whatever it says."""
    teacher: str | None = None
    """Kind of its teachers, one of `mbml.teachers.TEACHERS`; None takes the run's."""
    besides: tuple[str, ...] = later(())
    """Other kinds of teachers, of which a better one is a guide instead, as the pooled teacher is where there is one:
    of the untold embedding, and with `guide` best of the task's."""
    batch_size: Count = 128
    """State-action rows B per task and step."""
    context_size: Count = 128
    """Transitions per task and step that the classifier learns from."""
    own_share: Share = 0.5
    """Share of those that are the task's own; the others are relabelled for it."""
    foreign_share: Share = 0.0
    """Share of a task's batch that are states of all tasks instead of its own."""
    guide: Literal["own", "best"] = "own"
    """The teacher that a task's embedding is distilled from: its own, or the one that does best on it in its
    simulator."""
    untold: Literal["student", "teacher"] = later("student")
    """Who acts where nothing was seen: the student by imitation, or, if it is an acting one, the teacher itself."""
    tasks_per_step: Whole = later(16)
    """Tasks of a step, drawn at random; all where there are no more, or with 0. A step's cost does not grow beyond."""
    rivals: Whole = later(64)
    """Tasks that a step's transitions are told from, drawn at random, each standing for as many as there are in all;
    all where there are no more, or with 0."""

    def __post_init__(self) -> None:
        for kind in (*((self.teacher,) if self.teacher is not None else ()), *self.besides):
            TEACHERS[kind]
        encoder = replace(self.student.encoder, kind="mixture")
        object.__setattr__(self, "student", replace(self.student, encoder=encoder))


class EvidenceLearner(Learner):
    """`update` draws its own batches from all tasks' rows `[K, N, row]` and makes one step of students and classifier.

    `returns` `[M, K]` are those of every teacher (first axis; the K tasks' own, then those of other kinds) on every
    training task, NaN where they are not known; they choose the guide of the untold embedding, which is distilled on
    everybody's states from the teacher that is best on average. Batches and contexts have a generator each.

    Where not all tasks are drawn, the untold embedding is in every step all the same, and weighs as much as one of
    those that are. What a step minimises is then on average T times the mean over all tasks and once the untold loss,
    divided by T + 1. Embeddings and logits of tasks not drawn have no gradient in a step. Adam then moves them by what
    it remembers of earlier ones, as it moves any weight on which a batch does not bear, less by a tenth every step.
    """

    constant = False  # the number of eligible transitions changes

    def __init__(
        self,
        config: EvidenceConfig,
        layout: RowLayout,
        rows: Rows,
        *generators: torch.Generator,
        teachers: Teachers,
        tables: RelabelTables,
        returns: Tensor,
    ) -> None:
        self.config, self.layout, self.rows, self.tables = config, layout, rows, tables
        self.generator, self.context_generator = generators
        self.tasks = len(rows)
        guides = best_teachers(returns) if config.guide == "best" else torch.arange(self.tasks)
        self.teachers = teachers.select([*guides.tolist(), blind_teacher(returns)])
        encoder = replace(config.student.encoder, anchors=self.tasks)
        shape = replace(config.student, encoder=encoder)
        if config.untold == "teacher" and config.student.kind == "acting":
            self.student = LedStudent.of(shape, layout, self.generator, self.teachers.select([self.tasks]))
        else:
            self.student = make_student(shape, layout, self.generator)
        self.student.fit(rows)
        self.optimiser = adam(self.student.parameters(), config.learning_rate)

    @property
    def policy(self) -> Student:
        """The policy as it is now, to be saved and evaluated."""
        return self.student

    def update(self) -> dict[str, Tensor]:
        """One step of the students on Eq. 3 to 5 under every embedding drawn, and of the classifier; returns the
        terms."""
        self.anneal()
        encoder = self.student.encoder
        assert isinstance(encoder, Mixture)
        chosen = some_tasks(self.tasks, self.config.tasks_per_step, self.generator)
        rows = self._batches(chosen)
        embeddings, teachers = encoder.embeddings, self.teachers
        if chosen is not None:
            told = torch.cat([chosen, chosen.new_tensor([self.tasks])])
            embeddings, teachers = embeddings[told], teachers.select(told)
        z = embeddings.unsqueeze(1).expand(-1, rows.shape[1], -1)
        batch, pair = self.layout.split(rows), self.layout.pair(rows)
        losses = self.student.losses(teachers, batch, pair, z, self.generator)
        context, label, valid = self._labelled(chosen)
        rivals = some_tasks(self.tasks, self.config.rivals, self.context_generator)
        losses["loss_evidence"] = evidence_loss(encoder, context, label, valid, rivals)
        step(self.optimiser, distillation_objective(losses))
        return self.counted(**losses, labelled_share=valid.mean(dtype=z.dtype))

    def _batches(self, chosen: Tensor | None) -> Tensor:
        """Rows `[T + 1, B, row]`: of every task drawn, with `foreign_share` from all of them; last, from all of
        them."""
        size = self.config.batch_size
        own = sample_rows(self.rows, size, self.generator, chosen)
        everybody = own.flatten(0, 1)
        foreign = round(self.config.foreign_share * size)
        picked = sample_indices(len(own), foreign, len(everybody), self.generator)
        untold = sample_indices(1, size, len(everybody), self.generator)
        told = torch.cat([own[:, foreign:], everybody[picked]], 1)
        return torch.cat([told, everybody[untold]])

    def _labelled(self, chosen: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Context transitions `[n, d_c]`, the task whose reward (or dynamics) each carries `[n]`, and whether it may
        count `[n]`: of every task drawn own ones, and others relabelled for a random partner where that is
        eligible."""
        tables, generator, layout = self.tables, self.context_generator, self.layout
        place = tables.pools.sample(self.config.context_size, generator, chosen)
        context = layout.context(gather_rows(self.rows, tables.rows_at(place, chosen), chosen)).flatten(0, 1)
        source = torch.arange(self.tasks, device=generator.device) if chosen is None else chosen
        source = source.unsqueeze(1).expand(place.shape)
        number = torch.randint(tables.partners, place.shape, generator=generator, device=generator.device)
        label = tables.partner(source, number)
        own = round(self.config.own_share * self.config.context_size)
        label[:, :own] = source[:, :own]
        i, j, t = label.flatten(), source.flatten(), place.flatten()
        mine, relabelled = i == j, tables.relabelled(layout, context, i, j, t)
        return torch.where(mine.unsqueeze(1), context, relabelled), i, mine | tables.may(i, j, t)


def evidence_loss(
    encoder: Mixture, context: Tensor, label: Tensor, valid: Tensor, rivals: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the tasks `label` `[n]` given single transitions `context` `[n, d_c]`, over those `valid`.

    With `rivals` `[m]`, a random subset of the K tasks, the sum over all other tasks in the softmax is that over the
    rivals times (K - 1) / m: an estimate that is right on average, of which the logarithm is a little low.
    """
    if rivals is None:
        losses = F.cross_entropy(encoder.read(context), label, reduction="none")
        return (losses * valid).sum() / valid.sum().clamp_min(1)
    own, others = encoder.read_some(context, label, rivals)
    same = rivals == label.unsqueeze(1)  # the label is no rival of its own
    standing = ((encoder.config.anchors - 1) / (len(rivals) - same.sum(1, keepdim=True)).clamp_min(1)).log()
    others = (others + standing).masked_fill(same, -torch.inf)
    losses = torch.cat([own.unsqueeze(1), others], 1).logsumexp(1) - own
    return (losses * valid).sum() / valid.sum().clamp_min(1)


def blind_teacher(returns: Tensor) -> int:
    """The teacher that is best on average, given `returns` `[M, n]` of M teachers on n tasks, NaN where not known: of
    those that are known on every task on which any is."""
    compared = ~returns.isnan().all(0)
    return int(returns[:, compared].mean(1).nan_to_num(-torch.inf).argmax())


def best_teachers(returns: Tensor) -> Tensor:
    """The best of M teachers `[K]` on each of K tasks, given `returns` `[M, K]`; its own where none is known there."""
    own = torch.arange(returns.shape[1], device=returns.device)
    return torch.where(returns.isnan().all(0), own, returns.nan_to_num(-torch.inf).argmax(0))
