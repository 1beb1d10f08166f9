"""Distillation of K teachers into one task-conditioned policy, with the triplet loss (paper, section 4).

The full model and its ablations are one class with switches.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mbml.encoders import Belief
from mbml.learner import Learner, Schedule
from mbml.losses import (
    Triplets,
    distillation_objective,
    full_objective,
    hard_mining_triplet_loss,
    pair_triplet_losses,
    posterior_regulariser,
    triplet_loss,
)
from mbml.nets import adam, step
from mbml.partners import Ring, some_tasks
from mbml.relabel import RelabelTables
from mbml.rows import RowLayout, Rows, gather_rows, lengths_of, sample_rows
from mbml.settings import Count, NotNegative, Whole, later
from mbml.students import Student, StudentConfig, make_student
from mbml.teachers import Teachers


@dataclass(frozen=True)
class DistillConfig(Schedule):
    """The multi-task learner; the defaults are the authors' full model."""

    student: StudentConfig = field(default_factory=StudentConfig)
    """Which networks, and their shapes."""
    triplet: Literal["relabelled", "hard_mining", "none"] = "relabelled"
    """Triplet loss on relabelled transitions (Eq. 8-9), hard mining without relabelling (Eq. 11), or none."""
    union_context: bool = True
    """Infer z from M own and M relabelled transitions; otherwise from 2M own ones."""
    context_size: Count = 64
    """Context transitions M per task and step."""
    batch_size: Count = 128
    """State-action rows B per task and step."""
    kl_weight: NotNegative = 0.1
    """Weight beta of the posterior's divergence from the prior, summed over tasks and dimensions."""
    margin: NotNegative = 2.0
    """Triplet margin m."""
    triplet_weight: NotNegative = 1.0
    """Weight of the triplet loss."""
    partners: Whole = 0
    """Random other tasks j of a step that every task i is paired with; 0 takes all. Both the triplet loss and the
    relabelled part of z's context see the transitions of these alone."""
    tasks_per_step: Whole = later(16)
    """Tasks of a step, drawn at random; all where there are no more, or with 0. A step's cost does not grow beyond."""
    hard_contexts: Count = 10
    """Contexts N per task for hard mining."""
    hard_reduction: Literal["sum", "mean"] = "sum"
    """Hard mining adds up its anchors in the authors' code, the paper averages."""


class _Contexts(NamedTuple):
    """What one step infers z from: beliefs `[K, Z]`, the triplet term, and what is worth recording."""

    belief: Belief
    triplet: Tensor | None
    metrics: dict[str, Tensor]


class MultiTaskLearner(Learner):
    """The central learner: `update` draws its own batches from all tasks' rows and makes one step.

    Rows are `[K, N, row]`; `tables` may be None where the switches use no relabelled transition. Batches and contexts
    have a generator each, in this order, so that ablations with one seed see the same batches. Rows, teachers, tables
    and both generators are on one device.
    """

    constant = False  # the number of eligible transitions changes

    def __init__(
        self,
        config: DistillConfig,
        layout: RowLayout,
        rows: Rows,
        *generators: torch.Generator,
        teachers: Teachers,
        tables: RelabelTables | None = None,
    ) -> None:
        if not config.union_context and config.triplet == "relabelled":
            raise ValueError("triplet `relabelled` needs union_context: its contexts hold relabelled transitions.")
        if config.union_context and config.triplet == "hard_mining":
            raise ValueError("triplet `hard_mining` needs union_context off: it uses no relabelled transition.")
        if config.union_context and tables is None:
            raise ValueError("union_context needs relabelling tables.")
        self.config, self.layout, self.rows, self.teachers, self.tables = config, layout, rows, teachers, tables
        self.generator, self.context_generator = generators
        self.tasks = len(rows)
        self.student = make_student(config.student, layout, self.generator)
        self.student.fit(rows)
        self.optimiser = adam(self.student.parameters(), config.learning_rate)

    @property
    def policy(self) -> Student:
        """The policy as it is now, to be saved and evaluated."""
        return self.student

    def update(self) -> dict[str, Tensor]:
        """One step of encoder and students on Eq. 10, or on Eq. 6 where there is no triplet loss; returns the terms.

        Where not all tasks are drawn, every term's gradient is on average that of the term over all of them, except
        that partners and the hardest negatives are found among those drawn: they change what z is inferred from as
        `partners` does, and make Eq. 11 milder.
        """
        config = self.config
        self.anneal()
        chosen = self._chosen_tasks()

        # Infer every task
        contexts = self._relabelled_contexts(chosen) if config.union_context else self._own_contexts(chosen)
        z = contexts.belief.sample(self.generator).unsqueeze(1).expand(-1, config.batch_size, -1)

        # Distil every teacher under its task's z
        rows = sample_rows(self.rows, config.batch_size, self.generator, chosen)
        batch, pair = self.layout.split(rows), self.layout.pair(rows)
        teachers = self.teachers if chosen is None else self.teachers.select(chosen)
        losses = self.student.losses(teachers, batch, pair, z, self.generator)
        each = self.tasks / len(rows)  # of what is summed over tasks, a task of the step stands for so many
        losses["loss_kl"] = posterior_regulariser(self.student.encoder, contexts.belief, config.kl_weight * each)
        objective = distillation_objective(losses)
        if contexts.triplet is not None:
            losses["loss_triplet"] = contexts.triplet
            objective = full_objective(objective, contexts.triplet, config.triplet_weight)

        step(self.optimiser, objective)
        return self.counted(**losses) | contexts.metrics

    def _chosen_tasks(self) -> Tensor | None:
        """The tasks of this step; None: all."""
        size, ring = self.config.tasks_per_step, self.ring
        if ring is not None and 0 < size < self.tasks:  # strangers would have no labels for each other
            return ring.window(size, self.generator)
        return some_tasks(self.tasks, size, self.generator)

    @property
    def ring(self) -> Ring | None:
        """Who is whose partner where that is not everybody."""
        return self.tables.ring if self.config.union_context and self.tables else None

    def _own_contexts(self, chosen: Tensor | None) -> _Contexts:
        """Contexts of 2M own transitions; with hard mining N of them per task, one of which gives z."""
        config, encoder = self.config, self.student.encoder
        number = config.hard_contexts if config.triplet == "hard_mining" else 1
        own, _ = self._own_transitions(number * 2 * config.context_size, chosen)
        beliefs = encoder.infer(own.unflatten(1, (number, -1)))  # [T, N, Z]
        triplet = None
        if config.triplet == "hard_mining":
            triplet = hard_mining_triplet_loss(encoder, beliefs, config.margin, reduction=config.hard_reduction)
            if config.hard_reduction == "sum":
                triplet = triplet * (self.tasks / len(own))
        everyone = torch.arange(len(own), device=own.device)
        picked = torch.randint(number, (len(own),), generator=self.context_generator, device=own.device)
        return _Contexts(Belief(*(part[everyone, picked] for part in beliefs)), triplet, {})

    def _relabelled_contexts(self, chosen: Tensor | None) -> _Contexts:
        """Own and relabelled transitions of every task, each encoded once however many sets it is in."""
        encoder, generator, size = self.student.encoder, self.context_generator, self.config.context_size
        own, places = self._own_transitions(size, chosen)
        drawn = torch.arange(self.tasks, device=own.device) if chosen is None else chosen
        partners = self._partners(drawn)
        eligible, own_statistics, relabelled_statistics = self._encode(own, places, drawn, partners)

        # z's context: all M own and up to M random eligible relabelled transitions
        picked = random_subset(eligible.flatten(1), size, generator)
        belief = encoder.belief(own_statistics.sum(1) + _masked_sum(picked, relabelled_statistics.flatten(1, 2)))
        metrics = {"eligible_share": eligible.mean(dtype=own_statistics.dtype)}
        if self.config.triplet != "relabelled":
            return _Contexts(belief, None, metrics)

        # Triplets: c_j relabelled for i, as many of c_i, the same of c_j with their own labels
        subset = random_subset(torch.ones_like(eligible), eligible.sum(-1, keepdim=True), generator)
        triplets = Triplets(
            anchor=encoder.belief(relabelled_statistics.sum(2)),
            positive=encoder.belief(_masked_sum(subset, own_statistics.unsqueeze(1))),
            negative=encoder.belief(_masked_sum(eligible, own_statistics[partners])),
            valid=eligible.any(-1),
        )
        per_pair = pair_triplet_losses(encoder, triplets, self.config.margin)
        valid = triplets.valid
        metrics["loss_triplet_valid"] = (per_pair.detach() * valid).sum() / valid.sum().clamp_min(1)
        metrics["valid_pairs"] = valid.mean(dtype=own_statistics.dtype)
        return _Contexts(belief, triplet_loss(per_pair), metrics)

    def _own_transitions(self, count: int, chosen: Tensor | None) -> tuple[Tensor, Tensor]:
        """Random context transitions `[T, count, d_c]` of each task and their places in the pool `[T, count]`."""
        tables = self.tables if self.config.union_context else None
        places = (tables.pools if tables else lengths_of(self.rows)).sample(count, self.context_generator, chosen)
        index = tables.rows_at(places, chosen) if tables else places
        return self.layout.context(gather_rows(self.rows, index, chosen)), places

    def _partners(self, drawn: Tensor) -> Tensor:
        """Places `[T, P]` in `drawn` `[T]` of every task's partners."""
        wanted, size, ring = self.config.partners, len(drawn), self.ring
        if ring is None:
            return random_partners(size, wanted, self.context_generator)
        known = ring.knows(drawn.unsqueeze(1), drawn)
        # At its ends a window holds the partners of one side alone.
        least = ring.partners if size == self.tasks else max(1, min(ring.partners // 2, size - 1))
        keys = torch.rand(known.shape, generator=self.context_generator, device=drawn.device)
        return keys.masked_fill_(~known, 2.0).argsort(1)[:, : min(wanted or least, least)]

    def _encode(self, own: Tensor, places: Tensor, drawn: Tensor, partners: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode own transitions `[T, M, d_c]` of the tasks `drawn`, and those of partners `[T, P]` that may be
        relabelled.

        Returns which those are `[T, P, M]`, and statistics `[T, M, S]` and `[T, P, M, S]`, zero where not eligible.
        """
        tables, number = self.tables, own.shape[0] * own.shape[1]
        assert tables is not None
        eligible = tables.may(drawn.view(-1, 1, 1), drawn[partners].unsqueeze(-1), places[partners])
        i, p, m = eligible.nonzero(as_tuple=True)
        j = partners[i, p]
        relabelled = tables.relabelled(self.layout, own[j, m], drawn[i], drawn[j], places[j, m])
        statistics = self.student.encoder.statistics(torch.cat([own.flatten(0, 1), relabelled]))
        own_statistics = statistics[:number].unflatten(0, own.shape[:2])
        relabelled_statistics = statistics.new_zeros(*eligible.shape, statistics.shape[-1])
        return eligible, own_statistics, relabelled_statistics.index_put((i, p, m), statistics[number:])


def random_partners(tasks: int, wanted: int, generator: torch.Generator) -> Tensor:
    """Other tasks j for every one of K tasks i, `[K, P]`: a random subset of `wanted`, or with 0 all of them."""
    others = torch.arange(tasks - 1, device=generator.device).repeat(tasks, 1)
    if 0 < wanted < tasks - 1:
        keys = torch.rand(tasks, tasks - 1, generator=generator, device=generator.device)
        others = keys.argsort(1)[:, :wanted]
    return others + (others >= torch.arange(tasks, device=generator.device).unsqueeze(1))


def random_subset(mask: Tensor, count: Tensor | int, generator: torch.Generator) -> Tensor:
    """A uniformly random subset of the true entries along the last axis: `count` of them, or all where fewer."""
    keys = torch.rand(mask.shape, generator=generator, device=mask.device).masked_fill_(~mask, 2.0)
    ranks = keys.argsort(-1).argsort(-1)
    return mask & (ranks < count)


def _masked_sum(mask: Tensor, values: Tensor) -> Tensor:
    """Sum of `values` `[..., n, S]` over the members of `mask` `[..., n]`."""
    return (mask.to(values.dtype).unsqueeze(-2) @ values).squeeze(-2)
