"""The warm start on real environments: what is explored, imitated and taken over, and the two-mini-batch learner."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from mbml import envs
from mbml.collect import CollectConfig, Collection
from mbml.encoders import EncoderConfig
from mbml.evaluate import make_envs
from mbml.learner import NotFinite
from mbml.nets import StackedMLP, adam
from mbml.policy import ContextAgent
from mbml.rollout import run_episode
from mbml.rows import RowLayout
from mbml.sac import SAC, SACConfig
from mbml.students import GenerativeStudent, StudentConfig
from mbml.warmstart import ImitationConfig, TwoBatchSAC, believed, critics_at, explore, imitate, imitation_loss

LAYOUT = RowLayout(observation_size=4, action_size=2)
SMALL = SACConfig(policy_hidden=(16, 16), critic_hidden=(16, 16), critic_initialisation="torch", batch_size=8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def student(layout=LAYOUT, seed=0, **changes):
    config = StudentConfig(
        **changes,
        encoder=EncoderConfig(hidden=(16,), embedding_size=3),
        value_hidden=(16, 16),
        decoder_hidden=(16,),
        perturbation_hidden=(16,),
        acting_candidates=2,
    )
    policy = GenerativeStudent(config, layout, generator(seed))
    with torch.no_grad():  # the authors' initial outputs are near zero: make a difference that can be seen
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator(seed + 1)))
    return policy


def rows(tasks, count, seed=0):
    table = torch.randn(tasks, count, LAYOUT.row_size, generator=generator(seed))
    table[..., 4:6] = torch.tanh(table[..., 4:6])
    table[..., -1] = (table[..., -1] > 1).float()
    return table


def learner(tasks=2, rate=0.1, seed=0, config=SMALL):
    result = TwoBatchSAC(config, LAYOUT, tasks, generator(seed), rate)
    # From identical critics both minima and their gradients are ties: tell them apart.
    result.start_from(StackedMLP(2 * tasks, [6, 16, 16, 1], generator=generator(seed + 9), initialisation="torch"))
    return result


class TestCritics:
    @pytest.mark.parametrize("standardised", [False, True])
    def test_both_equal_the_value_function_at_each_tasks_z(self, standardised):
        policy, z = student(standardised=standardised), torch.randn(3, 3, generator=generator(5))
        policy.fit(3 * rows(3, 50) - 1)
        sac = TwoBatchSAC(SMALL, LAYOUT, 3, generator(), 0.1)
        sac.start_from(critics_at(policy, z))
        observation, action = (torch.randn(3, 7, n, generator=generator(n)) for n in (4, 2))
        wanted = policy.value(observation, action, z.unsqueeze(1).expand(-1, 7, -1))
        assert wanted.std() > 0.01
        for critics in (sac.critics, sac.target_critics):
            for found in critics(torch.cat([observation, action], -1)).unflatten(0, (2, 3)):
                torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)

    def test_the_multi_task_policy_is_left_alone(self):
        policy = student()
        before = copy.deepcopy(policy.state_dict())
        sac = TwoBatchSAC(SMALL, LAYOUT, 2, generator(), 0.1)
        sac.start_from(critics_at(policy, torch.zeros(2, 3)))
        sac.update(rows(2, 16))
        for name, value in policy.state_dict().items():
            assert torch.equal(value, before[name])

    def test_another_shape_is_refused(self):
        sac = TwoBatchSAC(SMALL, LAYOUT, 2, generator(), 0.1)
        with pytest.raises(RuntimeError, match="size mismatch"):
            sac.start_from(StackedMLP(4, [6, 8, 8, 1], generator=generator()))


class TestImitation:
    @pytest.mark.parametrize("target", ["action", "atanh"])
    def test_loss_is_the_gaussians_of_each_dimension_summed(self, target):
        head = torch.randn(2, 5, 4, generator=generator(1)).clamp(-1.5, 1.5)  # within the limits of log-std
        action = torch.tanh(2 * torch.randn(2, 5, 2, generator=generator(2)))
        wanted = torch.zeros(2)
        for t in range(2):
            for b in range(5):
                for d in range(2):
                    a = float(action[t, b, d])
                    a = float(np.arctanh(np.clip(a, -0.999, 0.999))) if target == "atanh" else a
                    density = torch.distributions.Normal(head[t, b, d], head[t, b, 2 + d].exp()).log_prob(
                        torch.tensor(a)
                    )
                    wanted[t] += (-2 * density - np.log(2 * np.pi)) / 5
        torch.testing.assert_close(imitation_loss(head, action, target), wanted, rtol=1e-4, atol=1e-5)

    def shown(self):
        """Actions that are a function of the observation, some of them near the limits."""
        table = rows(2, 400)
        table[..., 4:6] = torch.tanh(1.5 * table[..., :2])
        return table

    def reproduced(self, target):
        sac = TwoBatchSAC(SMALL, LAYOUT, 2, generator(), 0.1)
        table = self.shown()
        config = ImitationConfig(steps=1_500, batch_size=64, learning_rate=3e-3, target=target)
        imitate(sac.policy, LAYOUT, table, config, generator(3))
        return (sac.act(table[..., :4], deterministic=True) - table[..., 4:6]).abs().mean()

    def test_reproduces_the_actions(self):
        assert self.reproduced("atanh") < 0.05

    def test_what_is_not_finite_is_refused(self):
        table = self.shown()
        table[0, :, 4:6] = torch.nan
        sac = TwoBatchSAC(SMALL, LAYOUT, 2, generator(), 0.1)
        with pytest.raises(NotFinite, match="imitation_loss is not finite"):
            imitate(sac.policy, LAYOUT, table, ImitationConfig(steps=2, batch_size=8), generator(3))

    def test_the_policy_goes_on_learning_by_reinforcement(self):
        """With the very steps of a policy that was not imitated but given the same weights."""
        imitated, given = (TwoBatchSAC(SMALL, LAYOUT, 2, generator(), 0.1) for _ in range(2))
        imitate(imitated.policy, LAYOUT, self.shown(), ImitationConfig(steps=3, batch_size=8), generator(3))
        given.policy.load_state_dict(imitated.policy.state_dict())
        before = [p.clone() for p in imitated.policy.parameters()]
        for seed in range(2):
            for sac in (imitated, given):
                sac.update(rows(2, 16, seed))
        assert all(not torch.equal(p, q) for p, q in zip(imitated.policy.parameters(), before, strict=True))
        for p, q in zip(imitated.policy.parameters(), given.policy.parameters(), strict=True):
            assert torch.equal(p, q)

    def test_the_authors_target_shrinks_them(self):
        # Their mean before the tanh is the action itself, and the policy acts with its tanh.
        table = self.shown()
        shrunk = (torch.tanh(table[..., 4:6]) - table[..., 4:6]).abs().mean()
        assert abs(self.reproduced("action") - shrunk) < 0.05
        assert shrunk > 0.1


class TestTwoBatches:
    def test_each_critic_learns_from_its_own_mini_batch(self):
        a, b, other = rows(2, 8, 1), rows(2, 8, 2), rows(2, 8, 3)

        def critics(first, second):
            sac = learner()
            before = [p.clone() for p in sac.critics.parameters()]
            sac.update(torch.cat([first, second], 1))
            return [(p - q).split(2) for p, q in zip(sac.critics.parameters(), before, strict=True)]

        reference, changed_a, changed_b = critics(a, b), critics(other, b), critics(a, other)
        same = [
            [torch.equal(x[i], y[i]) for x, y in zip(reference, c, strict=True)]
            for c in (changed_a, changed_b)
            for i in (0, 1)
        ]
        first_of_a, _, first_of_b, second_of_b = (all(flags) for flags in same)
        assert not first_of_a
        assert first_of_b  # B is used after the first critic has learned
        assert not second_of_b

    def test_equals_the_steps_of_the_specification_one_network_at_a_time(self):
        sac, twin = learner(tasks=1), PlainTwin(learner(tasks=1))
        for i in range(4):
            table = rows(1, 16, i)
            sac.update(table)
            twin.update(table[0, :8], table[0, 8:])
        torch.testing.assert_close(sac.log_alpha.detach().flatten(), twin.log_alpha.detach(), rtol=1e-5, atol=1e-6)
        for stacked, plain in [
            (sac.policy, [twin.policy]),
            (sac.critics, twin.critics),
            (sac.target_critics, twin.targets),
        ]:
            for i, network in enumerate(plain):
                layers = [m for m in network if isinstance(m, nn.Linear)]
                for weight, bias, layer in zip(stacked.weights, stacked.biases, layers, strict=True):
                    torch.testing.assert_close(weight[i].detach(), layer.weight.detach().T, rtol=1e-4, atol=2e-6)
                    torch.testing.assert_close(bias[i, 0].detach(), layer.bias.detach(), rtol=1e-4, atol=2e-6)


class TestHeld:
    """Critics that come from another task are wrong at first: the policy may wait for them."""

    def test_policy_and_temperature_wait_for_so_many_updates(self):
        sac = TwoBatchSAC(SMALL, LAYOUT, 2, generator(), 0.1, held_updates=2)
        waiting = [*sac.policy.parameters(), sac.log_alpha]
        for held in (True, True, False):
            before, critics = [p.clone() for p in waiting], [p.clone() for p in sac.critics.parameters()]
            sac.update(rows(2, 16))
            assert all(torch.equal(p, q) for p, q in zip(waiting, before, strict=True)) == held
            assert not any(torch.equal(p, q) for p, q in zip(sac.critics.parameters(), critics, strict=True))

    def test_the_critics_learn_as_beside_a_policy_that_stands_still(self):
        held, still = TwoBatchSAC(SMALL, LAYOUT, 2, generator(), 0.1, held_updates=9), learner(rate=0.0)
        held.start_from(still.critics)
        still.alpha_optimiser.param_groups[0]["lr"] = 0.0
        still.generator.set_state(held.generator.get_state())
        still.policy.load_state_dict(held.policy.state_dict())
        for seed in range(3):
            for sac in (held, still):
                sac.update(rows(2, 16, seed))
        for p, q in zip(held.critics.parameters(), still.critics.parameters(), strict=True):
            assert torch.equal(p, q)


class TestSlowPolicy:
    """Averaging the policy with its predecessor after each Adam step is a tenth of the learning rate."""

    def test_averaging_and_copying_back_is_a_tenth_of_the_step(self):
        slow = nn.Parameter(torch.randn(5, generator=generator(1)))
        averaged = nn.Parameter(slow.detach().clone())
        target = averaged.detach().clone()
        slow_adam, full_adam = adam([slow], 0.1 * 3e-4), adam([averaged], 3e-4)
        for i in range(50):
            weight = torch.randn(5, generator=generator(i))
            for parameter, optimiser in ((slow, slow_adam), (averaged, full_adam)):
                optimiser.zero_grad()
                (parameter.square() * weight).sum().backward()
                optimiser.step()
            with torch.no_grad():
                target.copy_(0.9 * target + 0.1 * averaged)
                averaged.copy_(target)
        torch.testing.assert_close(slow, averaged, rtol=1e-5, atol=1e-7)

    def test_the_learner_makes_that_step(self):
        moved = {}
        for rate in (0.1, 1.0):
            sac = learner(rate=rate)
            before = [p.clone() for p in sac.policy.parameters()]
            sac.update(rows(2, 16))
            moved[rate] = [p.detach() - q for p, q in zip(sac.policy.parameters(), before, strict=True)]
        for slow, full in zip(moved[0.1], moved[1.0], strict=True):
            torch.testing.assert_close(slow, 0.1 * full, rtol=1e-2, atol=1e-7)


class TestExplore:
    layout = RowLayout(*(getattr(envs.get("umaze_goal"), f"{part}_size") for part in ("observation", "action")))

    def stack(self, horizon=20):
        distribution = envs.get("umaze_goal")
        stack = make_envs(distribution, distribution.tasks("test")[:3], horizon)
        stack.seed([1, 2, 3])
        return stack

    def test_equals_episodes_with_a_posterior_between_them(self):
        policy = student(self.layout)
        found = explore(policy, self.layout, self.stack(), 60, generator(4))

        agent, stack, kept = ContextAgent(policy, generator(4), tasks=3), self.stack(), []
        for episode in range(3):
            if episode:
                agent.begin_episode()

            def observe(s, a, result, active):
                agent.observe(s, a, result.next_observation, result.reward, active)
                kept.append(torch.cat([s, a, result.next_observation, result.reward[:, None]], 1))

            returns = run_episode(stack, agent.act, observe)
        assert torch.equal(found.rows[..., :-1], torch.stack(kept, 1))
        assert torch.equal(found.z, agent.z)
        np.testing.assert_array_equal(found.returns, returns)

    def test_what_lies_beyond_the_budget_is_not_learned_from(self):
        policy = student(self.layout)
        found = explore(policy, self.layout, self.stack(), 50, generator(4))
        longer = explore(policy, self.layout, self.stack(), 60, generator(4))
        assert found.rows.shape == (3, 50, self.layout.row_size)
        assert torch.equal(found.rows, longer.rows[:, :50])

    def test_the_believed_actions_are_those_under_the_last_embedding(self):
        policy, table, z = student(), rows(3, 20), torch.randn(3, 3, generator=generator(5))
        found = believed(policy, LAYOUT, table, z, generator(6))
        wanted = policy.act(table[..., :4].reshape(60, 4), z.repeat_interleave(20, 0), generator(6))
        assert torch.equal(found[..., 4:6].reshape(60, 2), wanted)
        assert not torch.equal(found[..., 4:6], table[..., 4:6])
        others = [*range(4), *range(6, LAYOUT.row_size)]
        assert torch.equal(found[..., others], table[..., others])


@pytest.mark.parametrize("given", [0, 40])
def test_the_collection_runs_the_learner_it_is_given_and_resumes(given):
    distribution = envs.get("umaze_goal")
    layout = TestExplore.layout
    config = CollectConfig(
        steps=90, warmup_steps=30, epoch_steps=30, evaluation_episodes=1, sac=SMALL, updates_per_step=0.2
    )

    def collection(seed):
        sac = TwoBatchSAC(SMALL, layout, 2, generator(seed), 0.1)
        return Collection(
            config,
            layout,
            lambda copies: make_envs(distribution, distribution.tasks("test")[:2], 30, copies),
            [0, 1],
            0,
            sac,
        )

    whole, first, second = collection(0), collection(0), collection(1)
    if given:
        more = torch.randn(2, given, layout.row_size, generator=generator(7))
        whole.give(more)
        first.give(more)
    whole.record()
    first.record()
    while whole.done < whole.total:
        whole.advance()
    first.advance()
    first.advance()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    while second.done < second.total:
        second.advance()
    assert second.curve == whole.curve
    assert [row["step"] for row in whole.curve[::2]] == [0, 60, 90]
    assert torch.equal(second.rows, whole.rows)
    assert whole.rows.shape[1] == given + 90
    assert [len(batch) for batch in whole.batches()] == [90, 90]


def test_what_a_collection_is_given_is_learned_from_and_no_part_of_the_batch():
    distribution, layout = envs.get("umaze_goal"), TestExplore.layout
    config = CollectConfig(steps=20, warmup_steps=10, epoch_steps=10, evaluation_episodes=1, sac=SMALL)
    collections = []
    for rewards in (None, 0.0, 1000.0):
        sac = TwoBatchSAC(SMALL, layout, 2, generator(), 0.1)
        stacks = lambda copies: make_envs(distribution, distribution.tasks("test")[:2], 30, copies)  # noqa: E731
        collection = Collection(config, layout, stacks, [0, 1], 0, sac)
        if rewards is not None:
            collection.give(torch.full((2, 30, layout.row_size), rewards))
        collection.advance()
        collection.advance()
        collections.append(collection)
    none, zeros, thousands = ([batch.observation for batch in one.batches()] for one in collections)
    for other in (zeros, thousands):
        np.testing.assert_array_equal(np.stack(none)[:, :10], np.stack(other)[:, :10])
    losses = [one.curve[-1]["critic_loss"] for one in collections]
    assert losses[2] > 100 * losses[0]


class PlainTwin:
    """SAC of two mini-batches for one task, with separate networks and the averaging of the policy written out."""

    def __init__(self, source: TwoBatchSAC) -> None:
        def copies(network):
            result = []
            for i in range(network.stack):
                layers: list[nn.Module] = []
                for weight, bias in zip(network.weights, network.biases, strict=True):
                    linear = nn.Linear(*weight.shape[1:])
                    with torch.no_grad():
                        linear.weight.copy_(weight[i].T)
                        linear.bias.copy_(bias[i, 0])
                    layers += [linear, nn.ReLU()]
                result.append(nn.Sequential(*layers[:-1]))
            return result

        (self.policy,) = copies(source.policy)
        self.slow = copy.deepcopy(self.policy)
        self.critics, self.targets = copies(source.critics), copies(source.target_critics)
        self.log_alpha = nn.Parameter(torch.zeros(1))
        self.generator = torch.Generator()
        self.generator.set_state(source.generator.get_state())
        self.optimisers = [torch.optim.Adam(n.parameters(), lr=3e-4) for n in (*self.critics, self.policy)]
        self.alpha_optimiser = torch.optim.Adam([self.log_alpha], lr=3e-4)

    def sample(self, observation):
        mean, log_std = self.policy(observation).chunk(2, -1)
        u = mean + log_std.exp() * torch.randn(1, *mean.shape, generator=self.generator)[0]
        action = torch.tanh(u)
        density = torch.distributions.Normal(mean, log_std.exp()).log_prob(u) - torch.log(1 - action**2 + 1e-6)
        return action, density.sum(-1, keepdim=True)

    def step_critic(self, which, batch, alpha):
        s, a, s2, r, d = batch.split([4, 2, 4, 1, 1], -1)
        with torch.no_grad():
            a2, density = self.sample(s2)
            pair = torch.cat([s2, a2], -1)
            y = r + (1 - d) * 0.99 * (torch.min(*(target(pair) for target in self.targets)) - alpha * density)
        loss = (self.critics[which](torch.cat([s, a], -1)) - y).square().mean()
        self.descend(self.optimisers[which], loss)
        for target, online in zip(self.targets[which].parameters(), self.critics[which].parameters(), strict=True):
            target.data = 0.995 * target.data + 0.005 * online.data

    def descend(self, optimiser, loss):
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    def update(self, first, second):
        self.step_critic(0, first, self.log_alpha.detach().exp())
        s = second[:, :4]
        action, density = self.sample(s)
        alpha = self.log_alpha.detach().exp()
        self.descend(self.alpha_optimiser, -(self.log_alpha * (density.detach() - 2)).mean())
        self.step_critic(1, second, alpha)
        value = torch.min(*(critic(torch.cat([s, action], -1)) for critic in self.critics))
        self.descend(self.optimisers[2], (self.log_alpha.detach().exp() * density - value).mean())
        for slow, fast in zip(self.slow.parameters(), self.policy.parameters(), strict=True):
            slow.data = 0.9 * slow.data + 0.1 * fast.data
            fast.data = slow.data.clone()


def test_without_a_learner_the_collection_makes_a_plain_one():
    distribution = envs.get("umaze_goal")
    collection = Collection(
        CollectConfig(steps=10, warmup_steps=5, sac=SMALL, evaluation_episodes=1),
        TestExplore.layout,
        lambda copies: make_envs(distribution, distribution.tasks("train")[:1], 10, copies),
        [0],
        0,
    )
    assert type(collection.learner) is SAC
