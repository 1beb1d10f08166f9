"""The measurement on a GPU, as far as it goes without one."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import (
    LEARNERS,
    MULTI_TASK,
    TOLERANCE,
    Agreement,
    Options,
    Problem,
    Results,
    Times,
    difference,
    main,
    markdown,
)
from benchmarks.ours.draws import CPUDraws
from mbml.sac import SAC
from tests.mbml.toys import seeded

ROOT = Path(__file__).resolve().parents[2]


def test_draws_are_those_of_a_generator_on_the_cpu_of_the_same_seed():
    def drawn(generator):
        return [
            torch.empty(3, 4).uniform_(-2.0, 1.0, generator=generator),
            torch.randn((2, 20), generator=generator, device=generator.device),
            torch.randint(9, (5,), generator=generator, device=generator.device),
            torch.rand(2, 3, generator=generator, device=generator.device, dtype=torch.float64),
        ]

    expected = drawn(seeded(3))
    asked = seeded(3)
    before = asked.get_state()
    with CPUDraws():
        found = drawn(asked)
        assert not torch.equal(torch.rand(3, generator=asked), torch.rand(3, generator=seeded(3)))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert torch.equal(asked.get_state(), before), "it was drawn elsewhere"


@pytest.mark.parametrize("learner", LEARNERS)
def test_every_learner_is_compared_in_both_precisions(learner):
    problem = Problem(learner, "smoke", 4 if learner in MULTI_TASK else 2)
    for precision in (torch.float64, torch.float32):
        # The second name of the same device makes the draws go the way that they go to a GPU.
        assert difference(problem, ("cpu", "cpu:0"), 3, precision) == 0.0
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("learner", LEARNERS)
def test_what_an_update_tells_is_in_the_precision_of_its_networks(learner):
    """Otherwise a comparison in double precision would compare roundings to single."""
    torch.set_default_dtype(torch.float64)
    try:
        _, step = Problem(learner, "smoke", 4 if learner in MULTI_TASK else 2).build("cpu", rows=60)
        assert {value.dtype for value in step().values()} == {torch.float64}
    finally:
        torch.set_default_dtype(torch.float32)


def test_another_result_is_seen(monkeypatch):
    problem, calls, built = Problem("sac", "smoke", 2), [], Problem.build

    def build(self, device, rows, *, graphs=False):
        learner, step = built(self, device, rows, graphs=graphs)
        calls.append(learner)
        if len(calls) == 2:
            assert isinstance(learner, SAC)
            with torch.no_grad():
                learner.policy.weights[0].mul_(1.001)
        return learner, step

    monkeypatch.setattr(Problem, "build", build)
    assert difference(problem, ("cpu", "cpu"), 2, torch.float64) > TOLERANCE["float64"]


def test_the_table_names_what_is_missing_and_what_failed():
    times = Times(Problem("iql", "paper", 10), cpu_alone=500.0, cpu=120.0, gpu=6.0, graph=2.0)
    agreement = Agreement(Problem("iql", "paper", 2), float64=1e-15, float32=2e-7)
    found = Results({"CPU": "a processor", "GPU": "a card"}, Options(), [times], [agreement], ["paper iql: broken"])
    text = markdown(found)
    assert "| paper | `iql` | 10 | 500 | 120 | 6.00 | 2.00 | 60.0 |" in text
    assert "| paper | `iql` | 1.0e-15 | 2.0e-07 | - |" in text
    assert "GPU a card" in text
    assert "- failed: paper iql: broken" in text


def test_the_script_without_a_gpu(tmp_path):
    tiny = ["--sizes", "smoke", "--updates", "2", "--rows", "60", "--seconds", "0.1", "--cpu-only"]
    command = ["bash", "benchmarks/gpu.sh", str(tmp_path), *tiny]
    environment = {
        "PATH": "/usr/bin:/bin",
        "TESTS": "tests/mbml/test_gpu.py",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"tests.txt", "gpu.md", "gpu.json"}
    times = json.loads((tmp_path / "gpu.json").read_text())["times"]
    assert [line["problem"]["learner"] for line in times] == list(LEARNERS)
    assert all(line["cpu"] > 0 and line["cpu_alone"] > 0 and line["gpu"] is None for line in times)


def test_bad_input_is_one_sentence(capsys, tmp_path):
    assert main(["--learners", "sca", "--out", str(tmp_path)]) == 2
    assert "there is no learner sca; choose from sac," in capsys.readouterr().err
