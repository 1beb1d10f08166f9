"""The likelihood teacher: no student at all, but the teacher of the training task that explains best what was seen."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from mbml.encoders import Belief, Encoder
from mbml.models import Ensemble, Target
from mbml.policy import ContextPolicy
from mbml.rows import RowLayout
from mbml.teachers import Teachers

_LOG_2PI = math.log(2 * math.pi)
_CHUNK = 4_096
_LEAST_NOISE = 1e-8


class LikelihoodEncoder(Encoder):
    """Which training task's ensembles make the transitions seen likeliest.

    Statistics are the log-likelihoods under every task's models, and 1. The belief is the one-hot vector of the
    likeliest task, or that of task `untold` where nothing was seen.
    """

    def __init__(self, models: Mapping[Target, Ensemble], own: Tensor, layout: RowLayout, untold: int) -> None:
        """`own` `[K, n, row]` are rows of every task, whose mean squared errors are its models' noise."""
        super().__init__()
        self.layout, self.untold, self._models = layout, untold, models
        self.noise = {t: (model.predict(layout.pair(own)).mean(1) - _target(layout, own, t)).square().mean(1)
                      for t, model in models.items()}  # fmt: skip

    @torch.no_grad()
    def statistics(self, context: Tensor) -> Tensor:
        """Log-likelihoods of reward, and of the next observation where that is modelled, `[..., n, K + 1]`."""
        parts = [self._log_likelihood(part) for part in context.flatten(0, -2).split(_CHUNK)]
        return F.pad(torch.cat(parts), (0, 1), value=1.0).unflatten(0, context.shape[:-1])

    def _log_likelihood(self, context: Tensor) -> Tensor:
        total = torch.zeros(len(context), next(iter(self._models.values())).tasks)
        for target, model in self._models.items():
            members = model.predict(self.layout.pair(context).unsqueeze(0).expand(model.tasks, -1, -1))
            mean = members.mean(1)
            spread = (members - mean.unsqueeze(1)).square().mean(1)
            variance = spread + self.noise[target].unsqueeze(1).clamp_min(_LEAST_NOISE)
            error = (mean - _target(self.layout, context, target)).square() / variance
            total -= 0.5 * (error + variance.log() + _LOG_2PI).sum(-1).T
        return total

    def belief(self, statistics: Tensor) -> Belief:
        """One-hot `[..., K]`."""
        likelihood, number = statistics[..., :-1], statistics[..., -1]
        best = torch.where(number == 0, self.untold, likelihood.argmax(-1))
        mean = F.one_hot(best, likelihood.shape[-1]).to(likelihood.dtype)
        return Belief(mean, torch.zeros_like(mean))


class TeacherBank(ContextPolicy):
    """K teachers, of which the one acts whose task the transitions seen are likeliest under."""

    def __init__(self, teachers: Teachers, encoder: LikelihoodEncoder, renewed_every: int) -> None:
        super().__init__(None, encoder.layout, Generator())
        self.teachers, self.encoder, self.renewed_every = teachers, encoder, renewed_every

    def act(self, observation: Tensor, z: Tensor, generator: Generator) -> Tensor:
        """Actions `[n, d_a]` for observations `[n, d_s]`, each by the teacher that its one-hot `z` `[n, K]` names."""
        actions = self.teachers.act(observation.expand(self.teachers.tasks, -1, -1), generator)
        return actions[z.argmax(-1), torch.arange(len(z))]


def _target(layout: RowLayout, rows: Tensor, target: Target) -> Tensor:
    _, _, following, reward = layout.split_context(layout.context(rows))
    return reward if target == "reward" else following
