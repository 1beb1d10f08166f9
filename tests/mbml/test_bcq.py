"""Stacked BCQ against one written per task in float64, its acting rule, its teachers, and a toy batch."""

import pytest
import torch

from mbml.teachers.bcq import BCQ, BCQConfig, Teachers, candidate_outputs, clamped_latents, perturbed, select_action
from mbml.nets import StackedMLP, batched_perceptrons
from mbml.rows import RowLayout, sample_indices
from tests.mbml.toys import (
    LAYOUT,
    POINT,
    assert_resumes,
    assert_same_bits,
    assert_seed_decides_every_bit,
    clone,
    forward,
    layers_of,
    point_rows,
    point_step,
    random_rows,
    scatter,
    seeded,
    snapshot,
    through_disk,
    trainable,
)

SMALL = BCQConfig(hidden=(9, 7), vae_hidden=(8, 8), batch_size=6, target_candidates=3)


def learner(tasks=2, seed=0, config=SMALL, layout=LAYOUT):
    return BCQ(config, layout, tasks, seeded(seed))


class NaiveBCQ:
    """One task of section 2.2, a row at a time; noise comes from outside."""

    def __init__(self, bcq, task):
        tasks = bcq.tasks
        self.xi, self.xi_target = layers_of(bcq.perturbation, task), layers_of(bcq.target_perturbation, task)
        self.critics = [layers_of(bcq.critics, k * tasks + task) for k in range(2)]
        self.targets = [layers_of(bcq.target_critics, k * tasks + task) for k in range(2)]
        self.encoder, self.decoder = layers_of(bcq.encoder, task), layers_of(bcq.decoder, task)

        def optimiser(*networks):
            return torch.optim.Adam([p for n in networks for p in trainable(n)], lr=3e-4, foreach=False)

        self.vae_optimiser = optimiser(self.encoder, self.decoder)
        self.critic_optimiser = optimiser(*self.critics)
        self.actor_optimiser = optimiser(self.xi)

    def generate(self, s, latent):
        return torch.tanh(forward(self.decoder, s, latent))

    def perturb(self, xi, s, a):
        return torch.clamp(a + 0.05 * torch.tanh(forward(xi, s, a)), -1, 1)

    def update(self, rows, layout, posterior_noise, candidate_noise, actor_noise):
        s, a, s2, r, d = layout.split(rows)
        number, latent_size = len(rows), 2 * layout.action_size
        candidates = len(candidate_noise) // number

        error, divergence = 0.0, 0.0
        for b in range(number):
            output = forward(self.encoder, s[b], a[b])
            mean, std = output[:latent_size], torch.exp(torch.clamp(output[latent_size:], -4, 15))
            decoded = self.generate(s[b], mean + std * posterior_noise[b].double())
            error = error + ((decoded - a[b].double()) ** 2).sum()
            divergence = divergence - 0.5 * (1 + torch.log(std**2) - mean**2 - std**2).sum()
        loss = error / (number * layout.action_size) + 0.5 * divergence / (number * latent_size)
        vae_loss = self.descend(self.vae_optimiser, loss)

        targets = []
        with torch.no_grad():
            for b in range(number):
                values = []
                for m in range(candidates):
                    action = self.generate(s2[b], candidate_noise[b * candidates + m].clamp(-0.5, 0.5))
                    action = self.perturb(self.xi_target, s2[b], action)
                    q = [forward(target, s2[b], action).item() for target in self.targets]
                    values.append(0.75 * min(q) + 0.25 * max(q))
                targets.append(r[b].item() + (1 - d[b].item()) * 0.99 * max(values))
        loss = 0.0
        for critic in self.critics:
            loss = loss + sum((forward(critic, s[b], a[b])[0] - targets[b]) ** 2 for b in range(number)) / number
        critic_loss = self.descend(self.critic_optimiser, loss)

        loss = 0.0
        for b in range(number):
            action = self.generate(s[b], actor_noise[b].clamp(-0.5, 0.5)).detach()
            loss = loss - forward(self.critics[0], s[b], self.perturb(self.xi, s[b], action))[0] / number
        actor_loss = self.descend(self.actor_optimiser, loss)

        with torch.no_grad():
            for target, online in [(self.xi_target, self.xi), *zip(self.targets, self.critics, strict=True)]:
                for old, new in zip(target, online, strict=True):
                    for t, c in zip(old, new, strict=True):
                        t.copy_(0.995 * t + 0.005 * c)
        return {"vae_loss": vae_loss, "critic_loss": critic_loss, "actor_loss": actor_loss}

    @staticmethod
    def descend(optimiser, loss):
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()


@pytest.mark.parametrize("tasks", [1, 2])
def test_a_stack_is_separate_learners_written_a_row_at_a_time(tasks):
    bcq = learner(tasks)
    scatter(bcq.target_perturbation, bcq.target_critics)
    naive = [NaiveBCQ(bcq, task) for task in range(tasks)]
    for update in range(3):
        rows = random_rows(tasks, 6, seed=update)
        generator = clone(bcq.generator)
        noise = [torch.randn(tasks, n, 4, generator=generator) for n in (6, 18, 6)]
        found = bcq.update(rows)
        for task in range(tasks):
            expected = naive[task].update(rows[task], LAYOUT, *(n[task] for n in noise))
            for name, value in expected.items():
                assert found[name][task].item() == pytest.approx(value, rel=1e-4, abs=1e-5), name
    for task in range(tasks):
        one = naive[task]
        members = [
            (bcq.perturbation, task, one.xi),
            (bcq.target_perturbation, task, one.xi_target),
            (bcq.encoder, task, one.encoder),
            (bcq.decoder, task, one.decoder),
            *((bcq.critics, k * tasks + task, one.critics[k]) for k in range(2)),
            *((bcq.target_critics, k * tasks + task, one.targets[k]) for k in range(2)),
        ]
        for network, member, layers in members:
            for found_pair, wanted_pair in zip(layers_of(network, member), layers, strict=True):
                for f, w in zip(found_pair, wanted_pair, strict=True):
                    torch.testing.assert_close(f, w.detach(), rtol=1e-4, atol=2e-5)


def test_targets_start_as_copies():
    bcq = learner()
    assert_same_bits(bcq.critics.state_dict(), bcq.target_critics.state_dict())
    assert_same_bits(bcq.perturbation.state_dict(), bcq.target_perturbation.state_dict())


def test_latents_are_clamped_and_perturbed_actions_stay_in_range():
    latents = clamped_latents((1000, 4), seeded())
    noise = torch.randn(1000, 4, generator=seeded())
    assert torch.equal(latents, noise.clamp(-0.5, 0.5))
    action, raw = torch.tensor([0.99, -0.99, 0.5]), torch.tensor([1.0, -1.0, -1.0])
    torch.testing.assert_close(perturbed(action, raw), torch.tensor([1.0, -1.0, 0.45]))


def test_the_acting_rule_takes_the_best_perturbed_candidate():
    candidates = torch.rand(2, 4 * 3, 2, generator=seeded()) * 2 - 1  # 2 tasks, 4 observations, 3 candidates
    raw = torch.rand(2, 12, 2, generator=seeded(1)) * 2 - 1
    observation = torch.randn(2, 4, 3, generator=seeded(2))

    def value(a):
        repeated = observation.repeat_interleave(3, dim=1)
        return (repeated.sum(-1, keepdim=True) * a.sum(-1, keepdim=True)).sin()

    chosen = select_action(candidates, 3, lambda a: raw * (a == candidates), value)
    for t in range(2):
        for n in range(4):
            options = [(candidates[t, n * 3 + m] + 0.05 * raw[t, n * 3 + m]).clamp(-1, 1) for m in range(3)]
            best = max(options, key=lambda a: (observation[t, n].sum() * a.sum()).sin().item())
            torch.testing.assert_close(chosen[t, n], best)


@pytest.mark.parametrize("embedding_size", [0, 5])
@pytest.mark.parametrize(("hidden", "number"), [((), 2), ((8, 6), 2), ((384, 256), 40)])  # the last is large
def test_what_candidates_share_goes_through_the_first_layer_once(hidden, number, embedding_size):
    network = StackedMLP(2, [7 + embedding_size, *hidden, 3], generator=seeded(), output_scale=0.1)
    s, own, z = (torch.randn(2, n, d, generator=seeded(d)) for n, d in ((number, 4), (number * 3, 3), (number, 5)))
    shared = [s, z] if embedding_size else [s]
    s_repeated, *z_repeated = (part.repeat_interleave(3, dim=1) for part in shared)
    with torch.no_grad():
        found = candidate_outputs(network, s, own, *shared[1:])
        expected = batched_perceptrons(
            torch.cat([s_repeated, own, *z_repeated], -1), list(network.weights), list(network.biases)
        )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_teachers_act_by_their_first_critic():
    bcq = learner()
    teachers = bcq.teachers()
    observation = torch.randn(2, 4, 3, generator=seeded(1))
    actions = teachers.act(observation, 5, seeded(2))
    latents = torch.randn(2, 20, 4, generator=seeded(2)).clamp(-0.5, 0.5)
    for task in range(2):
        naive = NaiveBCQ(bcq, task)
        for n in range(4):
            s = observation[task, n]
            options = [naive.perturb(naive.xi, s, naive.generate(s, latents[task, n * 5 + m])) for m in range(5)]
            best = max(options, key=lambda a: forward(naive.critics[0], s, a).item())
            torch.testing.assert_close(actions[task, n].double(), best.detach(), rtol=1e-4, atol=1e-5)


def test_teachers_are_frozen_copies():
    bcq = learner()
    teachers = bcq.teachers()
    before = snapshot(teachers.state_dict())
    for n in range(3):
        bcq.update(random_rows(2, 6, seed=n))
    assert_same_bits(before, teachers.state_dict())
    assert not any(p.requires_grad for p in teachers.parameters())
    assert teachers.critic.stack == teachers.tasks == 2
    for task in range(2):
        pair = torch.randn(2, 5, 5, generator=seeded(1))
        expected = forward(layers_of(bcq.critics, task), pair[task])
        torch.testing.assert_close(bcq.teachers().value(pair)[task].double(), expected, rtol=1e-5, atol=1e-6)


def test_teachers_join_in_order_and_survive_the_disk(tmp_path):
    two, one = learner(2, seed=1).teachers(), learner(1, seed=2).teachers()
    joined = Teachers.join([two, one])
    pair, s, nu = torch.randn(3, 4, 5), torch.randn(3, 4, 3), torch.randn(3, 4, 4)
    a = s[..., :2]
    torch.testing.assert_close(joined.value(pair), torch.cat([two.value(pair[:2]), one.value(pair[2:])]))
    separate = [two.generate(s[:2], nu[:2]), one.generate(s[2:], nu[2:])]
    torch.testing.assert_close(joined.generate(s, nu), torch.cat(separate))
    torch.testing.assert_close(joined.perturb(s, a), torch.cat([two.perturb(s[:2], a[:2]), one.perturb(s[2:], a[2:])]))
    loaded = Teachers.load(through_disk(tmp_path, joined.state_dict()))
    assert_same_bits(joined.state_dict(), loaded.state_dict())
    assert not any(p.requires_grad for p in loaded.parameters())


def test_a_resumed_learner_is_one_that_never_stopped(tmp_path):
    assert_resumes(learner, tmp_path, 6)


def test_the_seed_decides_every_bit():
    assert_seed_decides_every_bit(learner, 6, "decoder")


def test_it_beats_the_behaviour_in_its_batch():
    config = BCQConfig(hidden=(32, 32), vae_hidden=(32, 32), batch_size=64, learning_rate=3e-3, discount=0.9, tau=0.02)
    bcq = learner(1, config=config, layout=POINT)
    # Behaviour: random actions that push inwards a little more often than outwards.
    rows = point_rows(3_000)
    x, a = rows[..., :1], rows[..., 1:2]
    kept = (x * a < 0).squeeze() | (torch.rand(3_000, generator=seeded(3)) < 0.6)
    rows = rows[:, kept]
    batches, losses = seeded(1), []
    for _ in range(500):
        losses.append(bcq.update(rows[:, sample_indices(1, 64, rows.shape[1], batches)[0]])["vae_loss"].item())
    assert sum(losses[-50:]) < 0.9 * sum(losses[:50])

    def returns(act):
        position, total = torch.linspace(-1, 1, 21).view(1, -1, 1), 0.0
        for _ in range(20):
            position = point_step(position, act(position))
            total -= position.square().mean().item()
        return total

    acting = seeded(4)

    def behave(position):
        proposed = torch.rand(position.shape, generator=acting) * 2 - 1
        outward = position * proposed > 0
        return torch.where(outward & (torch.rand(position.shape, generator=acting) < 0.4), -proposed, proposed)

    teachers = bcq.teachers()
    assert returns(lambda s: teachers.act(s, 10, acting)) > 0.5 * returns(behave)


def test_paper_size_makes_a_step():
    layout = RowLayout(4, 2)
    bcq = BCQ(BCQConfig(), layout, 3, seeded())
    assert bcq.critics.sizes == (6, 400, 300, 1)
    assert bcq.perturbation.sizes == (6, 400, 300, 2)
    assert bcq.encoder.sizes == (6, 750, 750, 8)
    assert bcq.decoder.sizes == (8, 750, 750, 2)
    losses = bcq.update(random_rows(3, 100, layout))
    assert all(torch.isfinite(value).all() for value in losses.values())
