"""MetaGenRL written a transition at a time in float64."""

import torch

from mbml.baselines.metagenrl import MetaGenRL
from tests.mbml.toys import clone, seeded, snapshot

NETWORKS = ("policy", "critics", "objective", "target_policy", "target_critics")


def in_double(agent):
    """The learner in float64, with targets that are clearly not the online networks."""
    agent.sampler.rows = agent.sampler.rows.double()
    noise = seeded(77)
    for name in NETWORKS:
        getattr(agent, name).double()
    with torch.no_grad():
        for name in NETWORKS[3:]:
            for parameter in getattr(agent, name).parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise))
    return agent


def layers_of(module, parameters=None):
    """The layers of a perceptron in order, with their weight and bias; `parameters` may stand in for its own."""
    own = iter(list(module.parameters()) if parameters is None else parameters)
    leaves = [layer for layer in module.modules() if not list(layer.children())]
    return [(type(layer).__name__, [next(own) for _ in layer.parameters()]) for layer in leaves]


def run(layers, x):
    """A perceptron by hand, for one input `[d]`."""
    for name, parameters in layers:
        if name == "Linear":
            x = parameters[0] @ x + parameters[1]
        elif name == "HalfSquare":
            x = torch.stack([u.clamp(min=0) if i < len(x) // 2 else u * u for i, u in enumerate(x)])
        elif name == "LayerNorm":
            mean = x.sum() / len(x)
            variance = ((x - mean) ** 2).sum() / len(x)
            x = (x - mean) / torch.sqrt(variance + 1e-5) * parameters[0] + parameters[1]
        else:
            x = {"ReLU": lambda u: u.clamp(min=0), "Tanh": torch.tanh}[name](x)
    return x


def normalise(number, numbers):
    mean = sum(numbers) / len(numbers)
    return (number - mean) / (sum((n - mean) ** 2 for n in numbers) / len(numbers) + 1e-8) ** 0.5


class NaiveMetaGenRL:
    """One agent on copies of a learner's networks, a transition at a time.

    Segments are lists of (s, a, s', r, d) of their own length; T is what they are padded to.
    """

    def __init__(self, agent):
        self.config, self.layout = agent.config, agent.layout
        self.rows, self.generator = agent.sampler.rows[0], clone(agent.generator)
        state = agent.state_dict()
        copied = in_double(MetaGenRL(agent.config, agent.layout, agent.sampler.rows.float(), seeded(5)))
        copied.load_state_dict(snapshot(state))
        self.policy, self.critics, self.objective = copied.policy, copied.critics, copied.objective
        self.target_policy, self.target_critics = copied.target_policy, copied.target_critics
        self.optimisers = {
            name: torch.optim.Adam(getattr(self, name).parameters(), lr=1e-3, foreach=False) for name in NETWORKS[:3]
        }
        self.rounds = 0

    def draw(self, number):
        ends = [i + 1 for i in range(len(self.rows)) if self.rows[i, -1] == 1 or i == len(self.rows) - 1]
        chosen = torch.randint(len(ends), (number,), generator=self.generator)
        keys = torch.rand(number, generator=self.generator, dtype=torch.float64)
        segments = []
        for k, key in zip(chosen.tolist(), keys.tolist(), strict=True):
            begin, end, length = ([0, *ends])[k], ends[k], self.config.segment_length
            start = begin + int(key * max(end - begin - length + 1, 1))
            segments.append([self.layout.split(row) for row in self.rows[start : min(start + length, end)]])
        return segments

    def q(self, critic, s, a):
        return run(layers_of(critic), torch.cat([s, a]))[0]

    def value(self, s):
        with torch.no_grad():
            return self.q(self.critics[0], s, run(layers_of(self.policy), s)).item()

    def errors(self, segments, policy):
        """The learned objective's error of every transition of every segment."""
        net, length = self.objective, self.config.segment_length
        rewards = [t.reward.item() for segment in segments for t in segment]
        both = [self.value(s) for segment in segments for t in segment for s in (t.observation, t.next_observation)]
        result = []
        for segment in segments:
            h = c = torch.zeros(self.config.lstm).double()
            errors = []
            for time in reversed(range(len(segment))):
                s, a, s2, r, d = segment[time]
                pi = policy(s)
                per_dimension = [run(layers_of(net.action_features), torch.stack([a[k], pi[k]])) for k in range(len(a))]
                others = [
                    normalise(r.item(), rewards),
                    time / length,
                    normalise(self.value(s2), both) * (1 - d.item()),
                    normalise(self.value(s), both),
                ]
                transformed = run(layers_of(net.other_features), torch.tensor(others).double())
                x = torch.cat([torch.stack(per_dimension).sum(0) / len(a), transformed])
                cell = net.cell
                gates = cell.weight_ih @ x + cell.bias_ih + cell.weight_hh @ h + cell.bias_hh
                i, f, g, o = gates.chunk(4)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
                errors.insert(0, torch.tanh(1e-3 * run(layers_of(net.error), h)[0]) / 1e-3)
            result.append(errors)
        return result

    def critic_loss(self, segments):
        length, size = self.config.segment_length, self.layout.action_size
        noise = torch.randn(len(segments), length, size, generator=self.generator).double()
        total = torch.zeros(()).double()
        for k, segment in enumerate(segments):
            for time, (s, a, s2, r, d) in enumerate(segment):
                with torch.no_grad():
                    bounded = torch.clamp(0.2 * noise[k, time], -0.5, 0.5)
                    action = torch.clamp(run(layers_of(self.target_policy), s2) + bounded, -1, 1)
                    worst = min(self.q(critic, s2, action).item() for critic in self.target_critics)
                    target = r.item() + 0.99 * (1 - d.item()) * worst + d.item() * self.config.bonus_on_terminal
                for critic in self.critics:
                    total = total + (self.q(critic, s, a) - target) ** 2
        return total / (len(segments) * length)

    def policy_loss(self, segments):
        p = min(1.0, 600 * (self.rounds // 10 + 1) / self.config.anneal)
        total = torch.zeros(()).double()
        errors = self.errors(segments, lambda s: run(layers_of(self.policy), s))
        for segment, found in zip(segments, errors, strict=True):
            for t, error in zip(segment, found, strict=True):
                s = t.observation
                total = total + p * error - (1 - p) * self.q(self.critics[0], s, run(layers_of(self.policy), s))
        return total / (len(segments) * self.config.segment_length)

    def objective_loss(self, segments):
        half = segments[: len(segments) // 2]
        errors = self.errors(half, lambda s: run(layers_of(self.policy), s))
        total = torch.stack([error for found in errors for error in found]).sum()
        parameters = list(self.policy.parameters())
        gradients = torch.autograd.grad(total, parameters, create_graph=True)
        policy = layers_of(
            self.policy, [p - self.config.inner_step * g for p, g in zip(parameters, gradients, strict=True)]
        )
        value = sum(self.q(self.critics[0], t.observation, run(policy, t.observation)) for s in segments for t in s)
        return -value / (len(segments) * self.config.segment_length)

    def update(self):
        losses = {"critic_loss": self.critic_loss(self.draw(self.config.segments))}
        self.descend("critics", losses["critic_loss"], None)
        if self.rounds % 2 == 0:
            losses["policy_loss"] = self.policy_loss(self.draw(self.config.segments))
            self.descend("policy", losses["policy_loss"], self.config.clip)
            with torch.no_grad():
                for target, online in ((self.target_policy, self.policy), (self.target_critics, self.critics)):
                    for t, p in zip(target.parameters(), online.parameters(), strict=True):
                        t.copy_(0.995 * t + 0.005 * p)
            losses["objective_loss"] = self.objective_loss(self.draw(self.config.objective_segments))
            self.descend("objective", losses["objective_loss"], self.config.clip)
        self.rounds += 1
        return losses

    def descend(self, name, loss, clip):
        parameters = list(getattr(self, name).parameters())
        gradients = torch.autograd.grad(loss, parameters)
        norm = sum((g**2).sum() for g in gradients) ** 0.5
        scale = 1.0 if clip is None else min(1.0, clip / (norm.item() + 1e-6))
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = scale * g
        self.optimisers[name].step()
