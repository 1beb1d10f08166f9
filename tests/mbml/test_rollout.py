"""Lock-step episodes are the episodes that each environment runs alone."""

import itertools

import gymnasium
import numpy as np
import torch

from mbml import envs
from mbml.collect import CollectConfig, Collection
from mbml.data import DatasetWriter, validate
from mbml.evaluate import make_envs
from mbml.rollout import EnvStack, run_episode
from mbml.rows import RowLayout
from mbml.sac import SACConfig

HORIZON = 120


def stack(name="walker_param", number=3, horizon=HORIZON):
    distribution = envs.get(name)
    return make_envs(distribution, distribution.tasks("train")[:number], horizon)


def push(observation):
    """A fixed policy that lets walkers fall at different times."""
    return torch.tanh(observation[:, :1] * 3 + torch.arange(6) * 0.3 - 0.8)


def alone(seeds, episodes=1):
    """Per environment and episode: rewards, one environment after the other."""
    result = []
    for env, seed in zip(stack().envs, seeds, strict=True):
        env.reset(seed=seed)
        runs = []
        for _ in range(episodes):
            observation, _ = env.reset()
            rewards, over = [], False
            while not over:
                action = push(torch.from_numpy(observation).unsqueeze(0))[0].numpy()
                observation, reward, terminated, truncated, _ = env.step(action)
                rewards.append(reward)
                over = terminated or truncated
            runs.append(rewards)
        result.append(runs)
    return result


def test_lock_step_is_each_alone():
    seeds = [5, 6, 7]
    walkers = stack()
    walkers.seed(seeds)
    expected = alone(seeds, episodes=2)
    lengths = {len(run) for runs in expected for run in runs}
    assert len(lengths) > 1  # they do end at different times
    assert min(lengths) < HORIZON
    for episode in range(2):
        seen = []

        def observe(observation, action, step, active, seen=seen):
            seen.append((observation.clone(), action, step, active))

        returns = run_episode(walkers, push, observe)
        for i in range(3):
            rewards = expected[i][episode]
            np.testing.assert_allclose(returns[i], sum(rewards), rtol=1e-4, atol=1e-3)
            counts = [active[i].item() for _, _, _, active in seen]
            assert counts == [True] * len(rewards) + [False] * (len(seen) - len(rewards))
            last = seen[len(rewards) - 1][2]
            assert last.terminated[i] or last.truncated[i]
            for observation, _, step, active in seen[len(rewards) :]:
                assert step.reward[i] == 0
                assert not torch.stack([step.terminated[i], step.truncated[i], active[i]]).any()
                assert torch.equal(observation[i], last.next_observation[i])
        for (_, _, step, active), (observation, *_) in itertools.pairwise(seen):
            assert torch.equal(step.next_observation[active], observation[active])


def test_those_that_do_not_play_are_left_as_they_are():
    walkers = stack()
    walkers.seed([5, 6, 7])
    playing, seen = np.array([True, False, True]), []
    resting, states = walkers.observation[1], walkers.random_states()
    returns = run_episode(walkers, push, lambda o, a, step, active: seen.append((o, active)), playing)
    expected = alone([5, 6, 7])
    for i in (0, 2):
        np.testing.assert_allclose(returns[i], sum(expected[i][0]), rtol=1e-4, atol=1e-3)
    assert returns[1] == 0
    assert not any(active[1] for _, active in seen)
    assert all(torch.equal(observation[1], resting) for observation, _ in seen)
    assert walkers.random_states()[1] == states[1]
    assert walkers.random_states()[0] != states[0]
    assert playing.tolist() == [True, False, True]  # the caller's own


def test_the_horizon_truncates():
    envs_ = stack("umaze_goal", horizon=7)
    envs_.seed([1, 2, 3])
    steps = []
    run_episode(envs_, lambda o: torch.zeros(3, 2), lambda o, a, step, active: steps.append(step))
    assert len(steps) == 7
    assert [s.truncated.tolist() for s in steps] == [[False] * 3] * 6 + [[True] * 3]
    assert not any(s.terminated.any() for s in steps)


def test_random_states_resume_the_resets():
    first, second = stack("umaze_goal"), stack("umaze_goal")
    first.seed([1, 2, 3])
    states = first.random_states()
    first.reset()
    second.seed([4, 5, 6])
    second.set_random_states(states)
    second.reset()
    assert torch.equal(first.observation, second.observation)
    first.reset([1])
    second.reset([1])
    assert torch.equal(first.observation, second.observation)


def test_observations_handed_out_are_copies():
    envs_ = stack("umaze_goal")
    envs_.seed([1, 2, 3])
    before = envs_.observation
    kept = before.clone()
    step = envs_.step(torch.ones(3, 2))
    after = step.next_observation.clone()
    envs_.reset()
    assert torch.equal(before, kept)
    assert torch.equal(step.next_observation, after)
    before.zero_()
    assert envs_.observation.abs().sum() > 0


class Fragile(gymnasium.Env):
    """Counts its steps; the physics diverges at those steps of its life that are named."""

    observation_space, action_space = gymnasium.spaces.Box(0, 99, (1,)), gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, diverges=(), horizon=6):
        self.diverges, self.horizon, self.life = diverges, horizon, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.life += 1
        if self.life in self.diverges:
            raise envs.SimulationDiverged
        self.steps += 1
        return np.full(1, self.steps, np.float32), 1.0, False, self.steps == self.horizon, {}


def test_a_step_that_diverged_is_no_transition_and_ends_the_episode():
    pair, seen = EnvStack([Fragile(diverges={4}), Fragile()]), []
    pair.seed([0, 0])
    returns = run_episode(pair, lambda o: torch.zeros(2, 1), lambda o, a, step, active: seen.append(active.tolist()))
    assert returns.tolist() == [3, 6]
    assert seen == [[True, True]] * 3 + [[False, True]] * 3


def test_what_diverged_leaves_no_row_in_a_batch(tmp_path):
    # The fourth step of an episode, the first of another, twice in a row, and a step that would have been the last.
    diverges = {4, 7, 8, 14}
    config = CollectConfig(steps=40, warmup_steps=20, epoch_steps=10, evaluation_episodes=1, sac=SACConfig((4,), (4,)))
    collection = Collection(
        config, RowLayout(1, 1), lambda copies: EnvStack([Fragile(diverges), Fragile()] * copies), [0, 1], seed=0
    )
    while collection.done < collection.total:
        collection.advance()
    sizes = {"observation_size": 1, "action_size": 1, "horizon": 6}
    with DatasetWriter(tmp_path, environment="fragile", collection={}, **sizes) as writer:
        for task, batch in enumerate(collection.batches()):
            writer.add_task(task, batch, parameter=None, label=str(task))
    validate(tmp_path)
    for task, lengths in ((0, [3, 2, 5, 6, 4, 6, 4, 6, 4]), (1, [6, 6, 6, 2, 6, 4, 6, 4])):
        batch = collection.batches()[task]
        assert np.array_equal(batch.next_observation, batch.observation + 1)
        assert (batch.reward == 1).all()
        assert np.unique(batch.episode, return_counts=True)[1].tolist() == lengths
        assert np.flatnonzero(batch.truncated).tolist() == (np.cumsum(lengths) - 1).tolist()
        assert not batch.terminated.any()
