"""Files that are whole or absent, and trees of tensors in one safetensors file: checkpoints, generator states, tables.

A tree is a nested dict or list of `torch.Tensor` and JSON scalars. The tensors become the tensors of the
file; the shape of the tree becomes JSON in its metadata. Nothing is pickled, so a file from elsewhere cannot
run code.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mbml.reading import regular

_METADATA_KEY = "mbml.tree"
_SUM_KEY = "mbml.sha256"
_NOT_IN_SAFETENSORS = (torch.complex32, torch.complex128)


class SerialiseError(ValueError):
    """A tree that cannot be written, or a file that does not hold one."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` and rename it to `path` on success, so nobody sees half a file.

    Parent directories are made. On an exception the temporary file is removed and an older `path` stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: yield an empty one, which takes the place of `path` and all that it held on success."""
    path = path.absolute()
    made, old = (path.with_name(f".{path.name}.{uuid.uuid4().hex}.{end}") for end in ("tmp", "old"))
    made.mkdir(parents=True)
    try:
        yield made
        if path.exists():
            path.rename(old)
        made.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with regular(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_once(path: Path) -> str:
    """SHA-256 of a file, computed once in this process unless its size, place or time of change is another."""
    seen = path.stat()
    return _once(path, seen.st_size, seen.st_ino, seen.st_ctime_ns)


@lru_cache(maxsize=10_000)
def _once(path: Path, *state: int) -> str:
    return sha256_of(path)


def json_of(value: Any, what: str, fault: type[ValueError]) -> str:
    """`value` as indented JSON; raises `fault`, naming `what`, where it holds anything but finite numbers and text."""
    try:
        return json.dumps(value, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise fault(f"{what} cannot be written as JSON ({error}).") from error


def save_tree(path: str | Path, tree: Any, checked: bool = False) -> None:
    """Write `tree` to `path` atomically; `checked`, with a checksum that `load_tree` compares.

    Keys are str or int and keep their type and order; tuples come back as lists; tensors of any dense dtype
    and shape come back on the CPU. A tensor that occurs twice, or a view of another, is written each time.

    Raises:
        SerialiseError: the tree holds something else; the sentence names the place.
        OSError: the file cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    structure = json.dumps(_encode(tree, "", tensors))
    metadata = {_METADATA_KEY: structure} | ({_SUM_KEY: _sum_of(structure, tensors)} if checked else {})
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:  # a full disk, mostly
            raise OSError(errno.EIO, f"The tensors cannot be written ({error})", str(path)) from None
        # safetensors makes files that only their owner can read; a store may be shared by several users.
        temporary.chmod(mode)


@contextmanager
def tree_in_place(
    path: str | Path, shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield tensors of these shapes and types by name, which are a new file at `path` that `load_tree` reads.

    What is written into them are pages of the file, which the system may write and forget: a table need not fit into
    memory. The file takes its place when all is done; on an exception there is none.
    """
    described, end = dict[str, Any](), 0
    for number, (name, (shape, dtype)) in enumerate(sorted(shapes.items(), key=lambda item: -item[1][1].itemsize)):
        size = math.prod(shape) * dtype.itemsize  # the widest come first, so that all stand where they may
        entry = {"dtype": _SAFETENSORS[dtype], "shape": list(shape), "data_offsets": [end, end + size]}
        described[f"{number}.{name}"], end = entry, end + size
    names = {full.partition(".")[2]: full for full in described}
    tree = json.dumps({"dict": [[name, {"tensor": names[name]}] for name in shapes]})
    head = json.dumps({"__metadata__": {_METADATA_KEY: tree}, **described}).encode()
    head += b" " * (-len(head) % 8)
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            file.truncate(8 + len(head) + end)
        made = {}
        for name, (shape, dtype) in shapes.items():
            start = 8 + len(head) + described[names[name]]["data_offsets"][0]
            flat = np.memmap(temporary, torch.empty(0, dtype=dtype).numpy().dtype, "r+", start, shape)
            made[name] = torch.from_numpy(flat)
        yield made


_SAFETENSORS = {torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}


def load_tree(path: str | Path, *, mapped: bool = False, checked: bool = False) -> Any:
    """Read what `save_tree` wrote; all tensors on the CPU.

    With `mapped` they are views of a memory map of the file, which must stay as it is; writing into one changes this
    process's copy alone.

    Raises:
        SerialiseError: the file is missing, damaged or was not written by `save_tree`; `checked`, not with a checksum.
    """

    def decoded(node: dict[str, Any]) -> Any:
        return tensors[node["tensor"]] if "tensor" in node else dict(node["dict"])

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            structure, said = metadata.get(_METADATA_KEY), metadata.get(_SUM_KEY)
            # Copies by default, because a network file system can lose a memory map.
            views = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            tensors = views if mapped else {name: view.clone() for name, view in views.items()}
    except (SafetensorError, OSError) as error:
        raise SerialiseError(f"{path} is not a readable safetensors file ({error}).") from error
    if structure is None:
        raise SerialiseError(f"{path} is a safetensors file without a tree; it should be written by save_tree.")
    if (checked or said is not None) and said != (found := _sum_of(structure, tensors)):
        raise SerialiseError(f"{path} is damaged: it has checksum {said}, but its content makes {found}.")
    try:
        return json.loads(structure, object_hook=decoded)
    except (ValueError, KeyError, TypeError) as error:
        raise SerialiseError(f"{path} has damaged metadata: its tree does not match its tensors.") from error


def _sum_of(structure: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of a tree."""
    found = hashlib.sha256(structure.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _encode(node: Any, place: str, tensors: dict[str, torch.Tensor]) -> Any:
    """JSON for `node`: scalars and lists as they are, {"dict": [[key, value], ...]}, {"tensor": its name}."""
    where = place or "the root"
    if isinstance(node, torch.Tensor):
        if node.layout != torch.strided or node.is_quantized or node.dtype in _NOT_IN_SAFETENSORS:
            kind = f"{node.dtype}, {node.layout}"
            raise SerialiseError(f"The tensor at {where} ({kind}) does not fit a safetensors file.")
        # The running number keeps names unique whatever the keys are; the place is for people.
        name = f"{len(tensors)}{place}"
        # A copy that shares memory with nothing, which is all that safetensors accepts.
        tensors[name] = node.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(node, Mapping):
        for key in node:
            if not isinstance(key, str | int) or isinstance(key, bool):
                raise SerialiseError(f"A key at {where} is {key!r}; keys must be str or int.")
        return {"dict": [[key, _encode(value, f"{place}.{key}", tensors)] for key, value in node.items()]}
    if isinstance(node, list | tuple):
        return [_encode(value, f"{place}.{index}", tensors) for index, value in enumerate(node)]
    if node is None or isinstance(node, bool | int | float | str):
        return node
    kind = f"{type(node).__module__}.{type(node).__qualname__}"
    raise SerialiseError(f"The value at {where} is a {kind}; a tree holds only dicts, lists, tensors and JSON scalars.")
