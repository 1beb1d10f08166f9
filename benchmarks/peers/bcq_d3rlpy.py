"""BCQ of d3rlpy: milliseconds per update of one mini-batch, with or without drawing it from d3rlpy's buffer."""

# pyright: reportMissingImports=false

import itertools
import os
import warnings

import numpy as np
import torch
from protocol import Measure, main, milliseconds

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import d3rlpy
    from d3rlpy.models.encoders import VectorEncoderFactory

EPISODE = 1_000


def build(
    observation_size: int,
    action_size: int,
    hidden: list[int],
    vae_hidden: list[int],
    batch_size: int,
    candidates: int,
    rows: int,
    sampling: bool,
) -> Measure:
    """With `sampling` every update draws its batch first; otherwise 100 batches are drawn before the clock runs."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    networks, vae = VectorEncoderFactory(hidden), VectorEncoderFactory(vae_hidden)
    algorithm = d3rlpy.algos.BCQConfig(
        actor_learning_rate=3e-4,
        critic_learning_rate=3e-4,
        imitator_learning_rate=3e-4,
        actor_encoder_factory=networks,
        critic_encoder_factory=networks,
        imitator_encoder_factory=vae,
        batch_size=batch_size,
        lam=0.75,
        n_action_samples=candidates,
    ).create(device=False)
    dataset = _random(observation_size, action_size, rows)
    algorithm.build_with_dataset(dataset)
    if sampling:
        return milliseconds(lambda: algorithm.update(dataset.sample_transition_batch(batch_size)))
    batches = itertools.cycle([dataset.sample_transition_batch(batch_size) for _ in range(100)])
    return milliseconds(lambda: algorithm.update(next(batches)))


def _random(observation_size: int, action_size: int, rows: int) -> "d3rlpy.dataset.MDPDataset":
    random = np.random.default_rng(0)
    ends = (np.arange(rows) % EPISODE == EPISODE - 1).astype(np.float32)
    return d3rlpy.dataset.MDPDataset(
        observations=random.standard_normal((rows, observation_size), np.float32),
        actions=np.tanh(random.standard_normal((rows, action_size), np.float32)),
        rewards=random.standard_normal(rows, np.float32),
        terminals=np.zeros(rows, np.float32),
        timeouts=ends,
        action_space=d3rlpy.ActionSpace.CONTINUOUS,
    )


if __name__ == "__main__":
    main(build)
