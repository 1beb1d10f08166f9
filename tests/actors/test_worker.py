import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.job import Job
from actors.store import Output, Store, StoreError
from actors.worker import DeviceError, Progress, Worker


@dataclass(frozen=True)
class Settings:
    width: int
    shape: tuple[int, ...]


class Doubler(Worker):
    tries = 0

    def work(self, job: Job, out: Output, inputs: dict[str, list[Path]]) -> dict[str, Any]:
        self.tries += 1
        if job.payload.get("fail"):
            (out.path / "half").touch()
            raise RuntimeError("half way")
        numbers = [int((path / "number").read_text()) for path in inputs.get("numbers", [])]
        (out.path / "number").write_text(str(2 * sum(numbers) + job.payload.get("plus", 0)))
        if job.payload.get("fill"):
            np.ones(job.payload["fill"] * 2**20, dtype=np.uint8)
        return {"inputs": len(numbers)}


@pytest.fixture
def worker(tmp_path):
    threads = torch.get_num_threads()
    yield Doubler(str(tmp_path), num_cpus=1)
    torch.set_num_threads(threads)


def test_run_hands_inputs_over_in_order_and_publishes_with_metrics(worker, tmp_path):
    for key, plus in (("a", 3), ("b", 4)):
        worker.run(Job("one", f"one {key}", key, {"plus": plus}))
    job = Job("two", "two", "c", {"settings": Settings(8, (1, 2))}, {"numbers": [("one", "a"), ("one", "b")]})
    metrics = worker.run(job)
    store = Store(tmp_path)
    assert (store.fetch("two", "c") / "number").read_text() == "14"
    assert metrics["inputs"] == 2
    assert metrics["seconds"] >= 0
    manifest = store.describe("two", "c")
    assert manifest["metrics"] == metrics
    assert manifest["description"] == {
        "name": "two",
        "payload": {"settings": {"width": 8, "shape": [1, 2]}},
        "inputs": {"numbers": [["one", "a"], ["one", "b"]]},
    }


def test_a_complete_artefact_is_not_made_again(worker):
    job = Job("one", "one a", "a", {"plus": 3})
    assert worker.run(job) == worker.run(job)
    assert worker.tries == 1


def test_a_failed_job_publishes_nothing_and_keeps_its_partial_files(worker, tmp_path):
    job = Job("one", "one a", "a", {"fail": True})
    with pytest.raises(RuntimeError, match="half way"):
        worker.run(job)
    assert not Store(tmp_path).complete("one", "a")
    with Store(tmp_path).create("one", "a", {}) as out:
        assert (out.path / "half").exists()
    assert repr(worker) == "Doubler"
    assert worker.progress() is None


def test_an_absent_input_is_named(worker):
    with pytest.raises(StoreError, match="one/nowhere"):
        worker.run(Job("two", "two", "c", {}, {"numbers": [("one", "nowhere")]}))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process reset its peak")
def test_peak_memory_belongs_to_the_job_and_not_to_the_process(worker):
    large = worker.run(Job("one", "large", "large", {"fill": 300}))["peak_memory_mb"]
    small = worker.run(Job("one", "small", "small"))["peak_memory_mb"]
    assert large > 300
    assert small < large - 250


def test_threads_follow_the_cpus(tmp_path):
    threads = torch.get_num_threads()
    try:
        assert Doubler(str(tmp_path), num_cpus=0.5).threads == torch.get_num_threads() == 1
        assert Doubler(str(tmp_path), num_cpus=2).threads == torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
@pytest.mark.parametrize("num_gpus", [0.0, 0.5])
def test_without_a_gpu_a_worker_is_on_the_cpu_and_refuses_the_job_of_a_gpu(tmp_path, num_gpus):
    worker = Doubler(str(tmp_path), num_gpus=num_gpus)
    assert worker.device == "cpu"
    worker.run(Job("one", "one a", "a", {"device": "cpu"}))
    with pytest.raises(DeviceError, match=r"one b is to run on cuda, but .* cpu"):
        worker.run(Job("one", "one b", "b", {"device": "cuda"}))
    assert not Store(tmp_path).complete("one", "b")


def test_the_rate_counts_only_what_this_process_did(tmp_path):
    seen: list[Progress | None] = []

    class Resumed(Worker):
        def work(self, job, out, inputs):
            seen.append(self.progress())
            self.report(5000, 6000, "it")
            seen.append(self.progress())
            time.sleep(0.2)
            self.report(5100, 6000, "it", loss=torch.tensor(0.5))
            seen.append(self.progress())
            return {}

    Resumed(str(tmp_path)).run(Job("one", "resumed", "a"))
    before, first, last = seen
    assert before is None
    assert first == Progress("resumed", 5000, 6000, "it", None, None)
    assert last is not None
    assert last.rate is not None
    assert 0 < last.rate <= 500  # 100 in 0.2 s or a little more, and not 5100
    assert last == Progress("resumed", 5100, 6000, "it", last.rate, 900 / last.rate, {"loss": 0.5})
