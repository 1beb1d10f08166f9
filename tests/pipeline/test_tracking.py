"""Results in a tracker, read back by its own package where that is installed, and what is said where it fails."""

import importlib.util

import pytest

from pipeline.config import ConfigError
from pipeline.publish import publish
from pipeline.tracking import check_tracker, track
from tests.pipeline.report import synthetic


@pytest.fixture
def published(tmp_path):
    """A report folder and its results, with a variant whose name no tracker would take as it is."""
    out = tmp_path / "umaze_goal-laptop-seed0"
    out.mkdir()
    results = synthetic.results(("full", "full, distill.margin=4.0"))
    publish(results, out, lambda line: None)
    return results, out


def test_mlflow_has_what_the_report_says(published, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    results, out = published
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    said = []
    track("mlflow", results, out, said.append)
    assert said == ["mlflow has the results as run umaze_goal-laptop-seed0 of mbml."]
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("mbml").experiment_id])
    assert run.data.params["collect.hidden"] == "[128, 128]"
    steps, scores = results.scores("full", "test")
    curve = client.get_metric_history(run.info.run_id, "full/seed-1/score/test")
    assert [point.step for point in curve] == steps.tolist()
    assert [point.value for point in curve] == pytest.approx(scores[1].mean(axis=1))
    assert "full_ distill.margin_4.0/seed-0/score/test" in run.data.metrics
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"report.html", "results.parquet"}


def test_wandb_takes_them_without_a_network(published, monkeypatch):
    pytest.importorskip("wandb")
    results, out = published
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    said = []
    track("wandb", results, out, said.append)
    assert said == ["wandb has the results as run umaze_goal-laptop-seed0 of mbml."]
    (file,) = out.glob("wandb/offline-run-*/*.wandb")
    assert b"full/seed-1/score/test" in file.read_bytes()


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_package_that_is_not_there_is_said_before_anything_runs(name):
    if importlib.util.find_spec(name):
        check_tracker(name)
    else:
        with pytest.raises(ConfigError, match=f"pip install {name} gets it"):
            check_tracker(name)


def test_a_tracker_that_fails_is_a_sentence(published, tmp_path, monkeypatch):
    """A package of that name which is no tracker."""
    (tmp_path / "wandb.py").write_text("def init(**how): raise ConnectionError('no route to host')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "wandb", raising=False)
    results, out = published
    said = []
    track("wandb", results, out, said.append)
    assert said == [f"wandb did not take the results (no route to host); they are in {out}."]
