"""Act by an exported policy with onnxruntime and NumPy alone: python examples/onnx_act.py policy/"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


class Policy:
    """One entity. `told` are the statistics from which z was formed last; zeros act as if nothing had been seen."""

    def __init__(self, folder, seed=0):
        self.about = json.loads(Path(folder, "policy.json").read_text())
        self.update, self.decide = (onnxruntime.InferenceSession(Path(folder, f"{n}.onnx")) for n in ("update", "act"))
        self.shapes = {name: shape[1:] for name, (_, shape) in self.about["onnx"]["act"]["inputs"].items()}
        self.statistics = np.zeros((1, *self.shapes["statistics"]), np.float32)
        self.random, self.unfamiliarity = np.random.default_rng(seed), 0.0
        self.begin_episode()

    def begin_episode(self):
        self.told, self.steps = self.statistics, 0
        self.z_noise = self.random.standard_normal((1, *self.shapes.get("z_noise", [])), np.float32)

    def act(self, observation):
        if self.steps == self.about["inference"]["renewed_every"] > 0:
            self.begin_episode()
        self.steps += 1
        noise = self.random.standard_normal((1, *self.shapes.get("noise", [])), np.float32)
        values = {"statistics": self.told, "observation": observation[None], "z_noise": self.z_noise, "noise": noise}
        (action,) = self.decide.run(None, {name: values[name] for name in self.shapes})
        return np.asarray(action)[0]

    def observe(self, observation, action, reward, next_observation):
        row = {"observation": observation, "action": action, "reward": reward, "next_observation": next_observation}
        given = {name: np.asarray(value, np.float64)[None] for name, value in row.items()}
        self.statistics, *score = self.update.run(None, {"statistics": self.statistics, **given})
        self.unfamiliarity = float(np.asarray(score[0])[0]) if score else None


if __name__ == "__main__":
    policy = Policy(sys.argv[1])
    observation = np.array(policy.about["observation"]["offset"])
    for _ in range(5):  # a process that stays where it is and pays nothing: put your own here
        action = policy.act(observation)
        policy.observe(observation, action, 0.0, observation)
        print(f"action {action}, unfamiliarity {policy.unfamiliarity}")
