"""SAC of SBX (JAX): gradient updates per second of its `train` on a full replay buffer, after compilation."""

# pyright: reportMissingImports=false

import os

import torch
from protocol import Measure, main
from sac_common import updates
from sbx import SAC
from stable_baselines3.common.logger import configure


def build(
    observation_size: int, action_size: int, hidden: list[int], batch_size: int, rows: int, at_once: int
) -> Measure:
    """Its SAC with automatic temperature; a call samples all its batches and runs as one compiled loop."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

    def make(env):
        model = SAC("MlpPolicy", env, buffer_size=rows, seed=0, policy_kwargs={"net_arch": hidden})
        model.set_logger(configure(format_strings=[]))
        return model

    return updates(make, observation_size, action_size, rows, batch_size, at_once)


if __name__ == "__main__":
    main(build)
