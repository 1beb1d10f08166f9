"""A small multi-task learner, and one step of it written pair by pair and row by row in float64."""

import torch

from mbml.distill import DistillConfig, MultiTaskLearner
from mbml.encoders import Belief, EncoderConfig
from mbml.methods import METHODS
from mbml.nets import StackedMLP
from mbml.relabel import RelabelTables, pool_indices
from mbml.settings import changed
from mbml.students import StudentConfig
from mbml.teachers import TEACHERS
from tests.mbml.toys import LAYOUT, clone, forward, layers_of, naive_kl, naive_posterior, random_rows, seeded, trainable

K, N, M, B, Z = 4, 12, 5, 6, 3
STUDENT = StudentConfig(
    encoder=EncoderConfig(hidden=(8, 8), embedding_size=Z),
    value_hidden=(9, 7),
    decoder_hidden=(8, 6),
    perturbation_hidden=(7, 7),
    acting_candidates=4,
)
SMALL = DistillConfig(student=STUDENT, context_size=M, batch_size=B, hard_contexts=3, learning_rate=1e-3)


ABLATIONS = ("full", "no_triplet", "no_relabelling", "neither")


def ablated(method, **changes):
    """The small configuration with the switches of a method and further changes of fields."""
    prefix = "distill."
    switches = {p.removeprefix(prefix): v for p, v in METHODS[method].changes.items() if p.startswith(prefix)}
    return changed(SMALL, switches | changes)


def teachers(layout=LAYOUT, tasks=K, kind="bcq"):
    entry = TEACHERS[kind]
    assert entry.config is not None
    config = changed(entry.config(), {"hidden": (6, 6)} | ({"vae_hidden": (6, 6)} if kind == "bcq" else {}))
    return entry.make(config, layout, tasks, seeded(11)).teachers()


def make_tables(pool=N, dynamics=False, eligible=0.6):
    generator = seeded(12)
    mask = torch.rand(K, K, pool, generator=generator) < eligible
    mask[torch.arange(K), torch.arange(K)] = False
    mask[0, 1] = False  # a pair without eligible rows
    mask[1, 0] = True  # a pair where all are
    reward = torch.randn(K, K, pool, generator=generator)
    following = torch.randn(K, K, pool, 3, generator=generator) if dynamics else None
    return RelabelTables(pool_indices(K, N, pool, generator), reward, mask, following)


def make_learner(method="full", tables=None, seed=0, spread=True, layout=LAYOUT, teacher="bcq", **changes):
    config = ablated(method, **changes)
    uses = config.union_context or config.triplet == "relabelled"
    given = (tables or make_tables()) if uses else None
    needed = {"teachers": teachers(layout, kind=teacher), "tables": given}
    learner = MultiTaskLearner(config, layout, random_rows(K, N, layout), seeded(seed), seeded(1_000 + seed), **needed)
    if spread:  # output layers as initialised are so small that all contexts look alike
        with torch.no_grad():
            learner.student.encoder.body.weights[-1].mul_(300)
            for network in learner.student.children():
                if isinstance(network, StackedMLP):
                    network.weights[-1].mul_(100)
    return learner


class NaiveStep:
    """One step of the full model or an ablation; draws from copies of the learner's generators in its order."""

    def __init__(self, learner):
        self.config, self.rows, self.tables = learner.config, learner.rows, learner.tables
        self.batches, self.contexts = clone(learner.generator), clone(learner.context_generator)
        self.networks = {
            "encoder": layers_of(learner.student.encoder.body),
            "value": layers_of(learner.student.value_network),
            "decoder": layers_of(learner.student.decoder),
            "perturbation": layers_of(learner.student.perturbation),
        }
        for layers in self.networks.values():
            trainable(layers)
        self.teachers = {
            name: [layers_of(net, i) for i in range(K)] for name, net in learner.teachers.networks().items()
        }
        self.losses, self.metrics = {}, {}

    def posterior(self, transitions):
        return naive_posterior(self.networks["encoder"], transitions, Z)

    def run(self):
        relabels = self.config.union_context or self.config.triplet == "relabelled"
        beliefs = self.relabelled() if relabels else self.own()
        prior = Belief(torch.zeros(Z).double(), torch.ones(Z).double())
        self.losses["loss_kl"] = self.config.kl_weight * sum(naive_kl(q, prior) for q in beliefs)
        noise = torch.randn(K, Z, generator=self.batches).double()
        self.distill([q.mean + q.variance.sqrt() * noise[i] for i, q in enumerate(beliefs)])
        return self

    def own(self):
        number = self.config.hard_contexts if self.config.triplet == "hard_mining" else 1
        indices = torch.randint(N, (K, number * 2 * M), generator=self.contexts)
        sets = [[indices[i, n * 2 * M : (n + 1) * 2 * M] for n in range(number)] for i in range(K)]
        q = [[self.posterior([LAYOUT.context(self.rows[i, t]) for t in s]) for s in sets[i]] for i in range(K)]
        if self.config.triplet == "hard_mining":
            total = 0.0
            for i in range(K):
                for anchor in q[i]:
                    pull = torch.stack([naive_kl(anchor, other) for other in q[i]]).max()
                    push = torch.stack([naive_kl(anchor, o) for j in range(K) if j != i for o in q[j]]).min()
                    total = total + torch.relu(pull - push + self.config.margin)
            mean = self.config.hard_reduction == "mean"
            self.losses["loss_triplet"] = total / (K * number) if mean else total
        picked = torch.randint(number, (K,), generator=self.contexts)
        return [q[i][picked[i]] for i in range(K)]

    def partners(self):
        others = [[j for j in range(K) if j != i] for i in range(K)]
        if 0 < self.config.partners < K - 1:
            keys = torch.rand(K, K - 1, generator=self.contexts)
            others = [[others[i][int(p)] for p in keys[i].argsort()[: self.config.partners]] for i in range(K)]
        return others

    def relabelled(self):
        tables = self.tables
        pool = tables.reward.shape[-1]
        at = torch.randint(pool, (K, M), generator=self.contexts)  # positions in the pool
        row = [[self.rows[j, tables.index[j, t]] for t in at[j]] for j in range(K)]
        partners = self.partners()
        number = len(partners[0])

        def relabelled(i, j, n):
            context = LAYOUT.context(row[j][n]).clone()
            context[-1] = tables.reward[i, j, at[j, n]]
            if tables.next_observation is not None:
                context[5:8] = tables.next_observation[i, j, at[j, n]]
            return context

        ok = [[[bool(tables.eligible[i, j, at[j, n]]) for n in range(M)] for j in partners[i]] for i in range(K)]
        keys = torch.rand(K, number * M, generator=self.contexts)
        beliefs = []
        for i in range(K):
            pool_i = [(p, n) for p in range(number) for n in range(M) if ok[i][p][n]]
            pool_i.sort(key=lambda pn: keys[i, pn[0] * M + pn[1]].item())
            extra = [relabelled(i, partners[i][p], n) for p, n in pool_i[:M]]
            beliefs.append(self.posterior([LAYOUT.context(r) for r in row[i]] + extra))
        flat = [flag for i in range(K) for p in range(number) for flag in ok[i][p]]
        self.metrics["eligible_share"] = sum(flat) / len(flat)
        if self.config.triplet == "relabelled":
            self.triplet(row, partners, ok, relabelled)
        return beliefs

    def triplet(self, row, partners, ok, relabelled):
        number = len(partners[0])
        keys = torch.rand(K, number, M, generator=self.contexts)
        terms, kept = [], []
        for i in range(K):
            for p, j in enumerate(partners[i]):
                eligible = [n for n in range(M) if ok[i][p][n]]
                if not eligible:
                    terms.append(torch.tensor(self.config.margin).double())
                    continue
                subset = keys[i, p].argsort()[: len(eligible)].tolist()
                assert len(set(subset)) == len(eligible)
                anchor = self.posterior([relabelled(i, j, n) for n in eligible])
                positive = self.posterior([LAYOUT.context(row[i][n]) for n in subset])
                negative = self.posterior([LAYOUT.context(row[j][n]) for n in eligible])
                difference = naive_kl(anchor, positive) - naive_kl(anchor, negative)
                terms.append(torch.relu(difference + self.config.margin))
                kept.append(terms[-1])
        self.losses["loss_triplet"] = sum(terms) / len(terms)
        self.metrics["valid_pairs"] = len(kept) / len(terms)
        self.metrics["loss_triplet_valid"] = sum(k.item() for k in kept) / max(len(kept), 1)

    def distill(self, z):
        indices = torch.randint(N, (K, B), generator=self.batches)
        latents = torch.randn(K, B, 4, generator=self.batches).clamp(-0.5, 0.5).double()
        q, g, xi = 0.0, 0.0, 0.0
        for i in range(K):
            for b in range(B):
                parts = LAYOUT.split(self.rows[i, indices[i, b]])
                s, a, nu, fixed = parts.observation, parts.action, latents[i, b], z[i].detach()
                tq = forward(self.teachers["critic"][i], s, a)
                tc = torch.tanh(forward(self.teachers["decoder"][i], s, nu))
                tp = torch.tanh(forward(self.teachers["perturbation"][i], s, tc))
                q = q + (forward(self.networks["value"], s, a, z[i]) - tq).square().sum()
                g = g + (torch.tanh(forward(self.networks["decoder"], s, nu, fixed)) - tc).square().mean()
                xi = xi + (torch.tanh(forward(self.networks["perturbation"], s, tc, fixed)) - tp).square().mean()
        self.losses |= {"loss_q": q / (K * B), "loss_g": g / (K * B), "loss_xi": xi / (K * B)}

    def gradients(self):
        """Gradients by network, each from its own losses alone."""
        encoder = self.losses["loss_kl"] + self.losses["loss_q"]
        if "loss_triplet" in self.losses:
            encoder = encoder + self.config.triplet_weight * self.losses["loss_triplet"]
        sources = {
            "encoder": encoder,
            "value": self.losses["loss_q"],
            "decoder": self.losses["loss_g"],
            "perturbation": self.losses["loss_xi"],
        }
        result = {}
        for name, layers in self.networks.items():
            parameters = [p for pair in layers for p in pair]
            result[name] = torch.autograd.grad(sources[name], parameters, retain_graph=True)
        return result
