"""Task inference: from transitions to statistics that add up, from those to a belief over the task embedding z.

The contract first, then the encoders; a new one is a class and its line in ENCODERS.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbml.nets import StackedMLP, Standardiser
from mbml.products import affine
from mbml.registry import Entry, Registry
from mbml.rows import RowLayout
from mbml.settings import Count, Positive, Widths

VARIANCE_FLOOR = 1e-7


def through(network: StackedMLP, *parts: Tensor) -> Tensor:
    """Outputs `[..., out]` of a stack of one for parts of its input, `[..., d]` each, joined in order."""
    joined = torch.cat(parts, dim=-1)
    return network(joined.flatten(0, -2).unsqueeze(0)).squeeze(0).unflatten(0, joined.shape[:-1])


class Belief(NamedTuple):
    """What is believed of the task embedding z: mean and variance of each dimension, `[..., Z]`."""

    mean: Tensor
    variance: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """Reparameterised draw z = mean + sqrt(variance) * eps, `[..., Z]`."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.variance.sqrt() * noise


@dataclass(frozen=True)
class EncoderConfig:
    """Which context encoder q_phi, and its shapes; the defaults are the authors' (paper, section 4)."""

    kind: str = "product"
    """One of `mbml.encoders.ENCODERS`."""
    hidden: Widths = (200, 200, 200)
    """Widths of its network."""
    embedding_size: Count = 20
    """Size Z of the task embedding."""
    standardised: bool = False
    """Standardise its inputs by the statistics of all tasks' rows, with s' - s in place of s'."""
    anchors: Count = 16
    """Learned embeddings between which a `mixture` weighs; `evidence` has one for each training task."""
    temperature: Positive = 1.0
    """What a `mixture` divides the summed evidence by; above 1 it believes its evidence less."""

    def __post_init__(self) -> None:
        ENCODERS[self.kind]


class Encoder(nn.Module, ABC):
    """What sees each context transition `[s, a, s', r]` alone; a set is the sum of its members' statistics.

    So one pass serves every set that a transition is in, and a belief can grow by one transition at a time.
    """

    kind: str
    """Its name in files."""
    embedding_size: int
    """Z."""
    weighed: int = 0
    """Learned embeddings, or tasks, that it weighs; 0: none."""
    temperature: float | None = None
    """What it divides the evidence for them by."""

    @abstractmethod
    def statistics(self, context: Tensor) -> Tensor:
        """Statistics `[..., n, S]` of single transitions `[..., n, d_c]`; those of a set are their (masked) sum."""

    @abstractmethod
    def belief(self, statistics: Tensor) -> Belief:
        """Belief `[..., Z]` given the sets that have `statistics` `[..., S]`; where they are 0, nothing was seen."""

    def divergence(self, a: Belief, b: Belief) -> Tensor:
        """How far `a` is from `b`, `[...]`, as the triplet losses measure it; need not be symmetric.

        Here the squared Euclidean distance of the means, for beliefs that are certain.
        """
        return (a.mean - b.mean).square().sum(-1)

    def weights(self, statistics: Tensor) -> Tensor:
        """Weights `[..., weighed + 1]` of what it weighs, the untold one last."""
        raise NotImplementedError(f"{type(self).__name__} weighs nothing.")

    def regulariser(self, belief: Belief) -> Tensor:
        """How far each belief is from what is believed when nothing was seen, `[...]` (second term of Eq. 3).

        Here 0, for beliefs that are bounded already.
        """
        return torch.zeros_like(belief.mean[..., 0])

    def infer(self, context: Tensor) -> Belief:
        """Beliefs `[..., Z]` given sets of transitions `[..., n, d_c]`."""
        return self.belief(self.statistics(context).sum(-2))


class NetworkEncoder(Encoder):
    """An encoder whose statistics come from one network."""

    def __init__(self, layout: RowLayout, config: EncoderConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.layout, self.config = layout, config
        self.kind, self.embedding_size = config.kind, config.embedding_size
        self.body = StackedMLP(1, [layout.context_size, *config.hidden, self.outputs], generator=generator)
        self.scale = Standardiser(layout.context_size, generator.device) if config.standardised else nn.Identity()

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Outputs of the network."""

    def read(self, context: Tensor) -> Tensor:
        """Outputs of the network `[..., n, outputs]` for transitions `[..., n, d_c]`."""
        return through(self.body, self.scale(self._inputs(context)))

    def fit(self, context: Tensor) -> None:
        """Learn from transitions `[n, d_c]` of all tasks how to standardise, where the configuration asks for it."""
        if isinstance(self.scale, Standardiser):
            self.scale.fit(self._inputs(context))

    def _inputs(self, context: Tensor) -> Tensor:
        if not self.config.standardised:
            return context
        observation, action, following, reward = self.layout.split_context(context)
        return torch.cat([observation, action, following - observation, reward], -1)


class ProductOfGaussians(NetworkEncoder):
    """The paper's encoder: a Gaussian factor per transition, whose product is the posterior (paper, section 4).

    Statistics are the natural parameters (precision, precision times mean), which add up under a product.

    The prior N(0, I) is not a factor; it is the belief given an empty set.
    """

    @property
    def outputs(self) -> int:
        """Mean and raw variance of each dimension."""
        return 2 * self.embedding_size

    def statistics(self, context: Tensor) -> Tensor:
        """Natural parameters `[..., 2Z]`; the variance of a factor is at least 1e-7."""
        mean, raw = self.read(context).chunk(2, dim=-1)
        precision = 1.0 / F.softplus(raw).clamp_min(VARIANCE_FLOOR)
        return torch.cat([precision, precision * mean], -1)

    def belief(self, statistics: Tensor) -> Belief:
        """Product of Gaussians of summed natural parameters; N(0, 1) where the precision is 0."""
        precision, precision_mean = statistics.chunk(2, dim=-1)
        variance = 1.0 / torch.where(precision == 0, torch.ones_like(precision), precision)
        return Belief(variance * precision_mean, variance)

    def divergence(self, a: Belief, b: Belief) -> Tensor:
        """KL(a || b) of diagonal Gaussians; logarithms are summed, so 20 dimensions cannot overflow."""
        ratio = a.variance / b.variance
        return 0.5 * (ratio - ratio.log() - 1.0 + (a.mean - b.mean).square() / b.variance).sum(-1)

    def regulariser(self, belief: Belief) -> Tensor:
        """KL(belief || N(0, I))."""
        return 0.5 * (belief.variance - belief.variance.log() - 1.0 + belief.mean.square()).sum(-1)


class MeanEmbedding(NetworkEncoder):
    """A deterministic encoder: the mean of bounded embeddings of the transitions (as in FOCAL's successors).

    Statistics are (embedding, 1); beliefs have variance 0, and nothing seen is the zero vector.

    The tanh bounds the squared distances of the triplet losses, which have no regulariser here. Z must be at least 2.
    """

    @property
    def outputs(self) -> int:
        """One for each dimension."""
        return self.embedding_size

    def statistics(self, context: Tensor) -> Tensor:
        """Embedding in (-1, 1) and the number 1, `[..., Z + 1]`."""
        # Normalised over its dimensions: without that all of them soon saturate, at the same ends for every task.
        embedding = torch.tanh(F.layer_norm(self.read(context), (self.embedding_size,)))
        return torch.cat([embedding, torch.ones_like(embedding[..., :1])], -1)

    def belief(self, statistics: Tensor) -> Belief:
        """The mean embedding, for certain."""
        mean = statistics[..., :-1] / statistics[..., -1:].clamp_min(1.0)
        return Belief(mean, torch.zeros_like(mean))


class Mixture(NetworkEncoder):
    """A belief about which of some learned embeddings is the task's: their mean, weighted by the evidence for each.

    Statistics are the log-probabilities of every anchor given a transition alone, and 1: the network is a classifier
    of single transitions, and evidence adds up. Nothing seen is an embedding of its own, the untold one. Beliefs have
    variance 0.
    """

    def __init__(self, layout: RowLayout, config: EncoderConfig, generator: torch.Generator) -> None:
        super().__init__(layout, config, generator)
        self.weighed, self.temperature = config.anchors, config.temperature
        shape = config.anchors + 1, config.embedding_size
        drawn = torch.empty(shape, device=generator.device)
        if not drawn.is_meta:  # there is nothing to fill there, and torch would import its compiler for it
            drawn.normal_(generator=generator)
        self.embeddings = nn.Parameter(drawn)

    @property
    def outputs(self) -> int:
        """A logit for each anchor."""
        return self.config.anchors

    def read_some(self, context: Tensor, own: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
        """Of transitions `[n, d_c]` the logits `[n]` of one anchor each, `own` `[n]`, and those `[n, m]` of anchors
        that are `shared` `[m]` by all; the others' are not computed."""
        hidden, (weights, biases) = self.scale(self._inputs(context)), self.body.layers
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            hidden = torch.relu(affine(hidden, weight[0], bias[0]))
        weight, bias = weights[-1][0].T.contiguous(), biases[-1][0, 0]  # a transition's row, read in one piece
        mine = torch.linalg.vecdot(hidden, weight.index_select(0, own)) + bias[own]
        return mine, affine(hidden, weight.index_select(0, shared).T, bias[shared].unsqueeze(0))

    def statistics(self, context: Tensor) -> Tensor:
        """Log-probabilities of the anchors, and the number 1, `[..., anchors + 1]`."""
        evidence = torch.log_softmax(self.read(context), -1)
        return torch.cat([evidence, torch.ones_like(evidence[..., :1])], -1)

    def weights(self, statistics: Tensor) -> Tensor:
        """Weights `[..., anchors + 1]` of all embeddings, the untold one last."""
        evidence, number = statistics[..., :-1], statistics[..., -1:]
        told = torch.softmax(evidence / self.config.temperature, -1)
        untold = (number == 0).to(told.dtype)
        return torch.cat([told * (1 - untold), untold], -1)

    def belief(self, statistics: Tensor) -> Belief:
        """The weighted mean of the embeddings, for certain."""
        mean = self.weights(statistics) @ self.embeddings
        return Belief(mean, torch.zeros_like(mean))


ENCODERS = Registry(
    "encoder",
    Entry("product", "product of Gaussian factors, as in the paper", ProductOfGaussians),
    Entry("mean", "deterministic mean of bounded embeddings", MeanEmbedding),
    Entry("mixture", "mean of learned embeddings, weighted by summed evidence", Mixture),
)


def make_encoder(layout: RowLayout, config: EncoderConfig, generator: torch.Generator) -> NetworkEncoder:
    """The encoder that `config` names, for context transitions of `layout`, on the generator's device."""
    return ENCODERS[config.kind].make(layout, config, generator)
