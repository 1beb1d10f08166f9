"""Whether what an entity shows fits any training task: an unfamiliarity from 0 to 1, for every kind of encoder.

A few small networks per training task predict reward and next observation from (s, a). How badly a transition fits a
task is the Cauchy error log(1 + error^2 / (noise^2 + spread^2)), which adds up over transitions and lets no single one
decide; the noise is the size of the errors on rows that the networks did not learn from, and the spread is theirs, so
that a place where a task has few rows speaks neither for nor against it. The best fit of any task, as a mean over
everything seen, is compared with the same of stretches of such rows under the best *other* task: so a task between
the training tasks is as familiar as they are to each other, and the score is the share of those stretches that fit
better. Reward and next observation are judged apart, and the higher share counts. Of very many training tasks some
have such networks, evenly spread: what fits none of them may still be familiar where they lie as far apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from mbml.deploy.description import Calibration
from mbml.encoders import Belief, Encoder
from mbml.nets import StackedMLP, Standardiser, adam, step
from mbml.partners import evenly
from mbml.policy import PolicyError, in_short
from mbml.rows import RowLayout
from mbml.seeding import generator_of
from mbml.serialise import load_tree, save_tree
from mbml.training import run

_MEMBERS, _HIDDEN = 3, (64, 64)
MOST_TASKS = 64
"""Training tasks at most that have networks: they are compared with each other, and all of them run with every step."""
_STEPS, _BATCH, _RATE = 1_000, 128, 3e-3
_CHUNK = 25
"""Steps in one call of `advance`."""
MOST_ROWS, _MOST_OF_ALL = 20_000, 1_000_000
"""Rows of a task that are looked at, its last ones, and of all tasks together."""
_BLOCKS, _EVERY = 20, 4
"""Each task's rows are cut into so many blocks, of which every fourth is held out."""
_LENGTHS = (1, 3, 10, 30, 100, 300, 1_000)
_LEAST_STRETCHES = 20
_QUANTILES = 201
_LEAST_NOISE, _MOST_ERROR = 1e-3, 1e12


class TaskModels(nn.Module):
    """Networks for each of K tasks, at most MOST_TASKS, from (s, a) to reward and change of the observation, all
    standardised."""

    noise: Tensor

    def __init__(self, layout: RowLayout, network: StackedMLP) -> None:
        super().__init__()
        self.layout, self.network = layout, network
        outputs, here = 1 + layout.observation_size, torch.device("cpu")
        self.seen, self.wanted = Standardiser(layout.pair_size, here), Standardiser(outputs, here)
        self.register_buffer("noise", torch.ones(outputs))

    @property
    def tasks(self) -> int:
        """K."""
        return self.network.stack // _MEMBERS

    def errors(self, context: Tensor) -> Tensor:
        """Errors `[K, members, n, 1 + d_s]` on transitions `[1, n, d_c]`, or on each task's own `[K, n, d_c]`."""
        observation, action, following, reward = self.layout.split_context(context)
        pair = self.seen(torch.cat([observation, action], -1))
        wanted = self.wanted(torch.cat([reward, following - observation], -1))
        if len(pair) > 1:
            pair = pair.repeat_interleave(_MEMBERS, 0)
        return self.network(pair).unflatten(0, (-1, _MEMBERS)) - wanted.unsqueeze(1)

    def misfits(self, context: Tensor) -> Tensor:
        """Of transitions `[n, d_c]` those of reward and of next observation to every task, and 1: `[n, 2 K + 1]`."""
        errors = self.errors(context.unsqueeze(0))
        mean = errors.mean(1, keepdim=True)
        spread = (errors - mean).square().sum(1) / (_MEMBERS - 1)  # var() warns where there is no transition
        misfits = (mean.squeeze(1).square() / (self.noise.square() + spread)).clamp_max(_MOST_ERROR).log1p()
        reward, following = misfits[..., 0].T, misfits[..., 1:].mean(-1).T
        return torch.cat([reward, following, torch.ones_like(reward[:, :1])], -1)

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        scales = {name: value for name, value in self.state_dict().items() if not name.startswith("network.")}
        save_tree(path, {"network": self.network.save(), "state": scales})

    @classmethod
    def load(cls, path: Path, layout: RowLayout, tasks: int) -> Self:
        """What `save` wrote of so many training tasks; raises PolicyError for anything else, or for other sizes."""
        try:
            tree = load_tree(path)
            models = cls(layout, StackedMLP.load(tree["network"]).requires_grad_(False))
            missing, unknown = models.load_state_dict(tree["state"], strict=False)
            if unknown or any(not name.startswith("network.") for name in missing):
                raise ValueError("its scales are others")
            sizes = models.network.stack, models.network.sizes[0], models.network.sizes[-1]
            if sizes != (min(tasks, MOST_TASKS) * _MEMBERS, layout.pair_size, 1 + layout.observation_size):
                raise ValueError(f"it holds no networks of {tasks} tasks for this policy")
            models.misfits(torch.zeros(1, layout.context_size))
        except Exception as error:  # whatever a stranger's file brings about: nothing of it was run
            raise PolicyError(f"{path} is damaged: {in_short(error)}.") from None
        finite = all(bool(value.isfinite().all()) for value in models.state_dict().values())
        if not finite or not all(
            bool((part > 0).all()) for part in (models.noise, models.seen.scale, models.wanted.scale)
        ):
            raise PolicyError(f"{path} is damaged: its numbers should be finite, and its scales above 0.")
        return models


class Familiarity(nn.Module):
    """Task models and their calibration: from sums of misfits to an unfamiliarity."""

    reward: Tensor
    next_observation: Tensor
    lengths: Tensor

    def __init__(self, models: TaskModels, calibration: Calibration) -> None:
        super().__init__()
        self.models, self.calibration = models, calibration
        for name in ("lengths", "reward", "next_observation"):
            self.register_buffer(name, torch.tensor(getattr(calibration, name), dtype=torch.float32), persistent=False)

    @property
    def size(self) -> int:
        """Width of misfits."""
        return 2 * self.models.tasks + 1

    def misfits(self, context: Tensor) -> Tensor:
        """Misfits `[..., size]` of transitions `[..., d_c]`; those of a set are their sum."""
        return self.models.misfits(context.flatten(0, -2)).unflatten(0, context.shape[:-1])

    def unfamiliarity(self, misfits: Tensor) -> Tensor:
        """From 0 to 1, `[...]`, of sets with summed `misfits` `[..., size]`; 0 where nothing was seen."""
        number = misfits[..., -1:]
        reward, following = (misfits[..., :-1] / number.clamp_min(1)).chunk(2, -1)
        line = ((self.lengths <= number).sum(-1) - 1).clamp_min(0)
        shares = [
            (part.amin(-1, keepdim=True) > levels[line]).to(misfits.dtype).mean(-1)
            for part, levels in ((reward, self.reward), (following, self.next_observation))
        ]
        return torch.maximum(*shares) * (number.squeeze(-1) > 0)


class GuardedEncoder(Encoder):
    """An encoder whose statistics also hold the misfits, and that believes nothing of whom it finds unfamiliar.

    `threshold` is the unfamiliarity above which a task is left untold; None: never.
    """

    def __init__(self, encoder: Encoder, familiarity: Familiarity, threshold: float | None) -> None:
        super().__init__()
        self.encoder, self.familiarity, self.threshold = encoder, familiarity, threshold

    def statistics(self, context: Tensor) -> Tensor:
        """Those of the encoder and the misfits `[..., n, S + size]`."""
        return torch.cat([self.encoder.statistics(context), self.familiarity.misfits(context)], -1)

    def split(self, statistics: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's statistics and the misfits."""
        return statistics[..., : -self.familiarity.size], statistics[..., -self.familiarity.size :]

    def belief(self, statistics: Tensor) -> Belief:
        """The encoder's belief; that of nothing seen for the unfamiliar."""
        own, misfits = self.split(statistics)
        if self.threshold is not None:
            strange = self.familiarity.unfamiliarity(misfits) > self.threshold
            own = torch.where(strange.unsqueeze(-1), torch.zeros_like(own), own)
        return self.encoder.belief(own)


class FamiliarityTraining:
    """Learn the networks on rows `[N_k, row]` of K >= 2 tasks, each in the order in which they happened; a Process."""

    unit = "steps"
    total = _STEPS

    def __init__(self, layout: RowLayout, rows: Sequence[Tensor], seed: int | str = 0) -> None:
        rows = [rows[place] for place in evenly(len(rows), MOST_TASKS)]
        most = min(MOST_ROWS, _MOST_OF_ALL // len(rows))
        parts = [_held_out(layout.context(own[-most:])) for own in rows]
        self.learnt, self.kept = torch.cat([learnt for learnt, _ in parts]), [held for _, held in parts]
        self.lengths = torch.tensor([len(learnt) for learnt, _ in parts]).unsqueeze(1)
        self.generator, self.done = generator_of(seed, "familiarity"), 0
        sizes = [layout.pair_size, *_HIDDEN, 1 + layout.observation_size]
        network = StackedMLP(len(rows) * _MEMBERS, sizes, generator=self.generator, initialisation="torch")
        self.models = TaskModels(layout, network)
        observation, action, following, reward = layout.split_context(self.learnt)
        self.models.seen.fit(torch.cat([observation, action], -1))
        self.models.wanted.fit(torch.cat([reward, following - observation], -1))
        self.optimiser = adam(network.parameters(), _RATE)

    def advance(self) -> Mapping[str, Tensor]:
        """Some steps; the mean square of the last one's errors, standardised."""
        starts, tasks, error = self.lengths.cumsum(0) - self.lengths, len(self.lengths), torch.empty(0)
        for done in range(self.done, min(self.done + _CHUNK, self.total)):
            self.optimiser.param_groups[0]["lr"] = _RATE * (1 - done / self.total)
            drawn = torch.rand(tasks, _BATCH, generator=self.generator) * self.lengths
            drawn = starts + drawn.long().clamp_max(self.lengths - 1)
            error = self.models.errors(self.learnt[drawn]).square().mean((2, 3))
            step(self.optimiser, error.sum())
            self.done = done + 1
        return {"loss": error.detach().mean()}

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimiser, generator and steps done."""
        network, optimiser = self.models.network.state_dict(), self.optimiser.state_dict()
        return {"network": network, "optimiser": optimiser, "rng": self.generator.get_state(), "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.models.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["rng"])
        self.done = state["done"]

    def calibrated(self) -> Familiarity:
        """What was learned, compared with the rows that were held out; after the last step."""
        self.models.network.requires_grad_(False)
        with torch.no_grad():
            errors = [self.models.errors(torch.cat(held).unsqueeze(0))[k].mean(0) for k, held in enumerate(self.kept)]
            noise = torch.cat([own.abs() for own in errors]).median(0).values
            self.models.noise.copy_(noise.clamp_min(_LEAST_NOISE))
            return Familiarity(self.models, _calibrated(self.models, self.kept))


def fit_familiarity(layout: RowLayout, rows: Sequence[Tensor], seed: int | str = 0) -> Familiarity:
    """Learn and calibrate on rows `[N_k, row]` of K >= 2 tasks, each in the order in which they happened."""
    run(training := FamiliarityTraining(layout, rows, seed))
    return training.calibrated()


def _held_out(context: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Transitions to learn from, and blocks of others; all of them for both where they are very few."""
    blocks = [block for block in context.tensor_split(_BLOCKS) if len(block)]
    held = blocks[_EVERY - 1 :: _EVERY]
    if not held:
        return context, [context]
    return torch.cat([block for place, block in enumerate(blocks) if place % _EVERY != _EVERY - 1]), held


def _calibrated(models: TaskModels, kept: Sequence[Sequence[Tensor]]) -> Calibration:
    """Quantiles over all tasks' held-out stretches of their best fit to another task."""
    tasks = len(kept)
    misfits = []
    for k, blocks in enumerate(kept):
        foreign = [models.misfits(block)[:, :-1].unflatten(1, (2, tasks)) for block in blocks]
        misfits += [torch.cat([part[..., :k], part[..., k + 1 :]], -1) for part in foreign]
    levels, lengths = torch.linspace(0, 1, _QUANTILES), []
    lines: list[list[list[float]]] = []
    for length in _LENGTHS:
        stretches = [part[: len(part) // length * length].unflatten(0, (-1, length)) for part in misfits]
        best = torch.cat([part.mean(1).amin(-1) for part in stretches if len(part)] or [torch.empty(0, 2)])
        if length > 1 and len(best) < _LEAST_STRETCHES:
            break
        lengths.append(length)
        lines.append(best.quantile(levels, 0).T.tolist())
    reward, following = ([line[part] for line in lines] for part in (0, 1))
    return Calibration(lengths, reward, following)
