"""Contextual BCQ: batch-constrained Q-learning on all tasks at once, its networks told the task (paper, appendix)."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from mbml.encoders import make_encoder
from mbml.learner import Learner, Schedule
from mbml.losses import posterior_regulariser
from mbml.nets import StackedMLP, adam, select_stack, soft_update, step
from mbml.partners import some_tasks
from mbml.rows import RowLayout, Rows, sample_rows
from mbml.settings import Count, NotNegative, Whole, Widths, later
from mbml.students import GenerativeStudent, StudentConfig
from mbml.teachers.bcq import CandidateNetworks, TargetConfig, variational_loss
from mbml.teachers.contract import twin_error


@dataclass(frozen=True)
class ContextualBCQConfig(Schedule, TargetConfig):
    """Contextual BCQ; the defaults are the authors'."""

    student: StudentConfig = field(default_factory=StudentConfig)
    """Shapes of context encoder, each critic, VAE decoder and perturbation network; `kind` plays no role."""
    vae_encoder_hidden: Widths = (1024,) * 7
    """Widths of the VAE's encoder."""
    encoder_losses: Literal["critic_and_vae", "critic"] = "critic_and_vae"
    """Losses that train the context encoder: both in the authors' code, the value loss alone in the paper."""
    kl_weight: NotNegative = 0.0
    """Weight of the posterior's divergence from the prior, summed over tasks and dimensions; the authors have none."""
    context_size: Count = 128
    """Own context transitions per task and step."""
    batch_size: Count = 128
    """Transitions per task and step."""
    tasks_per_step: Whole = later(16)
    """Tasks of a step, drawn at random; all where there are no more, or with 0. A step's cost does not grow beyond."""
    vae_kl_weight: NotNegative = 0.5
    """Weight of the VAE's divergence."""


class ContextualBCQ(Learner):
    """One BCQ for K tasks: `update` draws its own contexts and batches from all tasks' rows `[K, N, row]`.

    Every network is shared by the tasks and takes z as its last input; the twin critics are a stack of two. Batches
    and contexts have a generator each.
    """

    constant = False  # the learning rate changes

    def __init__(
        self, config: ContextualBCQConfig, layout: RowLayout, rows: Rows, *generators: torch.Generator
    ) -> None:
        self.config, self.layout, self.rows = config, layout, rows
        self.generator, self.context_generator = generators
        shapes, actions = config.student, layout.action_size
        latent, z = 2 * actions, shapes.encoder.embedding_size
        inputs = layout.pair_size + z

        def network(*sizes: int, copies: int = 1) -> StackedMLP:
            return StackedMLP(copies, sizes, generator=self.generator, initialisation="torch")

        self.encoder = make_encoder(layout, shapes.encoder, self.generator)
        self.critics = network(inputs, *shapes.value_hidden, 1, copies=2)
        self.vae_encoder = network(inputs, *config.vae_encoder_hidden, 2 * latent)
        self.decoder = network(layout.observation_size + latent + z, *shapes.decoder_hidden, actions)
        self.perturbation = network(inputs, *shapes.perturbation_hidden, actions)
        self.target_critics = select_stack(self.critics, range(2)).requires_grad_(False)
        self.target_perturbation = select_stack(self.perturbation, range(1)).requires_grad_(False)
        self.vae_optimiser = adam([*self.vae_encoder.parameters(), *self.decoder.parameters()], config.learning_rate)
        self.critic_optimiser = adam(self.critics.parameters(), config.learning_rate)
        self.encoder_optimiser = adam(self.encoder.parameters(), config.learning_rate)
        self.perturbation_optimiser = adam(self.perturbation.parameters(), config.learning_rate)

    def update(self) -> dict[str, Tensor]:
        """One step of VAE, critics, context encoder, perturbation and targets, in this order; returns the losses.

        `kl` is the mean over tasks drawn of the posterior's divergence from the prior.
        """
        config, generator = self.config, self.generator
        self.anneal()

        # Infer every task drawn, and draw one long batch [1, T * B, row]
        tasks = some_tasks(len(self.rows), config.tasks_per_step, generator)
        context = self.layout.context(sample_rows(self.rows, config.context_size, self.context_generator, tasks))
        belief = self.encoder.infer(context)
        z = belief.sample(generator).repeat_interleave(config.batch_size, dim=0).unsqueeze(0)
        rows = sample_rows(self.rows, config.batch_size, generator, tasks).flatten(0, 1).unsqueeze(0)
        batch, pair = self.layout.split(rows), self.layout.pair(rows)
        fixed_z = z.detach()
        # z cut off from the encoder: what VAE and critics want of it adds up in its gradient.
        wanted_z = fixed_z.clone().requires_grad_()

        # VAE
        vae_z = wanted_z if config.encoder_losses == "critic_and_vae" else fixed_z
        code = self.vae_encoder(torch.cat([pair, vae_z], -1))
        vae_loss = variational_loss(code, self.decoder, batch, config.vae_kl_weight, generator, vae_z).sum()
        step(self.vae_optimiser, vae_loss)

        # Critics
        targets = CandidateNetworks(self.decoder, self.target_perturbation, self.target_critics)
        target = targets.td_target(batch, config, generator, fixed_z)
        critic_loss = twin_error(self.critics(torch.cat([pair, wanted_z], -1)), target).sum()
        step(self.critic_optimiser, critic_loss)

        # Context encoder: this product has the gradient of both losses in z, so it is passed backwards once for both
        assert wanted_z.grad is not None
        losses_through_z = (z * wanted_z.grad).sum()
        weight = config.kl_weight * (len(self.rows) / len(context))  # of a sum over all tasks
        step(self.encoder_optimiser, losses_through_z + posterior_regulariser(self.encoder, belief, weight))

        # Perturbation
        online = CandidateNetworks(self.decoder, self.perturbation, self.critics)
        actor_loss = online.perturbation_loss(batch.observation, generator, fixed_z).sum()
        step(self.perturbation_optimiser, actor_loss)

        # Targets
        soft_update(self.target_critics, self.critics, config.tau)
        soft_update(self.target_perturbation, self.perturbation, config.tau)
        kl = self.encoder.regulariser(belief).mean()
        return self.counted(vae_loss=vae_loss, critic_loss=critic_loss, actor_loss=actor_loss, kl=kl)

    @property
    def policy(self) -> GenerativeStudent:
        """Copies of the networks that act now: it infers z, generates, perturbs and chooses by the first critic."""
        student = GenerativeStudent(self.config.student, self.layout, torch.Generator()).to(self.generator.device)
        student.value_network = select_stack(self.critics, [0])
        for name in ("encoder", "decoder", "perturbation"):
            getattr(student, name).load_state_dict(getattr(self, name).state_dict())
        return student
