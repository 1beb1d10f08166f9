"""MetaGenRL on one fixed batch: a policy trained on a learned objective (Kirsch et al. 2020).

The public MetaGenRL made offline, with one agent. Where the paper is silent the public code decides: Glorot
weights; V(s) = Q1(s, pi(s)) enters the objective without its gradient and is normalised like the reward; the target
policy follows the policy as the target critics follow the critics; every step draws its own segments; the inner step
descends the sum of the errors over the first half of the segments, and all of them judge the policy that it leaves.
Unlike there, V(s') is that of the stored next observation, and padding counts nowhere but in the divisor of the
means. Not taken over from the authors: segments that begin with the terminal row of the stretch before.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from mbml.learner import Learner
from mbml.nets import adam, soft_update, step
from mbml.rows import RowLayout, Rows, Transitions, gather_rows, scalars_of
from mbml.seeding import generator_of, seed_of
from mbml.settings import Count, NotNegative, Positive, Share, Widths
from mbml.teachers.td3_bc import smoothed
from mbml.training import Training, averaged

if TYPE_CHECKING:
    from mbml.rollout import EnvStack

ERROR_SCALE = 1e-3


@dataclass(frozen=True)
class MetaGenRLConfig:
    """MetaGenRL on the batch of one task; the defaults are the authors'."""

    hidden: Widths = (350, 350)
    """Widths of policy and critics."""
    objective_hidden: Widths = (32, 32, 32)
    """Widths of the learned objective's three perceptrons."""
    lstm: Count = 32
    """Units of the learned objective's LSTM."""
    steps: Count = 20_000
    """Update rounds; the authors plot 200 epochs of 100."""
    evaluation_every: Count = 10
    """Rounds between evaluations on the true training task."""
    evaluation_episodes: Count = 3
    """Episodes per evaluation."""
    segments: Count = 100
    """Segments in one step of the critics, and in one of the policy."""
    objective_segments: Count = 200
    """Segments in one step of the learned objective."""
    segment_length: Count = 20
    """Transitions T of a segment; shorter ones are padded."""
    policy_every: Count = 2
    """Rounds between steps of the policy and the target networks."""
    objective_every: Count = 2
    """Rounds between steps of the learned objective."""
    learning_rate: Positive = 1e-3
    """Adam learning rate of all networks."""
    clip: Positive = 1.0
    """Largest global norm of the gradients of policy and objective."""
    inner_step: Positive = 1e-3
    """Size of the differentiable step of the policy in the objective's loss."""
    discount: Share = 0.99
    """Discount factor."""
    tau: Share = 0.005
    """Polyak rate of the target networks."""
    target_noise: NotNegative = 0.2
    """Standard deviation of the noise on the target policy's actions."""
    target_noise_clip: NotNegative = 0.5
    """Bound of that noise."""
    bonus_on_terminal: bool = True
    """Add 1 to the target of a terminal transition, as the authors' code does."""
    anneal: Count = 10_000
    """Environment steps over which the learned objective takes over from Q1 in the policy's loss."""
    steps_per_evaluation: Count = 600
    """Environment steps that one evaluation counts for in the annealing, whatever it really takes."""
    rounds_per_evaluation: Count = 10
    """Rounds after which the annealing counts another evaluation."""


PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "hidden": (16, 16), "objective_hidden": (8, 8), "lstm": 4, "steps": 8, "evaluation_every": 4,
        "evaluation_episodes": 1, "segments": 4, "objective_segments": 4, "segment_length": 5,
    },
    "laptop": {"hidden": (128, 128), "steps": 2_000, "evaluation_every": 20, "segments": 50, "objective_segments": 50},
}  # fmt: skip


class Segments(NamedTuple):
    """S runs of at most T consecutive rows, `[S, T, row]`, zero where `mask` `[S, T, 1]` is."""

    rows: Tensor
    mask: Tensor


def stretches(terminated: Tensor) -> tuple[Tensor, Tensor]:
    """First row and length of every stretch of `terminated` `[N]` that ends with a terminal row or with the data.

    A time limit ends none, because the authors' buffer flags terminal states only: a stretch may hold several episodes
    and a segment of it may straddle a reset.
    """
    ends = torch.cat([terminated[:-1].nonzero().flatten() + 1, torch.tensor([len(terminated)])])
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    return starts, ends - starts


class SegmentSampler:
    """Draws segments of rows `[1, N, row]`: a uniformly random stretch, then a uniformly random place in it."""

    def __init__(self, rows: Rows, length: int) -> None:
        self.rows, self.length = rows, length
        self.starts, self.lengths = stretches(scalars_of(rows, 0)[:, 1])

    def draw(self, count: int, generator: torch.Generator) -> Segments:
        """So many segments."""
        stretch = torch.randint(len(self.starts), (count,), generator=generator)
        available = self.lengths[stretch]
        places = (available - self.length + 1).clamp_min(1)
        offset = (torch.rand(count, generator=generator, dtype=torch.float64) * places).long()
        time = torch.arange(self.length)
        mask = time < available.unsqueeze(1)
        index = torch.where(mask, (self.starts[stretch] + offset).unsqueeze(1) + time, 0)
        rows = gather_rows(self.rows, index.view(1, -1)).view(*index.shape, -1)
        weight = mask.to(rows.dtype).unsqueeze(-1)
        return Segments(rows * weight, weight)


class HalfSquare(nn.Module):
    """ReLU on the first half of the units, the square on the others."""

    def forward(self, x: Tensor) -> Tensor:
        """Activations `[..., d]`."""
        first, second = x.chunk(2, dim=-1)
        return torch.cat([torch.relu(first), second.square()], -1)


def glorot(kind: Callable[..., nn.Module], *sizes: int, generator: torch.Generator) -> Any:
    """A layer with Glorot weights and zero biases, as TensorFlow begins; nothing is drawn but from `generator`."""
    layer = nn.utils.skip_init(kind, *sizes)
    for parameter in layer.parameters():
        if parameter.dim() == 1:
            nn.init.zeros_(parameter)
        else:
            nn.init.xavier_uniform_(parameter, generator=generator)
    return layer


def hidden_layers(
    sizes: Sequence[int], activation: type[nn.Module], generator: torch.Generator, *, layer_norm: bool = False
) -> nn.Sequential:
    """Linear layers of `sizes`, each followed by its activation and, with `layer_norm`, by a layer norm."""
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [glorot(nn.Linear, inputs, outputs, generator=generator), activation()]
        layers += [nn.LayerNorm(outputs)] if layer_norm else []
    return nn.Sequential(*layers)


def normed_mlp(sizes: Sequence[int], activation: type[nn.Module], generator: torch.Generator) -> nn.Sequential:
    """A perceptron of `sizes` with layer norms and a linear output."""
    body = hidden_layers(sizes[:-1], activation, generator, layer_norm=True)
    return nn.Sequential(body, glorot(nn.Linear, sizes[-2], sizes[-1], generator=generator))


def make_policy(layout: RowLayout, hidden: Sequence[int], generator: torch.Generator) -> nn.Module:
    """A policy that maps observations `[..., d_s]` to actions `[..., d_a]`."""
    sizes = [layout.observation_size, *hidden, layout.action_size]
    return nn.Sequential(normed_mlp(sizes, nn.ReLU, generator), nn.Tanh())


class LearnedObjective(nn.Module):
    """The learned objective: an error for every step of a segment, for the policy to minimise through its actions."""

    def __init__(self, hidden: Sequence[int], lstm: int, generator: torch.Generator) -> None:
        super().__init__()
        self.action_features = hidden_layers([2, *hidden], HalfSquare, generator)
        self.other_features = hidden_layers([4, *hidden], HalfSquare, generator)
        # A cell and not nn.LSTM, whose kernels cannot all be differentiated twice.
        self.cell = glorot(nn.LSTMCell, 2 * hidden[-1], lstm, generator=generator)
        with torch.no_grad():
            self.cell.bias_ih[lstm : 2 * lstm] = 1.0  # the forget gate, open at first as in TensorFlow
        self.error = normed_mlp([lstm, *hidden, 1], HalfSquare, generator)

    def forward(self, batch: Transitions, mask: Tensor, action: Tensor, values: Tensor) -> Tensor:
        """Errors `[S, T, 1]` of the policy's `action` `[S, T, d_a]`, given `values` V(s), V(s') `[S, T, 2]`."""
        length = mask.shape[1]
        time = (torch.arange(length).to(mask) / length).view(1, -1, 1).expand_as(mask)
        value, next_value = standardised(values, mask).split(1, dim=-1)
        others = [standardised(batch.reward, mask), time, next_value * (1 - batch.terminated), value]
        actions = self.action_features(torch.stack([batch.action, action], -1)).mean(-2)
        features = torch.cat([actions, self.other_features(torch.cat(others, -1))], -1)
        return torch.tanh(ERROR_SCALE * self.error(self._backwards(features, mask))) / ERROR_SCALE

    def _backwards(self, features: Tensor, mask: Tensor) -> Tensor:
        """States `[S, T, lstm]` of the LSTM, run from the last step to the first; padding leaves it at its start."""
        hidden = cell = features.new_zeros(len(features), self.cell.hidden_size)
        states = []
        for x, weight in zip(reversed(features.unbind(1)), reversed(mask.unbind(1)), strict=True):
            hidden, cell = (state * weight for state in self.cell(x, (hidden, cell)))
            states.append(hidden)
        return torch.stack(states[::-1], 1)


def standardised(x: Tensor, mask: Tensor) -> Tensor:
    """`x` `[S, T, n]` shifted and scaled to mean 0 and variance 1 over the entries that `mask` `[S, T, 1]` keeps."""
    count = mask.sum() * x.shape[-1]
    centred = x - (x * mask).sum() / count
    variance = (centred.square() * mask).sum() / count
    return centred / (variance + 1e-8).sqrt()


class MetaGenRL(Learner):
    """One agent and its learned objective on rows `[1, N, row]` of one task; `update` draws its own segments."""

    def __init__(self, config: MetaGenRLConfig, layout: RowLayout, rows: Rows, generator: torch.Generator) -> None:
        self.config, self.layout, self.generator = config, layout, generator
        self.sampler = SegmentSampler(rows, config.segment_length)
        self.policy = make_policy(layout, config.hidden, generator)
        critic_sizes = [layout.pair_size, *config.hidden, 1]
        self.critics = nn.ModuleList(normed_mlp(critic_sizes, nn.ReLU, generator) for _ in range(2))
        self.objective = LearnedObjective(config.objective_hidden, config.lstm, generator)
        self.target_policy = copy.deepcopy(self.policy).requires_grad_(False)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.policy_optimiser = adam(self.policy.parameters(), config.learning_rate)
        self.critic_optimiser = adam(self.critics.parameters(), config.learning_rate)
        self.objective_optimiser = adam(self.objective.parameters(), config.learning_rate)

    @property
    def progress(self) -> float:
        """Weight p of the learned objective in the policy's loss, by the environment steps of the authors' loop."""
        config = self.config
        evaluations = self.steps_done // config.rounds_per_evaluation + 1
        return min(1.0, evaluations * config.steps_per_evaluation / config.anneal)

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        """Actions `[n, d_a]` for observations `[n, d_s]`, without noise."""
        return self.policy(observation)

    def update(self) -> dict[str, Tensor]:
        """One round: the critics, then the policy with the targets, then the objective; the losses of those due."""
        config, losses = self.config, {}
        draw = partial(self.sampler.draw, generator=self.generator)
        losses["critic_loss"] = self._critic_loss(draw(config.segments))
        step(self.critic_optimiser, losses["critic_loss"])
        if self.steps_done % config.policy_every == 0:
            losses["policy_loss"] = self._policy_loss(draw(config.segments))
            clipped_step(self.policy_optimiser, losses["policy_loss"], self.policy, config.clip)
            soft_update(self.target_policy, self.policy, config.tau)
            soft_update(self.target_critics, self.critics, config.tau)
        if self.steps_done % config.objective_every == 0:
            losses["objective_loss"] = self._objective_loss(draw(config.objective_segments))
            clipped_step(self.objective_optimiser, losses["objective_loss"], self.objective, config.clip)
        return self.counted(**losses)

    def _critic_loss(self, segments: Segments) -> Tensor:
        """Both critics' squared errors, each a mean over the padded segments."""
        target = self._td_target(self.layout.split(segments.rows))
        pair = self.layout.pair(segments.rows)
        errors = torch.stack([(critic(pair) - target).square() * segments.mask for critic in self.critics])
        return errors.mean((1, 2, 3)).sum()

    @torch.no_grad()
    def _td_target(self, batch: Transitions) -> Tensor:
        config = self.config
        noise = config.target_noise, config.target_noise_clip
        action = smoothed(self.target_policy(batch.next_observation), *noise, self.generator)
        pair = torch.cat([batch.next_observation, action], -1)
        value = torch.minimum(*(critic(pair) for critic in self.target_critics))
        target = batch.reward + (1 - batch.terminated) * config.discount * value
        return target + batch.terminated if config.bonus_on_terminal else target

    def _policy_loss(self, segments: Segments) -> Tensor:
        """`p L_obj - (1 - p) Q1(s, pi(s))`, a mean over the padded segments."""
        observation = self.layout.split(segments.rows).observation
        action = self.policy(observation)
        value = self._first_critic(observation, action)
        errors = self._errors(segments, action, value.detach())
        p = self.progress
        return ((p * errors - (1 - p) * value) * segments.mask).mean()

    def _objective_loss(self, segments: Segments) -> Tensor:
        """Minus Q1 of the policy that one step on the learned objective leaves; differentiable in the objective."""
        learned_from = Segments(*(part[: len(part) // 2] for part in segments))
        observation = self.layout.split(learned_from.rows).observation
        value = self._value(observation)

        def inner_loss(parameters: dict[str, Tensor]) -> Tensor:
            action = functional_call(self.policy, parameters, (observation,))
            return (self._errors(learned_from, action, value) * learned_from.mask).sum()

        parameters = {name: p.detach() for name, p in self.policy.named_parameters()}
        gradients = grad(inner_loss)(parameters)
        moved = {name: p - self.config.inner_step * gradients[name] for name, p in parameters.items()}
        observation = self.layout.split(segments.rows).observation
        action = functional_call(self.policy, moved, (observation,))
        return -(self._first_critic(observation, action) * segments.mask).mean()

    def _errors(self, segments: Segments, action: Tensor, value: Tensor) -> Tensor:
        batch = self.layout.split(segments.rows)
        values = torch.cat([value, self._value(batch.next_observation)], -1)
        return self.objective(batch, segments.mask, action, values)

    @torch.no_grad()
    def _value(self, observation: Tensor) -> Tensor:
        return self._first_critic(observation, self.policy(observation))

    def _first_critic(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.critics[0](torch.cat([observation, action], -1))


def clipped_step(optimiser: torch.optim.Optimizer, loss: Tensor, network: nn.Module, clip: float) -> None:
    """One step of `network` alone, whatever else `loss` went through, on gradients of global norm at most `clip`."""
    parameters = list(network.parameters())
    optimiser.zero_grad(set_to_none=True)
    loss.backward(inputs=parameters)
    nn.utils.clip_grad_norm_(parameters, clip)
    optimiser.step()


def metagenrl_training(
    config: MetaGenRLConfig,
    layout: RowLayout,
    rows: Rows,
    make_envs: Callable[[int], EnvStack],
    task: int,
    seed: int | str,
) -> Training[MetaGenRL]:
    """The training of one agent on the rows `[1, N, row]` of its task, evaluated there on the way.

    `make_envs(copies)` builds `copies` environments of the task; `task` is its index. Evaluations play the policy
    without noise, on random numbers that depend on the round alone; the authors' add noise of 0.1, and play uniform
    actions for 10K steps.
    """
    from mbml.evaluate import evaluate_actor  # here, because a list of all methods needs no simulator

    learner = MetaGenRL(config, layout, rows, generator_of(seed, "metagenrl", task))
    envs = make_envs(config.evaluation_episodes)

    def evaluated(step: int, losses: dict[str, Tensor]) -> list[dict[str, float]]:
        seeds = [seed_of(seed, "metagenrl", "evaluation", task, step, copy) for copy in range(len(envs))]
        score = float(evaluate_actor(learner.act, envs, 1, seeds).mean())
        return [{"task": task, "return": score} | point for point in averaged(step, losses)]

    return Training(learner, tuple, config.steps, config.evaluation_every, evaluated, unit="rounds")
