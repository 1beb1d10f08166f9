"""Trees of tensors: exact round trips, real optimiser and generator states, and clear refusals."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mbml.serialise import SerialiseError, load_tree, replacing, replacing_folder, save_tree

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint64, torch.bool,
]  # fmt: skip


def same(left, right) -> bool:
    """Equal in type, order and every bit (NaN equals NaN); a tuple on the left may be a list on the right."""
    if isinstance(left, torch.Tensor):
        return (
            isinstance(right, torch.Tensor)
            and left.dtype == right.dtype
            and left.shape == right.shape
            and left.contiguous().reshape(-1).view(torch.uint8).equal(right.reshape(-1).view(torch.uint8))
        )
    if isinstance(left, dict):
        keys = [(type(key), key) for key in left]
        return (
            isinstance(right, dict)
            and keys == [(type(key), key) for key in right]
            and all(same(left[key], right[key]) for key in left)
        )
    if isinstance(left, list | tuple):
        return isinstance(right, list) and len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and repr(left) == repr(right)


@st.composite
def tensors(draw) -> torch.Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tensor = (torch.rand(shape, generator=generator) * 100).to(dtype)
    return tensor.transpose(0, -1) if tensor.dim() > 1 and draw(st.booleans()) else tensor


SCALARS = st.none() | st.booleans() | st.integers(-(2**130), 2**130) | st.floats() | st.text()
TREES = st.recursive(
    SCALARS | tensors(),
    lambda children: (
        st.lists(children, max_size=4)
        | st.lists(children, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers(), children, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES)
def test_round_trip_is_exact(tmp_path: Path, tree):
    save_tree(tmp_path / "tree.safetensors", tree)
    assert same(tree, load_tree(tmp_path / "tree.safetensors"))


def test_a_mapped_tree_is_the_same_and_the_file_is_not_written(tmp_path: Path):
    tree = {"table": torch.arange(1_000.0), "mask": torch.arange(7) % 2 == 0, "nothing": torch.empty(0, 3), "step": 3}
    path = tmp_path / "tree.safetensors"
    save_tree(path, tree)
    mapped, other, copied = load_tree(path, mapped=True), load_tree(path, mapped=True), load_tree(path)
    assert same(tree, mapped)
    before = path.read_bytes()
    mapped["table"].zero_()
    assert path.read_bytes() == before
    with path.open("r+b") as file:  # only what is read through the map sees another file
        file.write(before.replace(np.float32(999).tobytes(), np.float32(-1).tobytes()))
    assert other["table"][-1] == -1
    assert copied["table"][-1] == 999
    path.unlink()
    assert other["table"][-1] == -1


def test_keys_that_look_alike_stay_apart(tmp_path: Path):
    tree = {
        1: torch.tensor(1), "1": torch.tensor(2), "a.b": torch.tensor(3), "a": {"b": torch.tensor(4)},
        "__metadata__": torch.tensor(5), "tensor": "x", "dict": [],
    }  # fmt: skip
    save_tree(tmp_path / "t", tree)
    assert same(tree, load_tree(tmp_path / "t"))


def test_views_of_one_storage_and_special_tensors(tmp_path: Path):
    base = torch.arange(12.0).reshape(3, 4)
    tree = {
        "base": base, "again": base, "row": base[1], "column": base[:, 2], "expanded": base[:1].expand(5, 4),
        "conj": torch.tensor([1 + 2j]).conj(), "imag": torch.tensor([1 + 2j]).conj().imag,
        "parameter": torch.nn.Parameter(base),
    }  # fmt: skip
    save_tree(tmp_path / "t", tree)
    loaded = load_tree(tmp_path / "t")
    assert all(torch.equal(loaded[name], tree[name]) for name in tree)
    assert not loaded["parameter"].requires_grad
    loaded["base"].zero_()
    assert torch.equal(loaded["again"], base)
    assert torch.equal(load_tree(tmp_path / "t")["base"], base)


def test_adam_and_generators_continue_with_the_same_bits(tmp_path: Path):
    def build():
        net = torch.nn.Linear(3, 2)
        return (
            net,
            torch.optim.Adam(net.parameters(), lr=0.1, amsgrad=True),
            torch.Generator(),
            np.random.default_rng(),
        )

    def step(net, adam, generator, rng):
        inputs = torch.rand(4, 3, generator=generator) + float(rng.normal())
        adam.zero_grad()
        net(inputs).square().sum().backward()
        adam.step()

    learner = build()
    step(*learner)
    net, adam, generator, rng = learner
    state = {"net": net.state_dict(), "adam": adam.state_dict()}
    state |= {"torch": generator.get_state(), "numpy": rng.bit_generator.state}
    save_tree(tmp_path / "t", state)
    twin = build()
    loaded = load_tree(tmp_path / "t")
    twin[0].load_state_dict(loaded["net"])
    twin[1].load_state_dict(loaded["adam"])
    twin[2].set_state(loaded["torch"])
    twin[3].bit_generator.state = loaded["numpy"]
    for _ in range(3):
        step(*learner)
        step(*twin)
    assert torch.equal(net.weight, twin[0].weight)
    assert torch.equal(net.bias, twin[0].bias)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"a": [1, {2}]}, r"\.a\.1 is a builtins\.set"),
        ({"a": np.zeros(2)}, r"\.a is a numpy\.ndarray"),
        ({True: 1}, "keys must be str or int"),
        ({"a": {(1, 2): 1}}, r"at \.a is \(1, 2\)"),
        ({"z": torch.zeros(2, dtype=torch.complex128)}, r"\.z \(torch\.complex128"),
        ({"z": torch.zeros(2, 2).to_sparse()}, "sparse"),
    ],
)
def test_refuses_what_it_cannot_keep_and_leaves_the_old_file(tmp_path: Path, tree, words):
    save_tree(tmp_path / "t", "old")
    with pytest.raises(SerialiseError, match=words):
        save_tree(tmp_path / "t", tree)
    assert load_tree(tmp_path / "t") == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["t"]


def test_bad_files_are_one_clear_error(tmp_path: Path):
    path = tmp_path / "t"
    with pytest.raises(SerialiseError, match=r"not a readable safetensors file \(No such file"):
        load_tree(path)
    save_tree(path, {"a": torch.arange(100.0)})
    whole = path.read_bytes()
    for damaged in (b"", b"not safetensors at all", whole[:-1], whole[:20]):
        path.write_bytes(damaged)
        with pytest.raises(SerialiseError, match="not a readable safetensors file"):
            load_tree(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(SerialiseError, match="without a tree"):
        load_tree(path)
    save_file({"a": torch.zeros(1)}, path, metadata={"mbml.tree": '{"tensor": "b"}'})
    with pytest.raises(SerialiseError, match="damaged metadata"):
        load_tree(path)


def test_replacing_keeps_the_old_file_when_the_writer_fails(tmp_path: Path):
    path = tmp_path / "deep" / "file"
    with replacing(path) as temporary:
        temporary.write_text("old")

    def job() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job()
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["file"]


def test_files_have_the_usual_mode_and_the_same_bytes(tmp_path: Path):
    tree = {"a": torch.ones(3), "b": {"c": torch.zeros(2, dtype=torch.bool)}, "x": math.inf}
    save_tree(tmp_path / "one", tree)
    save_tree(tmp_path / "two", tree)
    (tmp_path / "plain").touch()
    assert (tmp_path / "one").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_replacing_a_folder_keeps_the_old_one_when_the_writer_fails(tmp_path: Path):
    folder = tmp_path / "new" / "folder"
    with replacing_folder(folder) as made:
        (made / "first").touch()
    with pytest.raises(FileNotFoundError), replacing_folder(folder) as made:
        (made / "absent" / "second").touch()
    assert [file.name for file in folder.iterdir()] == ["first"]
    with replacing_folder(folder) as made:
        (made / "third").touch()
    assert [file.name for file in folder.iterdir()] == ["third"]
    assert list(folder.parent.iterdir()) == [folder]
