"""Actor that looks into a multi-task policy's task inference: what a score alone does not explain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.artefacts import layout_of, load_policy, load_rows, snapshot_of, tasks_of, truth_table, write_json
from actors.job import Job
from actors.store import Output
from actors.worker import Worker
from mbml import envs
from mbml.evaluate import EvaluateConfig, evaluate_last_trajectory
from mbml.policy import ContextPolicy
from mbml.probes import identification, known_tasks, own_posteriors, returns_under, reward_swap
from mbml.rows import gather_rows, sample_indices
from mbml.seeding import generator_of

_PICTURE_CONTEXTS = 8
_CONTEXT_SIZE = 128
_ROWS = 10_000


class Prober(Worker):
    """Payload: `environment`, `horizon`, `train`, `test`, `config` (EvaluateConfig), `seed`, `step`, `last_trajectory`
    (also score the unseen tasks by PEARL's own protocol); inputs `distill`, `collect`. Leaves `probes.json`."""

    def work(self, job: Job, out: Output, inputs: dict[str, list[Path]]) -> dict[str, Any]:
        """Run every probe that the environment allows."""
        payload, layout = job.payload, layout_of(job.payload["environment"])
        environment, config, seed = payload["environment"], payload["config"], payload["seed"]
        rows = load_rows(inputs["collect"], payload["train"])
        kept = torch.arange(0, rows.shape[1], max(1, rows.shape[1] // _ROWS))
        rows = gather_rows(rows, kept.repeat(len(rows), 1))
        policy = load_policy(snapshot_of(inputs["distill"][0], payload["step"]))
        generator = generator_of(seed, "probes")
        posteriors = own_posteriors(policy, rows, layout, _CONTEXT_SIZE, _PICTURE_CONTEXTS, generator)
        train = tasks_of(environment, "train", payload["train"])
        truth = truth_table(environment, train, rows)
        swap = None if truth is None else reward_swap(policy, rows, truth, layout, generator)
        known = known_tasks(policy, rows, layout, _CONTEXT_SIZE, generator)
        common = (payload["horizon"], config, seed)
        found = {
            "train": list(payload["train"]),
            "posterior_mean": posteriors.mean.tolist(),
            "reward_swap": swap,
            "identification": identification(policy, known, envs.get(environment), train, *common),
            "foreign_contexts": self._foreign_contexts(payload, policy, rows, config, generator),
            "last_trajectory": None,
        }
        if payload["last_trajectory"]:
            unseen = tasks_of(environment, "test", payload["test"])
            found["last_trajectory"] = evaluate_last_trajectory(policy, envs.get(environment), unseen, *common).tolist()
        write_json(out.path / "probes.json", found)
        return swap or {}

    @staticmethod
    def _foreign_contexts(
        payload: dict[str, Any], policy: ContextPolicy, rows: Tensor, config: EvaluateConfig, generator: torch.Generator
    ) -> dict[str, list[float]] | None:
        """Return on each unseen task with z from its nearest and from its farthest training task's transitions, which
        carry the unseen task's true rewards; None where those cannot be computed."""
        environment, layout = payload["environment"], layout_of(payload["environment"])
        distribution = envs.get(environment)
        unseen = tasks_of(environment, "test", payload["test"])
        own, known = (distribution.features(t) for t in (unseen, tasks_of(environment, "train", payload["train"])))
        indices = sample_indices(rows.shape[0], _CONTEXT_SIZE, rows.shape[1], generator)
        sample = gather_rows(rows, indices)
        truth = truth_table(environment, unseen, sample)  # [n, K, size]
        if truth is None:
            return None
        distance = torch.from_numpy(((own[:, None] - known[None]) ** 2).sum(-1))
        everyone = torch.arange(len(unseen))
        found = {}
        for name, source in (("nearest", distance.argmin(1)), ("farthest", distance.argmax(1))):
            contexts = layout.context(sample[source]).clone()
            contexts[..., -1] = truth[everyone, source]
            returns = returns_under(
                policy, contexts, distribution, unseen, payload["horizon"], config.repeats, payload["seed"]
            )
            found[name] = returns.tolist()
        return found
