"""Distillation of K teachers into one task-conditioned policy, with the triplet loss (specification, sections 4, 5).

The full model and its ablations are one class with switches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from mbml.context import Factors, Gaussian, posterior
from mbml.losses import (
    action_distillation_loss,
    hard_mining_triplet_loss,
    posterior_regulariser,
    relabelled_triplet_loss,
    value_distillation_loss,
)
from mbml.nets import adam, anneal, step
from mbml.policy import Student, StudentConfig
from mbml.relabel import RelabelTables
from mbml.rows import RowLayout, Rows, gather_rows, sample_indices
from mbml.teachers import Teachers
from mbml.teachers.bcq import clamped_latents


@dataclass(frozen=True)
class DistillConfig:
    """The multi-task learner; the defaults are the authors' full model."""

    student: StudentConfig = field(default_factory=StudentConfig)
    """Network shapes."""
    triplet: Literal["relabelled", "hard_mining", "none"] = "relabelled"
    """Triplet loss on relabelled transitions (Eq. 8-9), hard mining without relabelling (Eq. 11), or none."""
    union_context: bool = True
    """Infer z from M own and M relabelled transitions (C7); otherwise from 2M own ones."""
    steps: int = 100_000
    """Gradient steps."""
    snapshot_every: int = 10_000
    """Steps between snapshots that are evaluated."""
    context_size: int = 64
    """Context transitions M per task and step."""
    batch_size: int = 128
    """State-action rows B per task and step."""
    learning_rate: float = 3e-4
    """Adam learning rate of all networks."""
    final_learning_rate: float = 1.0
    """Share of the learning rate that is left at the last step, reached linearly; 1 keeps it constant, as the paper."""
    kl_weight: float = 0.1
    """Weight beta of the posterior's divergence from the prior, summed over tasks and dimensions (C1)."""
    margin: float = 2.0
    """Triplet margin m."""
    triplet_weight: float = 1.0
    """Weight of the triplet loss."""
    partners: int = 0
    """Random other tasks j per task i and step in the triplet loss; 0 takes all of them."""
    hard_contexts: int = 10
    """Contexts N per task for hard mining."""
    hard_reduction: Literal["sum", "mean"] = "sum"
    """Hard mining adds up its anchors in the authors' code, the paper averages (C9)."""


METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "no_triplet": {"triplet": "none"},
    "no_relabelling": {"triplet": "hard_mining", "union_context": False},
    "neither": {"triplet": "none", "union_context": False},
}
"""The full model and its ablations as changes of the full model's configuration (section 5)."""


@dataclass
class _Contexts:
    """What one step infers z from: combined posterior `[K, Z]` and the triplet term."""

    belief: Gaussian
    triplet: Tensor | None
    metrics: dict[str, Tensor]


class MultiTaskLearner:
    """The central learner: `update` draws its own batches from all tasks' rows and makes one step.

    Rows are `[K, N, row]`; `tables` may be None where the switches use no relabelled transition. Batches and contexts
    have a generator each, so that ablations with one seed see the same batches. Rows, teachers, tables and both
    generators are on one device.
    """

    def __init__(
        self,
        config: DistillConfig,
        layout: RowLayout,
        rows: Rows,
        teachers: Teachers,
        tables: RelabelTables | None,
        generator: torch.Generator,
        context_generator: torch.Generator,
    ) -> None:
        if not config.union_context and config.triplet == "relabelled":
            raise ValueError("triplet `relabelled` needs union_context: its contexts hold relabelled transitions")
        if config.union_context and config.triplet == "hard_mining":
            raise ValueError("triplet `hard_mining` needs union_context off: it uses no relabelled transition")
        if config.union_context and tables is None:
            raise ValueError("union_context needs relabelling tables")
        self.config, self.layout, self.rows, self.teachers, self.tables = (
            config,
            layout,
            rows,
            teachers,
            tables,
        )
        self.generator, self.context_generator = generator, context_generator
        self.tasks = rows.shape[0]
        self.student = Student(config.student, layout, generator)
        self.optimiser = adam(self.student.parameters(), config.learning_rate)
        self.steps_done = 0
        self._pool_index: Tensor | None = None  # where contexts come from; None is all rows
        if config.union_context and tables is not None and tables.index.shape[1] < rows.shape[1]:
            self._pool_index = tables.index

    @property
    def policy(self) -> Student:
        """The policy as it is now, to be saved and evaluated."""
        return self.student

    def update(self) -> dict[str, Tensor]:
        """One step of encoder and students on L_tri + L_KL + L_Q + L_G + L_xi; returns the terms."""
        config, tasks = self.config, self.tasks
        progress = self.steps_done / config.steps
        anneal([self.optimiser], config.learning_rate, config.final_learning_rate, progress)
        contexts = self._relabelled_contexts() if config.union_context else self._own_contexts()
        z = contexts.belief.sample(self.generator)

        # Batch and teacher targets
        indices = sample_indices(tasks, config.batch_size, self.rows.shape[1], self.generator)
        rows = gather_rows(self.rows, indices)
        latent = clamped_latents((tasks, config.batch_size, self.student.latent_size), self.generator)
        batch = self.layout.split(rows)
        with torch.no_grad():
            teacher_value = self.teachers.value(self.layout.pair(rows))
            teacher_action = self.teachers.generate(batch.observation, latent)
            teacher_perturbation = self.teachers.perturb(batch.observation, teacher_action)

        # Students; only the value carries gradient into z
        z_rows = z.unsqueeze(1).expand(-1, config.batch_size, -1)
        z_fixed = z_rows.detach()
        student = self.student
        losses = {
            "loss_q": value_distillation_loss(student.value(batch.observation, batch.action, z_rows), teacher_value),
            "loss_kl": posterior_regulariser(contexts.belief, config.kl_weight),
            "loss_g": action_distillation_loss(student.generate(batch.observation, latent, z_fixed), teacher_action),
            "loss_xi": action_distillation_loss(
                student.perturb(batch.observation, teacher_action, z_fixed), teacher_perturbation
            ),
        }
        # The parameter sets of the four updates are disjoint and share one optimiser setting: one backward serves all.
        total = torch.stack(list(losses.values())).sum()
        if contexts.triplet is not None:
            losses["loss_triplet"] = contexts.triplet
            total = total + config.triplet_weight * contexts.triplet
        step(self.optimiser, total)
        self.steps_done += 1
        return {name: loss.detach() for name, loss in losses.items()} | contexts.metrics

    def _own_contexts(self) -> _Contexts:
        """Contexts of 2M own transitions; with hard mining N of them per task, one of which gives z."""
        config = self.config
        number = config.hard_contexts if config.triplet == "hard_mining" else 1
        factors = self.student.encoder(self._own_rows(number * 2 * config.context_size)[0])
        sums = [f.unflatten(1, (number, -1)).sum(2) for f in factors]
        posteriors = posterior(sums[0], sums[1])
        triplet = None
        if config.triplet == "hard_mining":
            triplet = hard_mining_triplet_loss(posteriors, config.margin, reduction=config.hard_reduction)
        device = self.context_generator.device
        chosen = torch.randint(number, (self.tasks,), generator=self.context_generator, device=device)
        everyone = torch.arange(self.tasks, device=device)
        return _Contexts(Gaussian(*(p[everyone, chosen] for p in posteriors)), triplet, {})

    def _relabelled_contexts(self) -> _Contexts:
        """Own and relabelled transitions of every task, each encoded once however many sets it is in."""
        config, size, generator = self.config, self.config.context_size, self.context_generator
        own, indices = self._own_rows(size)
        partners = self._partners()
        relabelled, eligible = self._relabel(own, indices, partners)
        own_factors, relabelled_factors = self._encode(own, relabelled, eligible)

        # Combined context: all M own and up to M random eligible relabelled transitions
        chosen = random_subset(eligible.flatten(1), size, generator).view_as(eligible)
        combined = [
            o.sum(1) + _masked_sum(chosen.flatten(1), r.flatten(1, 2))
            for o, r in zip(own_factors, relabelled_factors, strict=True)
        ]
        belief = posterior(combined[0], combined[1])
        metrics = {"eligible_share": eligible.float().mean()}
        if config.triplet != "relabelled":
            return _Contexts(belief, None, metrics)

        subset = random_subset(torch.ones_like(eligible), eligible.sum(-1, keepdim=True), generator)
        anchor = posterior(*(f.sum(2) for f in relabelled_factors))
        positive = posterior(*(_masked_sum(subset, f.unsqueeze(1)) for f in own_factors))
        negative = posterior(*(_masked_sum(eligible, f[partners]) for f in own_factors))
        result = relabelled_triplet_loss(anchor, positive, negative, eligible.any(-1), config.margin)
        metrics |= {"loss_triplet_valid": result.loss_valid, "valid_pairs": result.valid_share}
        return _Contexts(belief, result.loss, metrics)

    def _own_rows(self, count: int) -> tuple[Tensor, Tensor]:
        """Random context transitions `[K, count, d_c]` of each task and their places in the pool `[K, count]`."""
        pool = self._pool_index
        available = self.rows.shape[1] if pool is None else pool.shape[1]
        indices = sample_indices(self.tasks, count, available, self.context_generator)
        rows = gather_rows(self.rows, indices if pool is None else pool.gather(1, indices))
        return self.layout.context(rows), indices

    def _partners(self) -> Tensor:
        """Other tasks j for every task i, `[K, P]`: all of them, or a random subset (unbiased for the mean)."""
        tasks, wanted = self.tasks, self.config.partners
        device = self.context_generator.device
        others = torch.arange(tasks - 1, device=device).repeat(tasks, 1)
        if 0 < wanted < tasks - 1:
            keys = torch.rand(tasks, tasks - 1, generator=self.context_generator, device=device)
            others = keys.argsort(1)[:, :wanted]
        return others + (others >= torch.arange(tasks, device=device).unsqueeze(1))

    def _relabel(self, own: Tensor, indices: Tensor, partners: Tensor) -> tuple[Tensor, Tensor]:
        """Transitions of task j with task i's labels: the eligible ones `[n, d_c]` and the mask `[K, P, M]`."""
        tables = self.tables
        assert tables is not None
        pool = tables.reward.shape[-1]
        task = torch.arange(self.tasks, device=own.device).view(-1, 1, 1)
        flat = (task * self.tasks + partners.unsqueeze(-1)) * pool + indices[partners]
        eligible = tables.eligible.view(-1)[flat]
        i, p, t = eligible.nonzero(as_tuple=True)
        relabelled = own[partners[i, p], t]
        labels = flat[i, p, t]
        relabelled[:, -1] = tables.reward.view(-1)[labels]
        if tables.next_observation is not None:
            size = self.layout.observation_size
            replaced = tables.next_observation.view(-1, size)[labels]
            relabelled[:, self.layout.pair_size : self.layout.pair_size + size] = replaced
        return relabelled, eligible

    def _encode(self, own: Tensor, relabelled: Tensor, eligible: Tensor) -> tuple[Factors, Factors]:
        """Factors of own `[K, M, Z]` and relabelled transitions `[K, P, M, Z]` (zero where not eligible)."""
        tasks, size = own.shape[:2]
        encoded = self.student.encoder(torch.cat([own.flatten(0, 1), relabelled]))
        number = tasks * size
        own_factors = Factors(*(f[:number].view(tasks, size, -1) for f in encoded))
        where = eligible.flatten().nonzero().squeeze(1)
        relabelled_factors = Factors(
            *(
                f.new_zeros(eligible.numel(), f.shape[-1]).index_copy(0, where, f[number:]).view(*eligible.shape, -1)
                for f in encoded
            )
        )
        return own_factors, relabelled_factors

    def state_dict(self) -> dict[str, Any]:
        """Student, optimiser, generators and step count."""
        return {
            "student": self.student.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "context_generator": self.context_generator.get_state(),
            "steps_done": self.steps_done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.student.load_state_dict(state["student"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        self.context_generator.set_state(state["context_generator"])
        self.steps_done = state["steps_done"]


def random_subset(mask: Tensor, count: Tensor | int, generator: torch.Generator) -> Tensor:
    """A uniformly random subset of the true entries along the last axis: `count` of them, or all where fewer."""
    keys = torch.rand(mask.shape, generator=generator, device=mask.device).masked_fill_(~mask, 2.0)
    ranks = keys.argsort(-1).argsort(-1)
    return mask & (ranks < count)


def _masked_sum(mask: Tensor, values: Tensor) -> Tensor:
    """Sum of `values` `[..., n, Z]` over the members of `mask` `[..., n]`."""
    return (mask.to(values.dtype).unsqueeze(-2) @ values).squeeze(-2)
