"""The likelihood teacher: no student at all, but the teacher of the training task that explains best what was seen.

As a method, the bank, nothing is distilled: what is handed out is all teachers and all ensembles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from mbml.encoders import Belief, Encoder
from mbml.evidence import blind_teacher
from mbml.learner import Learner
from mbml.models import Ensemble, EnsembleConfig, Target
from mbml.nets import StackedMLP
from mbml.policy import ContextPolicy
from mbml.rows import RowLayout, Rows, spread_rows
from mbml.settings import Count, Whole
from mbml.teachers import TEACHERS, Teachers, of_shapes

_LOG_2PI = math.log(2 * math.pi)
_CHUNK = 4_096
_LEAST_NOISE = 1e-8
_MOST_EVIDENCE = 1e6
"""Against a task, of a single transition. Sums of more would no longer tell what is added to them."""
_OWN_ROWS, _MOST_OF_ALL = 2_048, 131_072
"""Rows of each task, and of all together, that the models' noise is taken from."""


@dataclass(frozen=True)
class BankConfig:
    """The bank of the teachers of all training tasks; it has nothing to learn, and so one snapshot."""

    teacher: str | None = None
    """Kind of its teachers, one of `mbml.teachers.TEACHERS`; None takes the run's."""
    renewed_every: Whole = 20
    """Steps between two choices of a teacher; 0: at the beginning of each episode alone."""
    steps = snapshot_every = 1  # no fields: nobody can choose them
    snapshots = (1,)

    def __post_init__(self) -> None:
        if self.teacher is not None:
            TEACHERS[self.teacher]


class LikelihoodEncoder(Encoder):
    """Which training task's ensembles make the transitions seen likeliest.

    Statistics are the log-likelihoods under every task's models, less the largest, and 1. The belief is the one-hot
    vector of the likeliest task, or that of task `untold` where nothing was seen.
    """

    kind = "likelihood"

    def __init__(self, models: Mapping[Target, Ensemble], layout: RowLayout, untold: int) -> None:
        super().__init__()
        self.layout, self.untold, self._models = layout, untold, dict(models)
        self.embedding_size = self.weighed = next(iter(models.values())).tasks
        self.networks = nn.ModuleDict({target: model.network for target, model in models.items()})
        sizes = {target: (self.weighed, model.network.sizes[-1]) for target, model in models.items()}
        where = next(self.networks.parameters()).device
        made = {target: nn.Parameter(torch.ones(size, device=where), False) for target, size in sizes.items()}
        self.noise = nn.ParameterDict(made)

    @torch.no_grad()
    def fit(self, own: Tensor) -> None:
        """Take mean squared errors on every task's rows `[K, n, row]` for its models' noise `[K, out]`."""
        for target, model in self._models.items():
            error = model.predict(self.layout.pair(own)).mean(1) - self._target(self.layout.context(own), target)
            self.noise[target].copy_(error.square().mean(1))

    @torch.no_grad()
    def statistics(self, context: Tensor) -> Tensor:
        """Log-likelihoods of reward, and of the next observation where that is modelled, less the largest, `[..., n,
        K + 1]`."""
        rows = context.flatten(0, -2)
        # A graph is for any number of rows, which cannot be cut into chunks.
        chunks = [rows] if torch.compiler.is_exporting() else rows.split(_CHUNK)
        found = torch.cat([self._log_likelihood(part) for part in chunks])
        return F.pad(found, (0, 1), value=1.0).unflatten(0, context.shape[:-1])

    def _log_likelihood(self, context: Tensor) -> Tensor:
        found = []
        for target, model in self._models.items():
            members = model.predict(self.layout.pair(context).unsqueeze(0).expand(model.tasks, -1, -1))
            mean = members.mean(1)
            spread = (members - mean.unsqueeze(1)).square().mean(1)
            variance = spread + self.noise[target].unsqueeze(1).clamp_min(_LEAST_NOISE)
            error = (mean - self._target(context, target)).square() / variance
            found.append(-0.5 * (error + variance.log() + _LOG_2PI).sum(-1).T)
        together = torch.stack(found).sum(0)
        return (together - together.amax(-1, keepdim=True)).clamp_min(-_MOST_EVIDENCE)

    def _target(self, context: Tensor, target: Target) -> Tensor:
        _, _, following, reward = self.layout.split_context(context)
        return reward if target == "reward" else following

    def weights(self, statistics: Tensor) -> Tensor:
        """Posterior `[..., K + 1]` of every task from equal odds, that of having seen nothing last."""
        number = statistics[..., -1:]
        told = torch.softmax(statistics[..., :-1], -1) * (number > 0)
        return torch.cat([told, (number == 0).to(told.dtype)], -1)

    def belief(self, statistics: Tensor) -> Belief:
        """One-hot `[..., K]`."""
        likelihood, number = statistics[..., :-1], statistics[..., -1]
        best = torch.where(number == 0, self.untold, likelihood.argmax(-1))
        mean = F.one_hot(best, self.weighed).to(likelihood.dtype)
        return Belief(mean, torch.zeros_like(mean))


@dataclass(frozen=True)
class BankShape:
    """What of a bank its weights do not say."""

    tasks: Count
    teachers: Mapping[str, Any]
    """Fields of the stack of teachers, of a network its sizes."""
    models: Mapping[Target, EnsembleConfig]
    untold: Whole
    """The blind teacher, which acts where nothing was seen."""
    renewed_every: Whole

    def __post_init__(self) -> None:
        if self.untold >= self.tasks:
            raise ValueError(f"untold is {self.untold}; it should be below {self.tasks}")


class TeacherBank(ContextPolicy):
    """K teachers, of which the one acts whose task the transitions seen are likeliest under."""

    kind = "bank"
    config_type = BankShape
    encoder: LikelihoodEncoder

    def __init__(self, config: BankShape, layout: RowLayout, generator: Generator) -> None:
        def network(sizes: list[int], each: int = 1) -> StackedMLP:
            return StackedMLP(each * config.tasks, sizes, generator=generator)

        sizes = {"reward": 1, "next_observation": layout.observation_size}
        models: dict[Target, Ensemble] = {}
        for target, c in config.models.items():
            members = network([layout.pair_size, *c.hidden, sizes[target]], c.members)
            models[target] = Ensemble.of_networks(c, layout, target, [members])
        encoder = LikelihoodEncoder(models, layout, config.untold)
        self._hold(config, of_shapes(config.teachers, config.tasks, generator), encoder, generator)

    @classmethod
    def of(cls, teachers: Teachers, encoder: LikelihoodEncoder, renewed_every: int) -> Self:
        """The bank of these teachers, which are not copied."""
        models: dict[Target, Any] = {target: model.config for target, model in encoder._models.items()}
        bank = cls.__new__(cls)
        shape = BankShape(teachers.tasks, teachers.shapes(), models, encoder.untold, renewed_every)
        bank._hold(shape, teachers, encoder, Generator())
        return bank

    def _hold(self, config: BankShape, teachers: Teachers, encoder: LikelihoodEncoder, generator: Generator) -> None:
        super().__init__(config, encoder.layout, generator)
        self.teachers, self.networks = teachers, nn.ModuleDict(teachers.networks())
        self.encoder, self.renewed_every = encoder, config.renewed_every
        if teachers.candidates:
            self.noise_shape = teachers.candidates, 2 * encoder.layout.action_size

    def act(self, observation: Tensor, z: Tensor, generator: Generator) -> Tensor:
        """Actions `[n, d_a]` for observations `[n, d_s]`, each by the teacher that its one-hot `z` `[n, K]` names."""
        return self._named(z, self.teachers.act(observation.expand(self.teachers.tasks, -1, -1), generator))

    def decide(self, observation: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        """The same from given noise, which every teacher takes."""
        everybody = self.teachers.tasks
        seen, latent = observation.expand(everybody, -1, -1), noise.expand(everybody, *[-1] * noise.ndim)
        return self._named(z, self.teachers.decide(seen, latent))

    def _named(self, z: Tensor, actions: Tensor) -> Tensor:
        return (actions * z.T.unsqueeze(-1)).sum(0)


class BankLearner(Learner):
    """Its one update finds how far each task's models err on its own rows, the noise of their likelihood.

    `returns` `[K, K]` are those of every teacher on every training task, NaN where they are not known.
    """

    config: BankConfig

    def __init__(
        self,
        config: BankConfig,
        layout: RowLayout,
        rows: Rows,
        *generators: Generator,
        teachers: Teachers,
        models: Mapping[Target, Ensemble],
        returns: Tensor,
    ) -> None:
        encoder = LikelihoodEncoder(models, layout, blind_teacher(returns))
        self.config, self._rows = config, rows
        self.policy = TeacherBank.of(teachers, encoder, config.renewed_every)

    def update(self) -> dict[str, Tensor]:
        """Fit the noise; its mean over tasks and outputs, by what is predicted."""
        encoder = self.policy.encoder
        encoder.fit(own_rows(self._rows))
        return self.counted(**{f"error_{target}": noise.mean() for target, noise in encoder.noise.items()})


def own_rows(rows: Rows) -> Tensor:
    """Rows `[K, n, row]` of every task that the models' noise is taken from."""
    return spread_rows(rows, min(_OWN_ROWS, max(1, _MOST_OF_ALL // len(rows))))
