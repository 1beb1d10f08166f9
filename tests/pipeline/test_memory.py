"""What cannot fit into memory is refused before it starts, with what it would take."""

import pytest

from mbml.settings import changed
from pipeline.config import ConfigError
from pipeline.memory import check_memory
from pipeline.plan import plan
from pipeline.presets import preset


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        # 10**11 steps of 5 tasks in rows of 12 numbers of 4 bytes
        ({"collect.steps": 10**11}, r"collect tasks 0-4 .* needs at least 2\d,\d{3}\.\d GB for 100,000,000,000 steps"),
        # 10**10 weights, each with gradient and two moments, for 5 tasks
        ({"collect.sac.critic_hidden": (100_000, 100_000)}, r"collect .* 800\.0 GB for .* 100000 x 100000, 5 times"),
        ({"models.reward.hidden": (50_000, 50_000)}, r"models tasks .* 1,000\.0 GB for .* 50000 x 50000, 25 times"),
        (
            {"distill.student.value_hidden": (100_000, 100_000)},
            r"distill full .* 160\.0 GB for .* 100000 x 100000, and",
        ),
        ({"bcq.batch_size": 10**9}, r"teach .* for batches of 1000000000 in layers of \d+, 5 times"),
    ],
)
def test_what_cannot_fit_is_refused_with_an_estimate(embedded_ray, change, sentence):
    config = changed(preset("umaze_goal", "laptop"), change)
    with pytest.raises(ConfigError, match=sentence):
        check_memory(plan(config).jobs.values())


@pytest.mark.parametrize("env", ["umaze_goal", "humanoid_dir"])
@pytest.mark.parametrize("size", ["smoke", "laptop", "paper"])
def test_presets_fit_on_this_machine(embedded_ray, env, size):
    check_memory(plan(preset(env, size)).jobs.values())
