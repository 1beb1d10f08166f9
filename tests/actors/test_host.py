"""A host makes a stage's artefact: inputs, metrics, checkpoints, progress. No Ray is needed for that."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from actors.host import DeviceError, Host, duration
from actors.stage import CHECKPOINT, Job, Ref
from actors.store import Store, StoreError
from tests.pipeline.workers import Add, Count, job

pytestmark = pytest.mark.usefixtures("threads")


@pytest.fixture
def host(tmp_path):
    return Host(str(tmp_path))


@dataclass(frozen=True)
class Settings:
    width: int
    shape: tuple[int, ...]


def test_inputs_are_read_and_the_artefact_is_published_with_metrics(host):
    one, other = job("one", number=3), job("other", number=4)
    both = job("both", one, other, settings=Settings(8, (1, 2)))
    for each in (one, other, both):
        metrics = host.run(each)
    assert metrics["total"] == 8
    assert metrics["seconds"] >= 0
    manifest = host.store.describe(*both.ref)
    assert manifest["metrics"] == metrics
    described = manifest["description"]
    assert (described["name"], described["version"]) == ("both", 1)
    assert described["spec"]["settings"] == {"width": 8, "shape": [1, 2]}
    assert described["spec"]["inputs"] == [list(one.ref), list(other.ref)]


def test_a_complete_artefact_is_not_made_again(host):
    one = job("one")
    first = host.run(one)
    assert host.run(one) == first | {"reused": True}  # the times of the first try are in it


def test_a_failed_job_publishes_nothing_and_the_next_try_finds_its_files(host, tmp_path):
    failing = job("one", refuse="half way")
    for tries in (1, 2):
        with pytest.raises(ValueError, match="half way"):
            host.run(failing)
        assert not host.store.complete(*failing.ref)
        assert len((tmp_path / "add" / f"{failing.ref.key}.partial" / "tried").read_text()) == tries
    assert host.progress() is None


def test_code_that_ends_its_process_fails_as_any_other(host):
    """Else its process would be taken for lost, and the job tried again and again."""
    with pytest.raises(RuntimeError, match=r"its code called exit\(3\)"):
        host.run(job("one", die="politely"))


def test_an_absent_input_is_named(host):
    with pytest.raises(StoreError, match="add/nowhere"):
        host.run(Job(Add("two", inputs=(Ref("add", "nowhere"),)), "two"))


def test_an_input_at_hand_is_read_from_its_folder(host, tmp_path):
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "total").write_text("40")
    one = job("one")
    assert host.run(job("two", one), at_hand={one.ref: tmp_path / "near"})["total"] == 41


def test_a_number_that_is_not_finite_never_becomes_an_artefact(host):
    diverged = job("one", metric=float("nan"))
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        host.run(diverged)
    assert not host.store.complete(*diverged.ref)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process reset its peak")
def test_peak_memory_belongs_to_the_job_and_not_to_the_process(host):
    large = host.run(job("large", fill_mb=300))["peak_memory_mb"]
    small = host.run(job("small"))["peak_memory_mb"]
    assert large > 300
    assert small < large - 250


def test_a_job_has_the_threads_that_it_asked_for_whatever_the_machine_gave(host):
    for num_cpus, threads in ((0.5, 1), (3, 3), (1, 1)):
        assert host.run(job(f"of {num_cpus}", num_cpus=num_cpus))["threads"] == threads


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
@pytest.mark.parametrize("num_gpus", [0.0, 0.5])
def test_without_a_gpu_a_host_is_on_the_cpu_and_refuses_the_job_of_a_gpu(tmp_path, num_gpus):
    host = Host(str(tmp_path), num_gpus=num_gpus)
    assert host.device == "cpu"
    host.run(Job(Count("one", 1), "on a cpu"))
    wrong = Job(Count("two", 1, device="cuda"), "on a gpu")
    with pytest.raises(DeviceError, match=r"on a gpu is to run on cuda, but .* cpu"):
        host.run(wrong)
    assert not Store(tmp_path).complete(*wrong.ref)


def stopped_at_three(host):
    """A job that counts to five, stopped at three; what was counted so far, and what goes on to note it."""
    counting, seen = Job(Count("one", 5, seconds=0.0), "count"), []

    def interrupt(out):
        seen.append((out / "count").read_text())
        if seen == ["1", "2", "3"]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        host.run(counting, watch=interrupt)
    return counting, seen, interrupt


def test_a_process_goes_on_from_its_checkpoint_which_is_no_part_of_the_artefact(host):
    counting, seen, interrupt = stopped_at_three(host)
    assert host.run(counting, watch=interrupt)["counted"] == 5
    # What was counted after the last checkpoint is counted again.
    assert seen == ["1", "2", "3", "3", "4", "5"]
    assert {path.name for path in host.store.fetch(*counting.ref).iterdir()} == {
        "count",
        "resumed",
        "manifest.json",
    }


@pytest.mark.parametrize("place", [0.02, 0.5, 0.999])
def test_a_damaged_checkpoint_is_noticed_and_its_job_begins_anew(host, place):
    counting, seen, interrupt = stopped_at_three(host)
    checkpoint = Path(host.store.url, counting.ref.stage, f"{counting.ref.key}.partial", CHECKPOINT)
    content = bytearray(checkpoint.read_bytes())
    content[int(len(content) * place)] ^= 1
    checkpoint.write_bytes(content)
    assert host.run(counting, watch=interrupt)["counted"] == 5
    assert seen == ["1", "2", "3", "1", "2", "3", "4", "5"]
    assert {path.name for path in host.store.fetch(*counting.ref).iterdir()} == {"count", "manifest.json"}


def test_progress_counts_only_what_this_process_did_and_names_the_job(host):
    seen: list[str | None] = []

    def watch(out):
        host.report(5000, 6000, "it")
        host._marks[0] = (host._marks[0][0] - 10.0, 5000)  # ten seconds ago
        host.report(5100, 6000, "it", loss=torch.tensor(0.5))
        seen.append(host.progress())

    assert host.progress() is None
    host.run(Job(Count("one", 1, seconds=0.0), "count"), watch=watch)
    (found,) = seen
    assert found is not None
    name, *parts, rate, left, loss = re.split("  +", found.removeprefix("running  "))
    assert (name, parts, loss) == ("count", ["5100/6000 it", "85%"], "loss=0.5")
    assert float(rate.removesuffix(" it/s")) == pytest.approx(10.0, rel=0.1)
    minutes, seconds = left.removesuffix("s left").split("m")
    assert 60 * int(minutes) + int(seconds) == pytest.approx(90.0, rel=0.1)


def test_durations_for_people():
    assert [duration(s) for s in (0.04, 9.96, 59.7, 3599.8, 7500)] == ["0.0s", "10.0s", "1m00s", "1h00m", "2h05m"]
