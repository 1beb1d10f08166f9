"""Batch-constrained Q-learning for one task, the textbook way."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from benchmarks.plain.nets import adam, minimise, mlp, polyak, split_row


class PlainBCQ:
    """`update` takes rows `[n, s | a | s' | r | terminated]`."""

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden: list[int],
        vae_hidden: list[int],
        candidates: int,
        generator: torch.Generator,
    ) -> None:
        self.observation_size, self.action_size, self.generator = observation_size, action_size, generator
        self.candidates, self.latent_size = candidates, 2 * action_size
        pair = observation_size + action_size
        self.actor = mlp([pair, *hidden, action_size])
        self.critics = [mlp([pair, *hidden, 1]) for _ in range(2)]
        self.encoder = mlp([pair, *vae_hidden, 2 * self.latent_size])
        self.decoder = mlp([observation_size + self.latent_size, *vae_hidden, action_size])
        self.target_actor, self.target_critics = copy.deepcopy(self.actor), copy.deepcopy(self.critics)
        self.vae_optimiser = adam(self.encoder, self.decoder)
        self.critic_optimiser = adam(*self.critics)
        self.actor_optimiser = adam(self.actor)

    def decode(self, observation: Tensor, latent: Tensor) -> Tensor:
        """Actions of latents."""
        return torch.tanh(self.decoder(torch.cat([observation, latent], -1)))

    def generate(self, observation: Tensor) -> Tensor:
        """Actions of random latents, clamped to half a standard deviation."""
        noise = torch.randn((len(observation), self.latent_size), generator=self.generator)
        return self.decode(observation, noise.clamp(-0.5, 0.5))

    @staticmethod
    def perturb(actor: torch.nn.Module, observation: Tensor, action: Tensor) -> Tensor:
        """`clip(a + 0.05 xi(s, a), -1, 1)`."""
        return (action + 0.05 * torch.tanh(actor(torch.cat([observation, action], -1)))).clamp(-1, 1)

    def update(self, rows: Tensor) -> dict[str, Tensor]:
        """One iteration: VAE, critics, perturbation network, targets."""
        observation, action, next_observation, reward, terminated = split_row(
            rows, self.observation_size, self.action_size
        )
        pair = torch.cat([observation, action], -1)

        mean, log_std = self.encoder(pair).chunk(2, dim=-1)
        std = log_std.clamp(-4, 15).exp()
        latent = mean + std * torch.randn(std.shape, generator=self.generator)
        divergence = -0.5 * (1 + torch.log(std**2) - mean**2 - std**2).mean()
        vae_loss = mse_loss(self.decode(observation, latent), action) + 0.5 * divergence
        minimise(self.vae_optimiser, vae_loss)

        with torch.no_grad():
            repeated = next_observation.repeat_interleave(self.candidates, 0)
            candidate = self.perturb(self.target_actor, repeated, self.generate(repeated))
            repeated_pair = torch.cat([repeated, candidate], -1)
            first, second = (critic(repeated_pair) for critic in self.target_critics)
            value = 0.75 * torch.min(first, second) + 0.25 * torch.max(first, second)
            value = value.view(-1, self.candidates).max(1, keepdim=True).values
            target = reward + (1 - terminated) * 0.99 * value
        critic_loss = mse_loss(self.critics[0](pair), target) + mse_loss(self.critics[1](pair), target)
        minimise(self.critic_optimiser, critic_loss)

        with torch.no_grad():
            generated = self.generate(observation)
        drawn = self.perturb(self.actor, observation, generated)
        actor_loss = -self.critics[0](torch.cat([observation, drawn], -1)).mean()
        minimise(self.actor_optimiser, actor_loss)

        for target_critic, critic in zip(self.target_critics, self.critics, strict=True):
            polyak(target_critic, critic)
        polyak(self.target_actor, self.actor)
        return {
            "vae_loss": vae_loss.detach(),
            "critic_loss": critic_loss.detach(),
            "actor_loss": actor_loss.detach(),
        }
