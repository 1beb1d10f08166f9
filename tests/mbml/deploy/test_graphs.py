"""The ONNX graphs act as the policy does, over whole episodes, for every kind of policy and encoder."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mbml import AdaptivePolicy, PolicyError
from mbml.deploy.graphs import graphs_possible
from tests.mbml.deploy.small import EVERY, make_policy, transitions, user_units, write
from tests.mbml.toys import random_rows, seeded

needed = pytest.mark.skipif(not graphs_possible(), reason="needs onnx and onnxscript")


@pytest.mark.skipif(graphs_possible(), reason="needs a place without onnx")
def test_without_the_packages_there_is_a_sentence_and_no_folder(tmp_path):
    with pytest.raises(PolicyError, match="need the packages onnx and onnxscript"):
        write(tmp_path / "policy", graphs=True)
    assert not (tmp_path / "policy").exists()


def feed(graph, **values):
    """What a graph takes of `values`, checked against what policy.json says of it."""
    for name, (kind, shape) in graph["inputs"].items():
        assert values[name].dtype == kind
        assert list(values[name].shape[1:]) == shape[1:]
    return {name: values[name] for name in graph["inputs"]}


@needed
@pytest.mark.parametrize(
    "kind", [kind for kind in EVERY if kind not in ("acting product", "acting mixture arbitrated")]
)
def test_a_graph_acts_as_the_policy_over_whole_episodes(tmp_path, kind):
    runtime = pytest.importorskip("onnxruntime")
    units, every, number = user_units(), 5, 3
    folder = write(tmp_path / "policy", kind, rows=list(random_rows(3, 100)), graphs=True, **units)
    graphs = json.loads((folder / "policy.json").read_text())["onnx"]
    update, act = (runtime.InferenceSession(folder / f"{name}.onnx") for name in ("update", "act"))
    policy = AdaptivePolicy.load(folder, entities=number, deterministic=True, renewed_every=every)
    fixed = make_policy(kind).noise(1, seeded(0)).repeat_interleave(number, 0).numpy()  # as a deterministic one has it
    statistics = np.zeros((number, graphs["update"]["inputs"]["statistics"][1][1]), np.float32)
    streams = [transitions(60, seed, units) for seed in range(number)]
    for step, parts in enumerate(zip(*streams, strict=True)):
        s, a, r, following, _ = (np.stack(part) for part in zip(*parts, strict=True))
        if step % every == 0 or step % 20 == 0:
            told = statistics
        given = feed(
            graphs["act"], statistics=told, observation=s, z_noise=np.zeros((number, 3), np.float32), noise=fixed
        )
        (action,) = act.run(None, given)
        np.testing.assert_allclose((action - 5) / 10, (policy.act(s) - 5) / 10, atol=1e-5)
        policy.observe(s, a, r, following, truncated=step % 20 == 19)
        seen = feed(
            graphs["update"], statistics=statistics, observation=s, action=a, reward=r, next_observation=following
        )
        statistics, unfamiliarity = update.run(None, seen)
        np.testing.assert_allclose(unfamiliarity, policy.unfamiliarity, atol=0.02)  # a step is 1/201
    np.testing.assert_allclose(statistics, policy.state()["entities"]["statistics"], rtol=1e-4, atol=1e-4)


@needed
def test_the_example_acts_with_numpy_and_the_runtime_alone(tmp_path):
    pytest.importorskip("onnxruntime")
    folder = write(tmp_path / "policy", "generative mixture", rows=list(random_rows(3, 60)), graphs=True)
    example = Path(__file__).parents[3] / "examples" / "onnx_act.py"
    program = f"""
import runpy, sys
sys.argv = ["onnx_act.py", {str(folder)!r}]
runpy.run_path({str(example)!r}, run_name="__main__")
assert not {{"torch", "mbml", "ray", "pandas"}} & set(sys.modules), sorted(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "unfamiliarity" in done.stdout
