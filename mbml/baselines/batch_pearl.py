"""Batch PEARL: soft actor-critic on a task embedding, from the batches alone (paper, appendix)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mbml.encoders import EncoderConfig, NetworkEncoder, make_encoder
from mbml.learner import Learner, Schedule
from mbml.losses import posterior_regulariser
from mbml.nets import StackedMLP, adam, soft_update, step
from mbml.policy import ContextPolicy
from mbml.rows import RowLayout, Rows, sample_rows
from mbml.sac import LOG_STD_MAX, LOG_STD_MIN, Squashed
from mbml.settings import Count, NotNegative, Positive, Share, Widths


@dataclass(frozen=True)
class BatchPEARLConfig(Schedule):
    """PEARL without collection; the defaults are the authors' for most environments."""

    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(embedding_size=5))
    """The context encoder."""
    hidden: Widths = (300, 300, 300)
    """Widths of the policy, of each critic and of the value network."""
    context_size: Count = 256
    """Context transitions per sampled task."""
    batch_size: Count = 256
    """Transitions per sampled task that the actor-critic learns from."""
    tasks_per_step: Count = 16
    """Tasks of one step, drawn with replacement."""
    kl_weight: NotNegative = 0.1
    """Weight of the posterior's divergence from the prior, summed over sampled tasks and dimensions."""
    reward_scale: Positive = 5.0
    """Factor of the rewards in the target; the temperature is 1."""
    discount: Share = 0.99
    """Discount factor."""
    tau: Share = 0.005
    """Polyak rate of the target value network."""
    policy_regulariser: NotNegative = 1e-3
    """Weight of the mean squares of the policy's mean before the tanh and of its log-std."""


class PEARLPolicy(ContextPolicy):
    """Context encoder and tanh-Gaussian policy pi(a | s, z), which acts by its mean."""

    kind = "pearl"
    config_type = BatchPEARLConfig
    encoder: NetworkEncoder

    def __init__(self, config: BatchPEARLConfig, layout: RowLayout, generator: torch.Generator) -> None:
        super().__init__(config, layout, generator)
        self.encoder = make_encoder(layout, config.encoder, generator)
        sizes = [layout.observation_size + config.encoder.embedding_size, *config.hidden, 2 * layout.action_size]
        self.actor = StackedMLP(1, sizes, generator=generator, output_scale=0.001)

    def decide(self, observation: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        """Actions `tanh(mean)` `[n, d_a]`; there is no noise."""
        head = self.actor(torch.cat([observation, z], -1).unsqueeze(0)).squeeze(0)
        return torch.tanh(head.chunk(2, dim=-1)[0])


class BatchPEARL(Learner):
    """The learner: `update` draws tasks, contexts and batches from all tasks' rows `[K, N, row]` and makes one step.

    Contexts have a generator of their own, as in `MultiTaskLearner`. The order `s | a | s' | r` of a context
    transition is the project's; the authors' `s | a | r | s'` is the same encoder with its inputs renamed.
    """

    constant = False  # the learning rate changes

    def __init__(self, config: BatchPEARLConfig, layout: RowLayout, rows: Rows, *generators: torch.Generator) -> None:
        self.config, self.layout, self.rows = config, layout, rows
        self.generator, self.context_generator = generators
        self.policy = PEARLPolicy(config, layout, self.generator)
        z = config.encoder.embedding_size
        self.critics = StackedMLP(2, [layout.pair_size + z, *config.hidden, 1], generator=self.generator)
        value_sizes = [layout.observation_size + z, *config.hidden, 1]
        self.value, self.target_value = (StackedMLP(1, value_sizes, generator=self.generator) for _ in range(2))
        self.target_value.load_state_dict(self.value.state_dict())
        self.target_value.requires_grad_(False)
        self.critic_optimiser = adam(
            [*self.policy.encoder.parameters(), *self.critics.parameters()], config.learning_rate
        )
        self.actor_optimiser = adam([*self.value.parameters(), *self.policy.actor.parameters()], config.learning_rate)

    def update(self) -> dict[str, Tensor]:
        """One step of encoder and critics, then of value network and policy; returns the losses.

        `kl` is the mean over the tasks drawn of the posterior's divergence from the prior; `policy_loss` leaves out the
        regularisers.
        """
        config, generator, encoder = self.config, self.generator, self.policy.encoder
        self.anneal()

        # Infer the tasks drawn, and draw one long batch [1, T * B, row], for they share all networks
        tasks = torch.randint(len(self.rows), (config.tasks_per_step,), generator=generator, device=generator.device)
        context = self.layout.context(sample_rows(self.rows, config.context_size, self.context_generator, tasks))
        belief = encoder.infer(context)
        z = belief.sample(generator).repeat_interleave(config.batch_size, dim=0).unsqueeze(0)
        rows = sample_rows(self.rows, config.batch_size, generator, tasks).flatten(0, 1).unsqueeze(0)
        batch = self.layout.split(rows)

        # Encoder and critics; only here does z carry gradient
        with torch.no_grad():
            next_value = self.target_value(torch.cat([batch.next_observation, z], -1))
            target = config.reward_scale * batch.reward + (1 - batch.terminated) * config.discount * next_value
        values = self.critics(torch.cat([self.layout.pair(rows), z], -1))
        q_loss = (values - target).square().mean((1, 2)).sum()
        step(self.critic_optimiser, q_loss + posterior_regulariser(encoder, belief, config.kl_weight))

        # Value network and policy, through the critics just updated
        z_fixed = z.detach()
        state = torch.cat([batch.observation, z_fixed], -1)
        head = self.policy.actor(state)
        action, log_density, *_ = Squashed.draw(head, generator)
        values = self.critics(torch.cat([batch.observation, action, z_fixed], -1), frozen=True).amin(0, keepdim=True)
        v_loss = (self.value(state) - (values - log_density).detach()).square().mean()
        policy_loss = (log_density - values).mean()
        # The two updates share no parameter: one backward serves both.
        step(self.actor_optimiser, v_loss + policy_loss + head_regulariser(head, config.policy_regulariser))

        soft_update(self.target_value, self.value, config.tau)
        kl, entropy = encoder.regulariser(belief).mean(), -log_density.mean()
        return self.counted(q_loss=q_loss, v_loss=v_loss, policy_loss=policy_loss, kl=kl, entropy=entropy)


def head_regulariser(head: Tensor, weight: float) -> Tensor:
    """Weighted mean squares of the mean before the tanh and of the log-std in a policy's outputs `[..., 2 d_a]`."""
    mean, log_std = head.chunk(2, dim=-1)
    log_std = log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
    return weight * (mean.square().mean() + log_std.square().mean())
