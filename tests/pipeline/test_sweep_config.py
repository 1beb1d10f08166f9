"""Sweeps as YAML files: those that come with the project are right, every mistake is one sentence with its field."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from mbml import envs
from mbml.settings import hints
from pipeline.config import ConfigError
from pipeline.presets import NAMES, preset
from pipeline.sweep_config import Sweep, load_sweep, names, runnable, sweep_defaults


def written(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize("env", envs.FAMILIES)
@pytest.mark.parametrize("name", names())
def test_every_sweep_can_be_run_in_every_environment(env, name):
    sweep = load_sweep(name)
    for size in NAMES:
        config = sweep_defaults(sweep, preset(env, size))
        said = []
        variants = runnable(sweep, config, said.append)
        assert variants
        assert len({variant.label for variant in variants}) == len(variants)
        left_out = {line.split(":")[0].removeprefix("left out ") for line in said}
        assert {variant.method for variant in variants} == set(sweep.methods) - left_out


def test_the_margin_sweep_is_the_missions():
    sweep = load_sweep("triplet_margin")
    assert sweep.grid == {"distill.margin": (0.0, 2.0, 4.0, 8.0)}
    assert len(sweep.seeds) >= 3
    assert [variant.label for variant in sweep.variants()] == ["margin=0", "margin=2", "margin=4", "margin=8"]
    assert [variant.changes for variant in sweep.variants()][3] == {"distill.margin": 8.0}


def test_methods_and_grid_are_crossed_in_order(tmp_path):
    text = "methods: [full, neither]\ngrid:\n  distill.margin: [1, 2]\n  distill.kl_weight: [0.5]\nseeds: [4]\n"
    sweep = load_sweep(
        written(tmp_path, text + "set:\n  distill.steps: 7\n  rllib.algorithms: [bc]\nscheduler: asha\n")
    )
    assert (sweep.name, sweep.scheduler) == ("mine", "asha")
    assert [(v.label, v.method) for v in sweep.variants()] == [
        ("full, margin=1, kl_weight=0.5", "full"),
        ("full, margin=2, kl_weight=0.5", "full"),
        ("neither, margin=1, kl_weight=0.5", "neither"),
        ("neither, margin=2, kl_weight=0.5", "neither"),
    ]
    config = sweep_defaults(sweep, preset("umaze_goal", "laptop"))
    assert (config.distill.steps, config.rllib.algorithms, config.distill_seeds, config.distill_cpus) == (
        7,
        ("bc",),
        (4,),
        1,
    )


def test_single_changes_stand_beside_the_point_that_changes_nothing(tmp_path):
    text = "methods: [evidence]\nalone:\n  evidence.own_share: [0.1, 0.9]\n  evidence.student.standardised: [false]\n"
    text += "  evidence.student.encoder.standardised: [false]\n"
    found = [(v.label, dict(v.changes)) for v in load_sweep(written(tmp_path, text)).variants()]
    assert found == [
        ("evidence", {}),
        ("own_share=0.1", {"evidence.own_share": 0.1}),
        ("own_share=0.9", {"evidence.own_share": 0.9}),
        ("student.standardised=False", {"evidence.student.standardised": False}),
        ("encoder.standardised=False", {"evidence.student.encoder.standardised": False}),
    ]


def test_the_example_of_the_documentation_is_a_sweep(tmp_path):
    text = (Path(__file__).resolve().parents[2] / "docs" / "running.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    sweep = load_sweep(written(tmp_path, example))
    known = {name for name in hints(Sweep) if name not in ("name", "description", "drawn")}
    assert set(re.findall(r"^(\w+):", example, re.MULTILINE)) == known
    assert runnable(sweep, sweep_defaults(sweep, preset("umaze_goal", "laptop")), print)


def test_a_search_is_crossed_with_methods_and_grid_and_more_samples_only_add(tmp_path):
    text = "methods: [full, neither]\ngrid:\n  distill.steps: [3, 4]\nsearch:\n  distill.margin: {uniform: [0, 8]}\n"
    text += "  distill.kl_weight: {loguniform: [0.001, 1]}\n"
    few = load_sweep(written(tmp_path, text + "samples: 2\n")).variants()
    assert len(few) == 2 * 2 * 2
    assert len({variant.label for variant in few}) == len(few)
    for variant in few:
        margin, weight = variant.changes["distill.margin"], variant.changes["distill.kl_weight"]
        assert 0 <= margin <= 8
        assert 0.001 <= weight <= 1
        assert f"margin={margin:g}, kl_weight={weight:g}" in variant.label
    more = [variant.label for variant in load_sweep(written(tmp_path, text + "samples: 3\n")).variants()]
    assert {variant.label for variant in few} < set(more)
    other = load_sweep(written(tmp_path, text + "samples: 2\nsearch_seed: 1\n")).variants()
    assert not {variant.label for variant in few} & {variant.label for variant in other}


def test_labels_are_the_shortest_ends_that_no_other_path_has(tmp_path):
    text = "methods: [evidence]\nalone:\n  teacher: [iql]\n  evidence.teacher: [iql]\n"
    text += "  distill.student.encoder.temperature: [2]\n  evidence.student.encoder.temperature: [2]\n"
    labels = [variant.label for variant in load_sweep(written(tmp_path, text)).variants()]
    ends = ["distill.student.encoder.temperature=2", "evidence.student.encoder.temperature=2"]
    assert labels == ["evidence", "teacher=iql", "evidence.teacher=iql", *ends]


def test_single_changes_beside_a_grid_stand_beside_the_point_that_changes_nothing(tmp_path):
    text = "grid:\n  distill.kl_weight: [0.5]\nalone:\n  distill.margin: [1]\n"
    changes = [dict(variant.changes) for variant in load_sweep(written(tmp_path, text)).variants()]
    assert changes == [{}, {"distill.kl_weight": 0.5}, {"distill.margin": 1.0}]


def test_a_change_to_what_is_there_already_is_left_out_and_said(tmp_path):
    text = "methods: [evidence]\nalone:\n  evidence.guide: [own, best]\n"
    said = []
    sweep = load_sweep(written(tmp_path, text))
    kept = runnable(sweep, sweep_defaults(sweep, preset("umaze_goal", "laptop")), said.append)
    assert [variant.label for variant in kept] == ["evidence", "guide=own"]
    assert said == ["left out guide=best: here it is the same as evidence."]


def test_what_an_environment_rules_out_is_left_out_and_said():
    said = []
    sweep = load_sweep("ablations")
    config = sweep_defaults(sweep, preset("ant_dir", "smoke"))
    variants = runnable(sweep, config, said.append)
    assert "ground_truth" not in [variant.method for variant in variants]
    assert len(said) == 1
    assert said[0].startswith("left out ground_truth: ")
    for methods, word in ((("ground_truth",), "ground_truth"), (("full", "fulll"), "fulll"), ((), "methods")):
        with pytest.raises(ConfigError, match=word):
            runnable(sweep, replace(config, methods=methods), said.append)
    (only,) = runnable(sweep, replace(config, methods=("neither",)), said.append)
    assert only.label == "neither"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grid:\n  distil.margin: [1]\n", ["distil.margin", "distill", "collect"]),
        ("seeds: [0]\ngrid:\n  distill.margn: [1]\n", ["did you mean distill.margin", "distill.kl_weight"]),
        ("grid:\n  distill: [1]\n", ["distill.margin"]),
        ("grid:\n  distill.margin.x: [1]\n", ["distill.margin.x"]),
        ("grid:\n  distill.margin: [1, wide]\n", ["distill.margin", "entry 1", "wide", "number"]),
        ("grid:\n  distill.margin: 2\n", ["distill.margin is 2", "tuple"]),
        ("grid:\n  distill.margin: []\n", ["distill.margin", "no values"]),
        ("grid:\n  distill.triplet: [softly]\n", ["distill.triplet", "softly", "hard_mining"]),
        ("grid:\n  env: [ant_dir]\n", ["env", "same in the whole sweep"]),
        ("grid: [1]\n", ["name: value"]),
        ("margins: [1]\n", ["margins", "description, methods, grid, alone, seeds, set, search, samples"]),
        ("seeds: [0, one]\n", ["seeds", "entry 1", "one", "integer"]),
        ("seeds: [0]\nseeds: [1]\n", ["line 2", "second time"]),
        ("methods:\n  - full\n  - fulll\n", ["methods", "entry 1", "fulll", "contextual_bcq"]),
        ("methods: [full, full]\n", ["methods", "each once"]),
        ("search:\n  distill.margn: {uniform: [0, 1]}\n", ["did you mean distill.margin"]),
        ("search:\n  distill.margin: [0, 1]\n", ["distill.margin", "loguniform: [low, high]"]),
        ("search:\n  distill.steps: {uniform: [1, 9]}\n", ["distill.steps", "randint"]),
        ("search:\n  distill.steps: {randint: [0, 9]}\n", ["distill.steps is 0", "equal to 1"]),
        ("search: {distill.margin: {uniform: [0, 1]}}\ngrid: {distill.margin: [1]}\n", ["distill.margin", "once"]),
        ("samples: 3\n", ["samples", "search"]),
        (
            "samples: 100000000\nsearch: {distill.margin: {uniform: [0, 1]}}\n",
            ["samples, grid, alone and methods make 100,000,000 variants; a sweep has at most 5,000"],
        ),
        (
            "methods: [full, neither]\ngrid: {distill.steps: [1, 2, 3]}\nalone: {distill.margin: [1]}\nsamples: 1000\n"
            "search: {distill.kl_weight: {uniform: [0, 1]}}\n",
            ["make 6,002 variants"],
        ),
        ("scheduler: hyperband\n", ["scheduler", "hyperband", "asha"]),
        ("max_concurrent: 0\n", ["max_concurrent is 0"]),
        ("time_budget: soon\n", ["time_budget", "soon"]),
        ("objective: test_return\n", ["objective", "unseen tasks", "train_return, train_worst"]),
        ("objective: best\n", ["objective", "best", "train_return"]),
        ("searcher: optuna\n", ["searcher", "search"]),
        ("search: {distill.margin: {uniform: [0, 1]}}\nsearcher: optuna\nmethods: [full, neither]\n", ["one method"]),
        ("set:\n  distill.steps: many\n", ["distill.steps", "many", "integer"]),
        ("seeds: [0\n", ["line 2", "no readable YAML file"]),
        ("", ["mine.yaml", "name: value"]),
        ("grid: {3: [1]}\n", ["line 1", "'3' is no text"]),
        ("search: {null: {uniform: [0, 1]}}\n", ["line 1", "'null' is no text"]),
        ("? [a]\n: b\n", ["line 1", "is no text"]),
        ('samples: !!int ""\n', ["line 1", "is no int"]),
        ("seeds: [2020-99-99]\n", ["line 1", "'2020-99-99' is no timestamp"]),
        ("[" * 20_000, ["nested too deeply"]),
        ("a: &a [" + "x," * 99 + "]\nb: &b [" + "*a," * 99 + "]\nc: [" + "*b," * 99 + "]\n", ["100,000 values"]),
        ("methods: &a [*a]\n", ["100,000 values"]),
        (f"search: {{distill.margin: {{uniform: [0, 1{'0' * 400}]}}}}\n", ["distill.margin", "two numbers"]),
        ("search: {distill.margin: {uniform: [-1.7e+308, 1.7e+308]}}\n", ["distill.margin", "below 1e+300"]),
    ],
)
def test_a_mistake_is_one_sentence_with_its_file_and_field(tmp_path, text, words):
    with pytest.raises(ConfigError) as caught:
        load_sweep(written(tmp_path, text))
    sentence = str(caught.value)
    assert "mine.yaml" in sentence
    assert "\n" not in sentence
    assert sentence.endswith(".")
    for word in words:
        assert word in sentence


def test_a_pipe_is_no_sweep(tmp_path, impatient):
    os.mkfifo(tmp_path / "mine.yaml")
    with pytest.raises(ConfigError, match=r"mine\.yaml is no readable YAML file \(it is no regular file\)"):
        load_sweep(str(tmp_path / "mine.yaml"))


def test_values_that_cannot_be_run_are_refused_before_anything_runs(tmp_path):
    with pytest.raises(ConfigError, match=r"mine\.yaml: rllib\.updates \(entry 1\) is 0"):
        load_sweep(written(tmp_path, "grid:\n  rllib.updates: [10, 0]\n"))
    sweep = load_sweep(written(tmp_path, "grid:\n  evaluate.skipped_episodes: [1, 9]\n"))
    with pytest.raises(ConfigError, match=r"evaluate\.skipped_episodes is 9"):
        runnable(sweep, preset("umaze_goal", "smoke"), print)
    sweep = load_sweep(written(tmp_path, "methods: [evidence]\ngrid:\n  pooled.teacher: [td3_bc, None]\n"))
    with pytest.raises(ConfigError, match=r"mine, evidence, teacher=None: There is no teacher 'None'; choose one of"):
        runnable(sweep, preset("umaze_goal", "smoke"), print)


def test_an_unknown_sweep_is_refused_with_the_names(tmp_path):
    for name in ("margins", str(tmp_path / "none.yaml")):
        with pytest.raises(ConfigError, match="triplet_margin"):
            load_sweep(name)
