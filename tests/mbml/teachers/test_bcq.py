"""BCQ: its latents and candidates, its acting rule, and a toy batch; its update is held to a plain loop's in
tests/benchmarks."""

from dataclasses import replace

import torch

from mbml.rows import RowLayout
from mbml.teachers.bcq import BCQ, BCQConfig, best_actions, clamped_latents, perturbed
from tests.mbml.toys import (
    LAYOUT,
    forward,
    layers_of,
    random_rows,
    seeded,
)

SMALL = BCQConfig(hidden=(9, 7), vae_hidden=(8, 8), batch_size=6, target_candidates=3)


def learner(tasks=2, seed=0, config=SMALL, layout=LAYOUT):
    return BCQ(config, layout, tasks, seeded(seed))


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

    actions = perturbed(candidates, raw)
    chosen = best_actions(actions, value(actions), 3)
    for t in range(2):
        for n in range(4):
            options = [(candidates[t, n * 3 + m] + 0.05 * raw[t, n * 3 + m]).clamp(-1, 1) for m in range(3)]
            best = max(options, key=lambda a: (observation[t, n].sum() * a.sum()).sin().item())
            torch.testing.assert_close(chosen[t, n], best)


def test_teachers_act_by_their_first_critic():
    bcq = learner(config=replace(SMALL, acting_candidates=5))
    teachers = bcq.teachers()
    observation = torch.randn(2, 4, 3, generator=seeded(1))
    actions = teachers.act(observation, seeded(2))
    latents = torch.randn(2, 20, 4, generator=seeded(2)).clamp(-0.5, 0.5)
    for task in range(2):
        critic, decoder, xi = (layers_of(n, task) for n in (bcq.critics, bcq.decoder, bcq.perturbation))
        for n in range(4):
            s, options = observation[task, n], []
            for m in range(5):
                a = torch.tanh(forward(decoder, s, latents[task, n * 5 + m]))
                options.append(torch.clamp(a + 0.05 * torch.tanh(forward(xi, s, a)), -1, 1))
            best = max(options, key=lambda a: forward(critic, s, a).item())
            torch.testing.assert_close(actions[task, n].double(), best.detach(), rtol=1e-4, atol=1e-5)


def test_paper_size_makes_a_step():
    layout = RowLayout(4, 2)
    bcq = BCQ(BCQConfig(), layout, 3, seeded())
    assert bcq.critics.sizes == (6, 400, 300, 1)
    assert bcq.perturbation.sizes == (6, 400, 300, 2)
    assert bcq.encoder.sizes == (6, 750, 750, 8)
    assert bcq.decoder.sizes == (8, 750, 750, 2)
    losses = bcq.update(random_rows(3, 100, layout))
    assert all(torch.isfinite(value).all() for value in losses.values())
