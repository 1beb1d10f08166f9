"""A policy's folder: written whole or not at all, and a stranger's is read without surprises."""

import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mbml import AdaptivePolicy, PolicyError
from mbml.deploy.description import read_description
from mbml.deploy.folder import write_folder
from mbml.serialise import sha256_of
from tests.mbml.deploy.small import describe, make_policy, user_units, write
from tests.mbml.toys import random_rows

_SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]  # a busy machine is no fault of the strategy
FUZZED = settings(max_examples=150, deadline=None, suppress_health_check=_SLOW)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with task models."""
    return write(tmp_path_factory.mktemp("folder") / "policy", rows=list(random_rows(3, 200)), **user_units())


@pytest.fixture
def folder(whole, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(whole, tmp_path / "policy")


def refused(folder):
    """The sentence with which a folder is refused; loading must either work or say one."""
    said = ""
    try:
        AdaptivePolicy.load(folder).act([281.0, 282.0, 283.0])
    except PolicyError as error:
        said = str(error)
        if not said or "\n" in said:
            raise AssertionError("no sentence") from error
    return said


def test_what_was_described_is_what_is_read(whole):
    description = read_description(whole / "policy.json")
    assert {file.name for file in whole.iterdir()} == {*description.files, "policy.json", "README.md"}
    assert description.files == {name: sha256_of(whole / name) for name in description.files}
    assert description.action.names == ["valve 0", "valve 1"]
    assert description.scores[0].references == {"random": -1.0}
    again = whole.with_name("again.json")
    description.write(again)
    assert again.read_bytes() == (whole / "policy.json").read_bytes()


def test_the_card_says_what_a_stranger_needs(whole):
    card = (whole / "README.md").read_text()
    for words in (
        "A toy",
        "valve 1",
        "| 281.0 | 3.5 |",
        "five episodes",
        "task 2",
        "AdaptivePolicy.load",
        "-1 |",
        "ab" * 32,
    ):
        assert words in card


def test_an_older_policy_is_replaced_and_anything_else_is_left_alone(tmp_path):
    first = write(tmp_path / "policy")
    before = (first / "policy.json").read_bytes()
    write(tmp_path / "policy", "pearl")
    assert (first / "policy.json").read_bytes() != before
    assert {file.name for file in tmp_path.iterdir()} == {"policy", "policy.safetensors"}
    (first / "letters.txt").write_text("mine")
    with pytest.raises(PolicyError, match=r"letters\.txt, which is no part of a policy; choose another folder"):
        write(tmp_path / "policy")
    assert (first / "letters.txt").exists()
    with pytest.raises(PolicyError, match="is no folder"):
        write(tmp_path / "policy.safetensors")


def test_what_cannot_be_read_back_leaves_nothing_behind(tmp_path):
    weights = tmp_path / "weights"
    make_policy("pearl").save(weights)
    with pytest.raises(PolicyError, match=r"differ in policy, encoder"):
        write_folder(tmp_path / "policy", weights, describe(make_policy("generative mean")), graphs=False)
    assert [file.name for file in tmp_path.iterdir()] == ["weights"]


@pytest.mark.parametrize("missing", ["policy.json", "policy.safetensors", "familiarity.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused_by_its_name(folder, missing):
    (folder / missing).unlink()
    assert missing in refused(folder)


def test_a_folder_that_is_none_is_refused(tmp_path):
    assert "is no policy folder" in refused(tmp_path)
    assert "is no policy folder" in refused(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "endless"])
def test_a_description_that_is_no_file_of_sensible_size_is_refused(folder, kind):
    """In a process that may take little memory and time, for that is what is at stake."""
    file = folder / "policy.json"
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "endless":
        file.touch()
        os.truncate(file, 1 << 40)  # holes, which take no room
    else:
        file.symlink_to("/dev/zero")
    program = f"from mbml import AdaptivePolicy; AdaptivePolicy.load({str(folder)!r})"
    command = ["bash", "-c", f"ulimit -v 8000000; exec {sys.executable} -c {shlex.quote(program)}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    cannot = "is no policy folder: policy.json cannot be read (it is no regular file)"
    words = "should have at most 64 MiB" if kind == "endless" else cannot
    assert f"PolicyError: {folder}" in done.stderr
    assert words in done.stderr


def test_weights_of_another_policy_are_refused_even_with_their_checksum(folder, tmp_path):
    make_policy("acting product").save(folder / "policy.safetensors")
    assert "another SHA-256" in refused(folder)
    edited(folder, lambda tree: tree["files"].update({"policy.safetensors": sha256_of(folder / "policy.safetensors")}))
    assert "differ in encoder" in refused(folder)


def test_a_pickle_is_not_run(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    for name in ("policy.safetensors", "familiarity.safetensors", "policy.json"):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(pickle.dumps(Trap()))
        if name != "policy.json":
            digest = sha256_of(folder / name)
            edited(folder, lambda tree, name=name, digest=digest: tree["files"].update({name: digest}))
        assert refused(folder)
        (folder / name).write_bytes(kept)
    assert not (tmp_path / "ran").exists()


def edited(folder, change):
    """Change policy.json."""
    tree = json.loads((folder / "policy.json").read_text())
    change(tree)
    (folder / "policy.json").write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: tree.update(schema_version=2), "schema_version"),
        (
            lambda tree: tree["action"].update(low=[None] * 2, high=[None] * 2, scale=[1e308, 1.0]),
            "action: low, high, and offset with scale added or subtracted should fit into float32",
        ),
        (lambda tree: tree["action"].update(high=[1e39, 15.0]), "action: low, high, and offset with scale"),
        (lambda tree: tree["action"].update(low=[5.0, -5.0], high=[1.0, 15.0]), "action: a least value is above the"),
        (lambda tree: tree.update(familiarity=None, tasks=tree["tasks"][:2]), "has 2 training tasks, policy"),
        (lambda tree: tree["files"].update({"../../secret": "0" * 64}), "damaged or foreign at files"),
        (
            lambda tree: tree["observation"].update(scale=[0.0, 1.0, 1.0]),
            "observation.scale.0: Input should be greater",
        ),
        (lambda tree: tree["observation"].update(scale=[1.0]), "observation: its lists have 1, 3 entries"),
        (lambda tree: tree["observation"].update(offset=[float("nan")] * 3), "observation.offset.0"),
        (lambda tree: tree["familiarity"].update(lengths=[2]), "lengths should rise from 1"),
        (lambda tree: tree["tasks"].pop(), "holds no networks of 2 tasks"),
        (lambda tree: tree["inference"].update(renewed_every=7), "differ in renewed_every"),
        (lambda tree: tree.update(action=tree["observation"]), "of (3, 3) numbers, policy.safetensors of (3, 2)"),
    ],
)
def test_a_description_that_contradicts_itself_is_refused_at_its_place(folder, change, words):
    edited(folder, change)
    assert words in refused(folder)


def places(tree, path=()):
    """Every place in a JSON tree."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*path, key)
        if not (isinstance(value, list) and len(value) > 20):  # quantiles: one place stands for all
            yield from places(value, (*path, key))


@FUZZED
@given(data=st.data())
def test_fields_that_are_missing_or_of_another_type_never_end_in_a_traceback(whole, folder, data):
    tree = json.loads((whole / "policy.json").read_text())
    path = data.draw(st.sampled_from(list(places(tree))))
    node = tree
    for key in path[:-1]:
        node = node[key]
    values = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=5)
    action = data.draw(st.sampled_from(["drop", "change"]))
    if action == "drop":
        del node[path[-1]]
    else:
        node[path[-1]] = data.draw(values | st.lists(values, max_size=3) | st.just({}))
    (folder / "policy.json").write_text(json.dumps(tree))
    refused(folder)


@FUZZED
@given(data=st.data(), name=st.sampled_from(["policy.json", "policy.safetensors", "familiarity.safetensors"]))
def test_bytes_that_are_changed_or_cut_never_end_in_a_traceback(whole, folder, data, name):
    good = (whole / name).read_bytes()
    place = data.draw(st.integers(0, min(len(good), 4_000) - 1))
    if data.draw(st.booleans()):
        bad = good[:place]
    else:
        bad = good[:place] + bytes([good[place] ^ data.draw(st.integers(1, 255))]) + good[place + 1 :]
    (folder / name).write_bytes(bad)
    if name == "policy.json":
        refused(folder)
    else:
        assert "another SHA-256" in refused(folder)
        # and with a checksum that fits, as a stranger would give it
        edited(folder, lambda tree: tree["files"].update({name: sha256_of(folder / name)}))
        refused(folder)
        edited(folder, lambda tree: tree["files"].update({name: sha256_of(whole / name)}))
    (folder / name).write_bytes(good)


def test_a_folder_of_a_huge_network_takes_no_memory(folder):
    """A file of a few bytes may describe networks that fit nowhere."""
    from mbml.serialise import load_tree, save_tree

    tree = load_tree(folder / "policy.safetensors")
    tree["config"]["decoder_hidden"] = [10**7, 10**7]
    save_tree(folder / "policy.safetensors", tree)
    edited(
        folder, lambda found: found["files"].update({"policy.safetensors": sha256_of(folder / "policy.safetensors")})
    )
    assert "makes no acting policy" in refused(folder)
