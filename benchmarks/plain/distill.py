"""Distillation with the triplet loss, the textbook way: task by task and pair by pair (paper, section 4; Eq. 3-9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, relu, softplus

from benchmarks.plain.nets import adam, mlp


class Posterior(NamedTuple):
    """Diagonal Gaussian, mean and variance `[Z]`."""

    mean: Tensor
    variance: Tensor


@dataclass
class Teacher:
    """The networks of one task's BCQ policy."""

    critic: nn.Module
    decoder: nn.Module
    perturbation: nn.Module


@dataclass
class Shapes:
    """Widths of the hidden layers, sizes and numbers of rows."""

    observation_size: int
    action_size: int
    embedding_size: int
    encoder: list[int]
    value: list[int]
    decoder: list[int]
    perturbation: list[int]
    context_size: int
    batch_size: int
    kl_weight: float = 0.1
    margin: float = 2.0
    learning_rate: float = 3e-4


class PlainDistiller:
    """Rows `[K, N, row]`, label tables `reward`, `eligible` `[K, K, N]` (first axis: the task labelled for)."""

    def __init__(
        self,
        shapes: Shapes,
        rows: Tensor,
        teachers: list[Teacher],
        reward: Tensor,
        eligible: Tensor,
        generator: torch.Generator,
        context_generator: torch.Generator,
    ) -> None:
        self.shapes, self.rows, self.teachers, self.reward, self.eligible = shapes, rows, teachers, reward, eligible
        self.generator, self.context_generator = generator, context_generator
        self.tasks, self.available = rows.shape[:2]
        s, a, z = shapes.observation_size, shapes.action_size, shapes.embedding_size
        self.encoder = mlp([2 * s + a + 1, *shapes.encoder, 2 * z])
        self.value = mlp([s + a + z, *shapes.value, 1])
        self.decoder = mlp([s + 2 * a + z, *shapes.decoder, a])
        self.perturbation = mlp([s + a + z, *shapes.perturbation, a])
        networks = self.encoder, self.value, self.decoder, self.perturbation
        self.optimisers = [adam(network, learning_rate=shapes.learning_rate) for network in networks]

    def update(self) -> dict[str, Tensor]:
        """One step of encoder and students."""
        context, triplet = self._contexts()
        noise = torch.randn((self.tasks, self.shapes.embedding_size), generator=self.generator)
        z = torch.stack([q.mean + q.variance.sqrt() * noise[i] for i, q in enumerate(context)])
        losses = {"loss_kl": self.shapes.kl_weight * sum(to_prior(q) for q in context), "loss_triplet": triplet}
        losses |= self._students(z)
        total = torch.stack(list(losses.values())).sum()  # disjoint parameters: one backward serves all four optimisers
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        total.backward()
        for optimiser in self.optimisers:
            optimiser.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def infer(self, context: Tensor) -> Posterior:
        """Product of Gaussians of a set of transitions `[n, d_c]`."""
        mean, raw = self.encoder(context).chunk(2, dim=-1)
        precision = 1 / softplus(raw).clamp_min(1e-7)
        variance = 1 / precision.sum(0)
        return Posterior(variance * (precision * mean).sum(0), variance)

    def _contexts(self) -> tuple[list[Posterior], Tensor]:
        size, generator = self.shapes.context_size, self.context_generator
        drawn = torch.randint(self.available, (self.tasks, size), generator=generator)
        own = [self.rows[i, drawn[i], :-1] for i in range(self.tasks)]
        union_keys = torch.rand((self.tasks, (self.tasks - 1) * size), generator=generator)
        subset_keys = torch.rand((self.tasks, self.tasks - 1, size), generator=generator)
        beliefs, terms = [], []
        for i in range(self.tasks):
            pool, keys = [], []
            for position, j in enumerate(j for j in range(self.tasks) if j != i):
                eligible = self.eligible[i, j, drawn[j]]
                count = int(eligible.sum())
                if count == 0:
                    terms.append(torch.tensor(self.shapes.margin))
                    continue
                negative = own[j][eligible]
                relabelled = negative.clone()
                relabelled[:, -1] = self.reward[i, j, drawn[j]][eligible]
                positive = own[i][subset_keys[i, position].argsort()[:count]]
                anchor = self.infer(relabelled)
                difference = divergence(anchor, self.infer(positive)) - divergence(anchor, self.infer(negative))
                terms.append(relu(difference + self.shapes.margin))
                pool.append(relabelled)
                keys.append(union_keys[i, position * size : (position + 1) * size][eligible])
            joined = [own[i]]
            if pool:
                joined.append(torch.cat(pool)[torch.cat(keys).argsort()[:size]])
            beliefs.append(self.infer(torch.cat(joined)))
        return beliefs, torch.stack(terms).mean()

    def _students(self, z: Tensor) -> dict[str, Tensor]:
        """Losses against the teachers; only the value carries gradient into z."""
        shapes, batch = self.shapes, self.shapes.batch_size
        s, a = shapes.observation_size, shapes.action_size
        drawn = torch.randint(self.available, (self.tasks, batch), generator=self.generator)
        latent = torch.randn((self.tasks, batch, 2 * a), generator=self.generator).clamp(-0.5, 0.5)
        rows = torch.stack([self.rows[i, drawn[i]] for i in range(self.tasks)])
        observation, pair = rows[..., :s], rows[..., : s + a]
        with torch.no_grad():
            values, actions, moves = [], [], []
            for i, teacher in enumerate(self.teachers):
                values.append(teacher.critic(pair[i]))
                actions.append(torch.tanh(teacher.decoder(torch.cat([observation[i], latent[i]], -1))))
                moves.append(torch.tanh(teacher.perturbation(torch.cat([observation[i], actions[i]], -1))))
            value, action, move = torch.stack(values), torch.stack(actions), torch.stack(moves)
        z = z.unsqueeze(1).expand(-1, batch, -1)
        fixed = z.detach()
        generated = torch.tanh(self.decoder(torch.cat([observation, latent, fixed], -1)))
        perturbed = torch.tanh(self.perturbation(torch.cat([observation, action, fixed], -1)))
        return {
            "loss_q": mse_loss(self.value(torch.cat([pair, z], -1)), value),
            "loss_g": mse_loss(generated, action),
            "loss_xi": mse_loss(perturbed, move),
        }


def divergence(a: Posterior, b: Posterior) -> Tensor:
    """KL(a || b)."""
    ratio = a.variance / b.variance
    return 0.5 * (ratio - ratio.log() - 1 + (a.mean - b.mean) ** 2 / b.variance).sum()


def to_prior(q: Posterior) -> Tensor:
    """KL(q || N(0, I))."""
    return divergence(q, Posterior(torch.zeros_like(q.mean), torch.ones_like(q.variance)))
