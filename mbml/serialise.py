"""Trees of tensors in one safetensors file: checkpoints, optimiser states, generator states, tables.

A tree is a nested dict or list of `torch.Tensor` and JSON scalars. The tensors become the tensors of the
file; the shape of the tree becomes JSON in its metadata. Nothing is pickled, so a file from elsewhere cannot
run code.
"""

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

_METADATA_KEY = "mbml.tree"
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


def save_tree(path: str | Path, tree: Any) -> None:
    """Write `tree` to `path` atomically.

    Keys are str or int and keep their type and order; tuples come back as lists; tensors of any dense dtype
    and shape come back on the CPU. A tensor that occurs twice, or a view of another, is written each time.

    Raises:
        SerialiseError: the tree holds something else; the sentence names the place.
        OSError: the file cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    structure = json.dumps(_encode(tree, "", tensors))
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(tensors, temporary, metadata={_METADATA_KEY: structure})
        # safetensors makes files that only their owner can read; a store may be shared by several users.
        temporary.chmod(mode)


def load_tree(path: str | Path, *, mapped: bool = False) -> Any:
    """Read what `save_tree` wrote; all tensors on the CPU.

    With `mapped` they are views of a memory map of the file, which must stay as it is; writing into one changes this
    process's copy alone.

    Raises:
        SerialiseError: the file is missing, damaged or was not written by `save_tree`.
    """
    if not Path(path).is_file():
        raise SerialiseError(f"{path} is not there; it should be a file written by save_tree.")
    try:
        with safe_open(path, framework="pt") as file:
            structure = (file.metadata() or {}).get(_METADATA_KEY)
            # Copies by default, because a network file system can lose a memory map.
            views = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            tensors = views if mapped else {name: view.clone() for name, view in views.items()}
    except (SafetensorError, OSError) as error:
        raise SerialiseError(f"{path} is not a readable safetensors file ({error}).") from error
    if structure is None:
        raise SerialiseError(f"{path} is a safetensors file without a tree; it should be written by save_tree.")
    try:
        return _decode(json.loads(structure), tensors)
    except (ValueError, KeyError, TypeError) as error:
        raise SerialiseError(f"{path} has damaged metadata: its tree does not match its tensors.") from error


def _encode(node: Any, place: str, tensors: dict[str, torch.Tensor]) -> Any:
    """JSON for `node`: scalars and lists as they are, {"dict": [[key, value], ...]}, {"tensor": its name}."""
    if isinstance(node, torch.Tensor):
        # The running number keeps names unique whatever the keys are; the place is for people.
        name = f"{len(tensors)}{place}"
        tensors[name] = _plain(node, place)
        return {"tensor": name}
    if isinstance(node, Mapping):
        for key in node:
            if not isinstance(key, str | int) or isinstance(key, bool):
                raise SerialiseError(f"A key at {place or 'the root'} is {key!r}; keys must be str or int.")
        return {"dict": [[key, _encode(value, f"{place}.{key}", tensors)] for key, value in node.items()]}
    if isinstance(node, list | tuple):
        return [_encode(value, f"{place}.{index}", tensors) for index, value in enumerate(node)]
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise SerialiseError(
        f"The value at {place or 'the root'} is a {type(node).__module__}.{type(node).__qualname__}; "
        "a tree holds only dicts, lists, torch tensors, numbers, strings, booleans and None."
    )


def _plain(tensor: torch.Tensor, place: str) -> torch.Tensor:
    """A contiguous CPU copy that shares memory with nothing, which is all that safetensors accepts."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.dtype in _NOT_IN_SAFETENSORS:
        raise SerialiseError(
            f"The tensor at {place or 'the root'} ({tensor.dtype}, {tensor.layout}) does not fit a "
            "safetensors file; convert it to a dense real or complex64 tensor."
        )
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _decode(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(node, list):
        return [_decode(value, tensors) for value in node]
    if not isinstance(node, dict):
        return node
    if "tensor" in node:
        return tensors[node["tensor"]]
    return {key: _decode(value, tensors) for key, value in node["dict"]}
