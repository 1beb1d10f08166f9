"""The store in a real folder and behind a real file:// URL, which is used as any remote one."""

import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

import pytest

from actors import lease
from actors.cache import folder, trim
from actors.store import REMEDY, Store, StoreError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MBML_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["folder", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {
        "folder": str(tmp_path / "store"),
        "file": f"file://{tmp_path / 'store'}",
    }[request.param]


class Stopped(Exception):
    """A job that fails on purpose."""


def publish(store: Store, key: str = "k1", text: str = "hello") -> None:
    with store.create("bcq", key, {"margin": 1.0}) as out:
        (out.path / "task=000").mkdir(exist_ok=True)
        (out.path / "task=000" / "part.arrow").write_text(text)
        (out.path / "weights").write_bytes(b"\0" * 10)
        out.manifest["metrics"] = {"return": 3.5}


def stop_after_writing(url: str, files: dict[str, str]) -> None:
    """A job that fails when it has written its files."""
    with Store(url).create("bcq", "k1", {}) as out:
        for name, text in files.items():
            (out.path / name).parent.mkdir(exist_ok=True)
            (out.path / name).write_text(text)
        raise Stopped


def contents(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): path.read_text()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


def test_keys_are_those_of_complete_artefacts(url: str):
    store = Store(url)
    assert store.keys("bcq") == []
    publish(store, "k2")
    publish(store, "k1")
    with pytest.raises(Stopped), Store(url).create("bcq", "k3", {}):
        raise Stopped
    assert store.keys("bcq") == ["k1", "k2"]
    store.discard("bcq", "k1")
    assert store.keys("bcq") == ["k2"]
    assert store.keys("teach") == []


def test_publish_describe_fetch(url: str):
    store = Store(url)
    store.check_writable()
    assert not store.complete("bcq", "k1")
    with store.create("bcq", "k1", {"margin": 1.0}) as out:
        (out.path / "task=000").mkdir()
        (out.path / "task=000" / "part.arrow").write_text("hello")
        out.manifest["metrics"] = {"return": 3.5}
        out.checkpoint()
        assert not Store(url).complete("bcq", "k1")
    other = Store(store.url)
    assert other.complete("bcq", "k1")
    assert not other.complete("bcq", "k2")
    assert not other.complete("distill", "k1")
    manifest = other.describe("bcq", "k1")
    assert manifest.pop("created").endswith("+00:00")
    assert manifest == {
        "stage": "bcq", "key": "k1", "description": {"margin": 1.0}, "metrics": {"return": 3.5},
        "files": [{"file": "task=000/part.arrow", "bytes": 5, "sha256": hashlib.sha256(b"hello").hexdigest()}],
    }  # fmt: skip
    fetched = other.fetch("bcq", "k1")
    assert fetched.name == "k1"
    assert contents(fetched) == {"task=000/part.arrow": "hello"}
    assert store.uri("bcq", "k1") == f"{store.url}/bcq/k1"


def test_one_file_is_read_whatever_became_of_the_others(url: str):
    store = Store(url)
    publish(store)
    assert store.file("bcq", "k1", "weights").read_text() == contents(store.fetch("bcq", "k1"))["weights"]
    with pytest.raises(StoreError, match="absent or incomplete"):
        store.file("bcq", "k2", "weights")


def test_a_file_of_a_folder_is_checked_alone(tmp_path: Path):
    store = Store(tmp_path)
    publish(store)
    (tmp_path / "bcq" / "k1" / "task=000" / "part.arrow").write_text("another")
    assert store.file("bcq", "k1", "weights").is_file()
    with pytest.raises(StoreError, match="arrow is damaged"):
        store.file("bcq", "k1", "task=000/part.arrow")
    with pytest.raises(StoreError, match="has no wights"):
        store.file("bcq", "k1", "wights")


def test_layout_and_nothing_left_behind(tmp_path: Path, cache: Path):
    for url in (str(tmp_path / "a"), f"file://{tmp_path / 'b'}"):
        store = Store(url)
        store.check_writable()
        with pytest.raises(Stopped):
            stop_after_writing(url, {"half": ""})
        publish(store)
    for root in (tmp_path / "a", tmp_path / "b"):
        found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        names = ["bcq/k1/half", "bcq/k1/manifest.json", "bcq/k1/task=000/part.arrow", "bcq/k1/weights"]
        assert found == names
        assert not list(root.rglob("*.partial"))
    assert len(list(cache.iterdir())) == 1, "scratch directories stay behind"


def test_an_exception_keeps_the_work_for_the_next_try(url: str):
    with pytest.raises(Stopped):
        stop_after_writing(url, {"deep/checkpoint": "step 10", ".weights.0123.tmp": "a write that was cut"})
    store = Store(url)
    assert not store.complete("bcq", "k1")
    with pytest.raises(StoreError, match=r"bcq/k1 is absent or incomplete"):
        store.fetch("bcq", "k1")
    with store.create("bcq", "k1", {}) as out:
        assert contents(out.path) == {"deep/checkpoint": "step 10"}
        (out.path / "deep" / "checkpoint").unlink()
        (out.path / "result").write_text("done")
    assert contents(store.fetch("bcq", "k1")) == {"result": "done"}
    with store.create("bcq", "k2", {}) as out:
        assert contents(out.path) == {}


def killed_job(url: str) -> None:
    """Checkpoints twice, writes a little more, and dies without unwinding."""
    with Store(url).create("bcq", "k1", {}) as out:
        for name in ("constant", "changing", "dropped"):
            (out.path / name).write_text("1")
        out.checkpoint()
        (out.path / "changing").write_text("22")
        (out.path / "dropped").unlink()
        out.checkpoint()
        (out.path / "changing").write_text("333")
        os._exit(9)


@pytest.mark.parametrize(("scheme", "changing"), [("", "333"), ("file://", "22")])
def test_a_killed_job_resumes_from_its_checkpoint(tmp_path: Path, scheme: str, changing: str):
    url = f"{scheme}{tmp_path / 'store'}"
    process = multiprocessing.get_context("spawn").Process(target=killed_job, args=(url,))
    process.start()
    process.join()
    assert process.exitcode == 9
    with Store(url).create("bcq", "k1", {}) as out:
        assert contents(out.path) == {"constant": "1", "changing": changing}
    assert not (tmp_path / "store" / "bcq" / "k1.partial").exists()


def test_a_remote_checkpoint_is_whole_and_copies_only_changes(tmp_path: Path):
    url, partial = f"file://{tmp_path / 'store'}", tmp_path / "store" / "bcq" / "k1.partial"
    with pytest.raises(Stopped):
        stop_after_writing(url, {"big": "x" * 1000, "small": "1"})
    first = json.loads((partial / "checkpoint.json").read_text())
    with pytest.raises(Stopped):
        stop_after_writing(url, {"small": "22"})
    second = json.loads((partial / "checkpoint.json").read_text())
    assert first["big"] == second["big"]
    assert first["small"] != second["small"]
    assert {path.name for path in partial.iterdir()} == {"checkpoint.json", *second.values()}
    # A copy that was cut before checkpoint.json was replaced changes nothing.
    (partial / "0123456789").write_text("half of a file")
    with pytest.raises(Stopped):
        stop_after_writing(url, {"more": "3"})
    third = json.loads((partial / "checkpoint.json").read_text())
    found = {name: (partial / blob).read_text() for name, blob in third.items()}
    assert found == {"big": "x" * 1000, "small": "22", "more": "3"}
    (partial / "checkpoint.json").write_text('{"big": ')
    with Store(url).create("bcq", "k1", {}) as out:
        assert contents(out.path) == {}


def test_a_second_publish_changes_nothing(url: str):
    store = Store(url)
    publish(store, text="first")
    before = store.describe("bcq", "k1")
    publish(store, text="second")
    assert store.describe("bcq", "k1") == before
    assert contents(store.fetch("bcq", "k1"))["task=000/part.arrow"] == "first"
    with store.create("bcq", "k1", {}) as out:
        assert contents(out.path) == {}


def test_a_publish_that_comes_second_is_dropped(tmp_path: Path):
    for url, root in ((str(tmp_path / "a"), tmp_path / "a"), (f"file://{tmp_path / 'b'}", tmp_path / "b")):
        store = Store(url)
        publish(store, "k1")
        publish(Store(tmp_path / "elsewhere"), "k2")
        with store.create("bcq", "k2", {}) as out:
            (out.path / "result").write_text("late")
            shutil.copytree(tmp_path / "elsewhere" / "bcq" / "k2", root / "bcq" / "k2", dirs_exist_ok=True)
        assert "result" not in contents(store.fetch("bcq", "k2"))
        assert not (root / "bcq" / "k2.partial").exists()


def test_an_artefact_under_another_one_s_key_is_noticed(url: str, tmp_path: Path):
    store, folder = Store(url), tmp_path / "store" / "bcq"
    publish(store, "k1")
    shutil.copytree(folder / "k1", folder / "k2")
    fault = store.damage("bcq", "k2")
    assert fault is not None
    assert fault.endswith("bcq/k2/manifest.json is damaged (it is that of bcq/k1); " + REMEDY + ".")
    store.discard("bcq", "k2")
    assert store.damage("bcq", "k1") is None
    assert not store.complete("bcq", "k2")


def _brackets(manifest: Path) -> None:
    manifest.write_text("[" * 200_000)


def _pipe(manifest: Path) -> None:
    manifest.unlink()
    os.mkfifo(manifest)


def _folder_for_a_file(manifest: Path) -> None:
    manifest.unlink()
    manifest.mkdir()


def _link_to_itself(manifest: Path) -> None:
    shutil.rmtree(manifest.parent)
    manifest.parent.symlink_to(manifest.parent)


@pytest.mark.parametrize("spoil", [_brackets, _pipe, _folder_for_a_file, _link_to_itself])
def test_whatever_lies_in_an_artefact_s_place_is_damage_and_can_be_made_anew(spoil, tmp_path: Path):
    store = Store(tmp_path)
    publish(store)
    spoil(tmp_path / "bcq" / "k1" / "manifest.json")
    assert store.complete("bcq", "k1")
    fault = store.damage("bcq", "k1")
    assert fault is not None
    assert "k1/manifest.json is damaged (" in fault
    store.discard("bcq", "k1")
    assert not store.complete("bcq", "k1")
    publish(store)
    assert store.damage("bcq", "k1") is None


def test_a_half_published_artefact_is_incomplete_and_is_replaced(tmp_path: Path):
    for url, root in ((str(tmp_path / "a"), tmp_path / "a"), (f"file://{tmp_path / 'b'}", tmp_path / "b")):
        store = Store(url)
        publish(store)
        (root / "bcq" / "k1" / "manifest.json").unlink()
        assert not store.complete("bcq", "k1")
        with store.create("bcq", "k1", {}) as out:
            (out.path / "new").write_text("new")
        assert contents(store.fetch("bcq", "k1")) == {"new": "new"}


def test_an_artefact_is_downloaded_once_and_again_when_it_was_made_anew(tmp_path: Path, cache: Path):
    root = tmp_path / "store"
    store = Store(f"file://{root}")
    publish(store)
    shutil.rmtree(cache)
    first = store.fetch("bcq", "k1")
    (root / "bcq" / "k1" / "weights").unlink()
    assert Store(store.url).fetch("bcq", "k1") == first
    shutil.move(root / "bcq" / "k1", root / "bcq" / "old")
    publish(store, text="newer")
    assert contents(store.fetch("bcq", "k1"))["task=000/part.arrow"] == "newer"
    shutil.rmtree(root / "bcq" / "k1")
    shutil.move(root / "bcq" / "old", root / "bcq" / "k1")
    (first / "weights").unlink()  # a cleaner of temporary files
    with pytest.raises(StoreError, match="bcq/k1/weights cannot be read"):
        store.fetch("bcq", "k1")
    (root / "bcq" / "k1" / "weights").write_bytes(b"\0" * 9)
    with pytest.raises(StoreError, match="k1/weights is damaged: it has bytes 9, but its manifest says 10"):
        store.fetch("bcq", "k1")
    shutil.rmtree(root)
    publish(store, text="anew")
    assert contents(store.fetch("bcq", "k1"))["task=000/part.arrow"] == "anew"


def fetch_many(url: str, barrier, results) -> None:
    barrier.wait()
    results.put({key: contents(Store(url).fetch("bcq", key)) for key in ("k0", "k1", "k2")})


def make_claimed(url: str, entered, seconds: float, die: bool) -> None:
    """Another process that claims the artefact, works on it for a while, and publishes it or dies."""
    store = Store(url)
    with store.claim("bcq", "k1"), store.create("bcq", "k1", {}) as out:
        (out.path / "text").write_text(f"of {os.getpid()}")
        entered.set()
        time.sleep(seconds)
        if die:
            os._exit(9)


@pytest.mark.parametrize("die", [False, True])
def test_whoever_comes_second_waits_and_takes_over_only_from_the_dead(url: str, tmp_path: Path, die: bool, monkeypatch):
    context = multiprocessing.get_context("spawn")
    entered, store, waited = context.Event(), Store(url), []
    if die:
        monkeypatch.setattr(lease, "EXPIRES", 2.0)
    first = context.Process(target=make_claimed, args=(store.url, entered, 1.5, die))
    first.start()
    assert entered.wait(60)
    with store.claim("bcq", "k1", lambda: waited.append(store.complete("bcq", "k1"))):
        assert waited
        assert not any(waited[:-1])  # it may be published between a look and the next wait
        assert store.complete("bcq", "k1") is not die
        if not die:
            assert contents(store.fetch("bcq", "k1"))["text"] == f"of {first.pid}"
        elif "://" not in url:
            assert (Path(url) / "bcq" / "k1.partial" / "text").read_text() == f"of {first.pid}"
        if die:
            publish(store)
    first.join(60)
    assert store.damage("bcq", "k1") is None
    assert not list(tmp_path.rglob(".lock"))
    assert not list(tmp_path.rglob("*.partial"))


def race(url: str, barrier, results) -> None:
    """Make twenty artefacts, each as slowly as the others; say which were one's own work."""
    store, own = Store(url), []
    barrier.wait()
    for number in range(20):
        key = f"k{number}"
        with store.claim("bcq", key):
            if not store.complete("bcq", key):
                with store.create("bcq", key, {}) as out:
                    own.append(key)
                    (out.path / "text").write_text(str(os.getpid()))
    results.put(own)


def test_of_racing_processes_each_artefact_is_one_s_work(url: str, tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    racers = [context.Process(target=race, args=(url, barrier, results)) for _ in range(3)]
    for racer in racers:
        racer.start()
    own = [results.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join(60)
    assert sorted(key for keys in own for key in keys) == sorted(f"k{number}" for number in range(20))
    assert not list(tmp_path.rglob("*.partial"))


def test_processes_that_fetch_at_the_same_time(tmp_path: Path, cache: Path):
    store = Store(f"file://{tmp_path / 'store'}")
    for key in ("k0", "k1", "k2"):
        publish(store, key, text=key * 10_000)
    shutil.rmtree(cache)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=fetch_many, args=(store.url, barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    wanted = {key: {"task=000/part.arrow": key * 10_000, "weights": "\0" * 10} for key in ("k0", "k1", "k2")}
    assert found == [wanted] * 3
    assert len(list(cache.iterdir())) == 1, "scratch directories stay behind"


def test_the_cache_is_trimmed_while_folders_in_it_come_and_go(cache: Path):
    """Other processes make and remove their scratch folders there, between two looks of whoever lists it."""
    ended = threading.Event()

    def others() -> None:
        while not ended.is_set():
            with tempfile.TemporaryDirectory(dir=folder()) as scratch:
                Path(scratch, "stage", "text", "key").mkdir(parents=True)

    threads = [threading.Thread(target=others) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(300):
            trim()
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def test_what_cannot_be_written_as_json(url: str):
    store = Store(url)

    def job(description, metrics, name: str) -> None:
        with store.create("bcq", "k1", description) as out:
            (out.path / name).write_text("kept")
            out.manifest["metrics"] = metrics

    with pytest.raises(StoreError, match=r"description of .*bcq/k1 cannot be written as JSON"):
        job({"a": {1, 2}}, 0, "never")
    with pytest.raises(StoreError, match=r"manifest of .*bcq/k1 cannot be written as JSON"):
        job({}, object(), "result")
    with pytest.raises(StoreError, match=r"wrote manifest\.json"):
        job({}, 0, "manifest.json")
    assert not store.complete("bcq", "k1")
    with store.create("bcq", "k1", {}) as out:
        assert contents(out.path) == {"result": "kept"}


def test_damaged_manifests(tmp_path: Path):
    for url, root in ((str(tmp_path / "a"), tmp_path / "a"), (f"file://{tmp_path / 'b'}", tmp_path / "b")):
        store = Store(url)
        publish(store)
        path = root / "bcq" / "k1" / "manifest.json"
        for content in ("", "[]", '{"files": [{"file": "../../secret", "bytes": 1}]}'):
            path.write_text(content)
            for read in (store.describe, store.fetch):
                with pytest.raises(StoreError, match=r"bcq/k1/manifest.json is damaged"):
                    read("bcq", "k1")


def test_any_byte_that_is_flipped_or_cut_is_noticed_before_use(url: str, cache: Path):
    store = Store(url)
    publish(store)
    root = Path(url.removeprefix("file://")) / "bcq" / "k1"
    manifest = store.describe("bcq", "k1")
    tried = 0
    for path in sorted(root.rglob("*")):
        if not path.is_file():
            continue
        before = path.read_bytes()
        flipped = (before[:at] + bytes([before[at] ^ 1 << at % 8]) + before[at + 1 :] for at in range(len(before)))
        cut = (before[:length] for length in range(0, len(before), 7))
        for changed in [*flipped, *cut, before + b"\0"]:
            path.write_bytes(changed)
            shutil.rmtree(cache, ignore_errors=True)
            tried += 1
            fault = store.damage("bcq", "k1")
            if fault is None:  # another white space in the manifest
                assert path.name == "manifest.json"
                assert Store(url).describe("bcq", "k1") == manifest
            else:
                assert path.relative_to(root).as_posix() in fault
                assert fault.endswith(f"{REMEDY}.")
        path.write_bytes(before)
    assert tried > 500
    assert store.damage("bcq", "k1") is None


def test_a_manifest_without_sums_is_of_an_earlier_store(tmp_path: Path):
    store = Store(tmp_path)
    publish(store)
    path = tmp_path / "bcq" / "k1" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["checksum"]
    for entry in manifest["files"]:
        del entry["sha256"]
    path.write_text(json.dumps(manifest))
    assert contents(store.fetch("bcq", "k1"))["task=000/part.arrow"] == "hello"


def test_keys_that_are_numbers_are_no_damage(url: str):
    store = Store(url)
    with store.create("bcq", "k1", {"by step": {2: "two", 10: "ten"}}) as out:
        (out.path / "text").write_text("hello")
        out.manifest["metrics"] = {"loss": 0.1}
    assert store.damage("bcq", "k1") is None
    assert store.describe("bcq", "k1")["description"] == {"by step": {"2": "two", "10": "ten"}}


def test_what_is_discarded_is_gone_and_can_be_made_again(url: str):
    store = Store(url)
    publish(store)
    store.discard("bcq", "k1")
    assert not store.complete("bcq", "k1")
    store.discard("bcq", "k1")
    publish(store, text="newer")
    assert contents(store.fetch("bcq", "k1"))["task=000/part.arrow"] == "newer"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "k1.partial", ".hidden"])
def test_names_that_would_leave_their_place(tmp_path: Path, name: str):
    store = Store(tmp_path)
    for call in (store.complete, store.fetch, store.describe, store.uri):
        with pytest.raises(StoreError, match="cannot be a stage or key"):
            call("bcq", name)
        with pytest.raises(StoreError, match="cannot be a stage or key"):
            call(name, "k1")


def test_stores_that_cannot_be_used(tmp_path: Path):
    with pytest.raises(StoreError, match=r"nonsense://a cannot be opened .*such as s3://bucket/folder"):
        Store("nonsense://a")
    (tmp_path / "file").touch()
    for url in (str(tmp_path / "file" / "store"), f"file://{tmp_path / 'file' / 'store'}"):
        with pytest.raises(StoreError, match="cannot be written to"):
            Store(url).check_writable()
        assert not Store(url).complete("bcq", "k1")
        with pytest.raises(StoreError, match="absent or incomplete"):
            Store(url).fetch("bcq", "k1")


@pytest.mark.parametrize("kind", ["ftp", "zip"])
def test_a_protocol_that_fails_at_once_is_one_sentence_with_the_address(tmp_path: Path, kind: str):
    (tmp_path / "file").write_text("no archive")
    url = {"ftp": "ftp://127.0.0.1:9/x", "zip": f"zip://x::{tmp_path / 'file'}"}[kind]  # port 9: nobody listens
    with pytest.raises(StoreError) as caught:
        Store(url)
    assert str(caught.value).startswith(f"The store {url} cannot be opened (")
    assert "\n" not in str(caught.value)


def test_a_failed_upload_keeps_the_first_error(tmp_path: Path):
    def job() -> None:
        with Store(f"file://{tmp_path / 'store'}").create("bcq", "k1", {}) as out:
            (out.path / "result").write_text("x")
            (tmp_path / "store").touch()  # the store's place is taken by a file
            raise Stopped

    with pytest.raises(Stopped) as caught:
        job()
    assert "could not be copied to" in caught.value.__notes__[0]


def test_a_store_that_other_processes_cannot_see_is_refused():
    with pytest.raises(StoreError, match="another one in every process"):
        Store("memory://store")


def test_a_number_that_is_not_finite_is_no_metric(url: str):
    def job() -> None:
        with Store(url).create("bcq", "k1", {}) as out:
            out.manifest["metrics"] = {"return": float("nan")}

    with pytest.raises(StoreError, match="cannot be written as JSON"):
        job()
    assert not Store(url).complete("bcq", "k1")


@pytest.mark.parametrize("url", ["", "  ", "file://", "s3://", "~nobody-has-this-name/store"])
def test_a_store_without_a_folder_is_refused(url: str):
    with pytest.raises(StoreError, match=r"cannot be opened \((it names no folder|Could not determine home directory)"):
        Store(url)
