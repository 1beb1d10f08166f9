"""The artefact store: one directory for each (stage, key), complete when its manifest.json is there.

    <url>/<stage>/<key>/            the files of a complete artefact and its manifest.json
    <url>/<stage>/<key>.partial/    work that is not complete, kept so that the next try can resume

A plain path is used in place. For any fsspec URL (s3://, gs://, file://, memory://) work goes on in a local
scratch directory and is copied. There, a partial directory holds the files of the last checkpoint under names
of their own and checkpoint.json, which says which is which and comes last: a checkpoint is whole or absent.

Local copies live in $MBML_CACHE, or else in a directory of this user under the system's temporary directory.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec

from mbml.serialise import replacing

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=+-]*")
_MANIFEST = "manifest.json"


class StoreError(ValueError):
    """A store that cannot be used, or an artefact that is not in it."""


class Output:
    """An artefact in the making."""

    def __init__(self, path: Path, save: Callable[[], None]):
        self.path = path  # local directory to write into; holds what an earlier try left
        self.manifest: dict[str, Any] = {}  # further entries for the manifest, JSON
        self._save = save

    def checkpoint(self) -> None:
        """Copy the files in `path` to a remote store, so that losing this machine does not lose them.

        Files that did not change since the last checkpoint are not copied again. Does nothing in a folder.
        """
        self._save()


class Store:
    """Artefacts under a plain path or an fsspec URL; `Store(store.url)` is the same one in another process.

    Every method raises StoreError for a stage or key with characters other than letters, digits, . _ = + -
    """

    def __init__(self, url: str | Path):
        """Raises StoreError when fsspec does not know the protocol or lacks the package for it."""
        if "://" in str(url):
            self.url = str(url).rstrip("/")
            self._backend: _Folder | _Remote = _Remote(self.url)
        else:
            folder = Path(url).expanduser().absolute()
            self.url = str(folder)
            self._backend = _Folder(folder)

    def uri(self, stage: str, key: str) -> str:
        """Where the artefact is or will be, for messages."""
        return f"{self.url}/{_artefact(stage, key)}"

    def complete(self, stage: str, key: str) -> bool:
        """Whether the artefact is there: one look-up of its manifest."""
        return self._backend.is_complete(_artefact(stage, key))

    def describe(self, stage: str, key: str) -> dict[str, Any]:
        """The manifest of a complete artefact; StoreError if there is none or it is damaged."""
        return self._read_manifest(stage, key)[0]

    def fetch(self, stage: str, key: str) -> Path:
        """A local directory with the files of a complete artefact; do not write into it.

        From a URL it is downloaded once per machine and version of the artefact; processes that do so at the
        same time do not disturb one another.

        Raises:
            StoreError: the artefact is absent, incomplete or damaged.
        """
        manifest, text = self._read_manifest(stage, key)
        try:
            return self._backend.fetch(_artefact(stage, key), manifest, text)
        except FileNotFoundError as error:
            raise StoreError(f"{self.uri(stage, key)} lacks a file that its manifest lists ({error}).") from error

    @contextmanager
    def create(self, stage: str, key: str, description: dict[str, Any]) -> Iterator[Output]:
        """Work on an artefact: a normal exit publishes it, an exception keeps its files for the next try.

        The manifest has stage, key, description, the time of creation (UTC), every file with its size, and
        what the job puts into `Output.manifest`. An artefact that is complete by then stays as it is, and the
        new files are dropped.

        Raises:
            StoreError: `description` or `Output.manifest` is not JSON, or the job made a manifest.json.
        """
        artefact, uri = _artefact(stage, key), self.uri(stage, key)
        _to_json(description, f"The description of {uri}")
        output = self._backend.start(artefact)
        # A try that was killed within `replacing` left its temporary file.
        for temporary in output.path.rglob(".*.tmp"):
            temporary.unlink()
        try:
            yield output
            if (output.path / _MANIFEST).exists():
                raise StoreError(f"The job for {uri} wrote {_MANIFEST}, a name that belongs to the store.")
            files = [{"file": name, "bytes": (output.path / name).stat().st_size} for name in _files(output.path)]
            created = datetime.now(UTC).isoformat(timespec="microseconds")
            own = {"stage": stage, "key": key, "description": description, "created": created, "files": files}
            self._backend.publish(artefact, output, _to_json(output.manifest | own, f"The manifest of {uri}"))
        except Exception as error:
            try:
                output.checkpoint()
            except Exception as second:  # the first error is the one to hear about
                error.add_note(f"Its partial work could not be copied to {uri}.partial: {second}")
            raise
        finally:
            self._backend.end(output)

    def check_writable(self) -> None:
        """Write and remove a small file; StoreError with the reason if that fails."""
        try:
            self._backend.probe(f".probe-{uuid.uuid4().hex}")
        except Exception as error:  # every protocol has its own exceptions for missing rights and credentials
            raise StoreError(f"The store {self.url} cannot be written to ({error}); choose another.") from error

    def _read_manifest(self, stage: str, key: str) -> tuple[dict[str, Any], bytes]:
        try:
            text = self._backend.manifest(_artefact(stage, key))
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(f"{self.uri(stage, key)} is absent or incomplete: it has no {_MANIFEST}.") from None
        try:
            manifest = json.loads(text)
            for entry in manifest["files"]:
                _check_inside(entry["file"])
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self.uri(stage, key)}/{_MANIFEST} is damaged ({error}).") from error
        return manifest, text


class _Folder:
    """A plain path: work in place, publish with one rename."""

    def __init__(self, root: Path):
        self._root = root

    def is_complete(self, artefact: str) -> bool:
        return (self._root / artefact / _MANIFEST).is_file()

    def manifest(self, artefact: str) -> bytes:
        return (self._root / artefact / _MANIFEST).read_bytes()

    def fetch(self, artefact: str, manifest: dict[str, Any], text: bytes) -> Path:
        return self._root / artefact

    def start(self, artefact: str) -> Output:
        partial = self._root / f"{artefact}.partial"
        partial.mkdir(parents=True, exist_ok=True)
        (partial / _MANIFEST).unlink(missing_ok=True)  # of a try that was killed just before the rename
        return Output(partial, save=lambda: None)

    def publish(self, artefact: str, output: Output, text: bytes) -> None:
        target = self._root / artefact
        if not self.is_complete(artefact):
            shutil.rmtree(target, ignore_errors=True)  # without a manifest it is nothing
            (output.path / _MANIFEST).write_bytes(text)
        _rename_unless_there(output.path, target)

    def end(self, output: Output) -> None:
        pass

    def probe(self, name: str) -> None:
        with replacing(self._root / name) as path:
            path.touch()
        (self._root / name).unlink()


class _Remote:
    """An fsspec URL: work in a scratch directory, upload, manifest last."""

    def __init__(self, url: str):
        self._url = url
        try:
            # Other machines publish while this one looks, so listings must not come from memory.
            self._fs, root = fsspec.url_to_fs(url, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise StoreError(
                f"The store {url} cannot be opened ({error}); use a folder such as runs/store or an fsspec "
                "URL such as s3://bucket/folder with the package for its protocol installed."
            ) from error
        self._root = root.rstrip("/")

    def is_complete(self, artefact: str) -> bool:
        try:
            # Not exists(), for which a lost connection means "is not there".
            self._fs.info(f"{self._root}/{artefact}/{_MANIFEST}")
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def manifest(self, artefact: str) -> bytes:
        return self._fs.cat_file(f"{self._root}/{artefact}/{_MANIFEST}")

    def fetch(self, artefact: str, manifest: dict[str, Any], text: bytes) -> Path:
        target = self._cached(artefact, text)
        if _has_files(target, manifest):
            return target
        shutil.rmtree(target, ignore_errors=True)  # something cleared old files out of the cache
        scratch = _scratch(artefact)
        try:
            for entry in manifest["files"]:
                _get(self._fs, f"{self._root}/{artefact}/{entry['file']}", scratch / entry["file"])
            if not _has_files(scratch, manifest):
                raise StoreError(f"{self._url}/{artefact} is damaged: a file is not as long as its manifest says.")
            (scratch / _MANIFEST).write_bytes(text)
            _rename_unless_there(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return target

    def start(self, artefact: str) -> Output:
        scratch = _scratch(artefact)
        checkpoint = _Checkpoint(self._fs, f"{self._root}/{artefact}.partial", scratch)
        checkpoint.restore()
        return Output(scratch, checkpoint.save)

    def publish(self, artefact: str, output: Output, text: bytes) -> None:
        if not self.is_complete(artefact):
            for name in _files(output.path):
                _put(self._fs, output.path / name, f"{self._root}/{artefact}/{name}")
            _put_text(self._fs, text, f"{self._root}/{artefact}/{_MANIFEST}")
            # Whoever needs the artefact next on this machine need not download it.
            (output.path / _MANIFEST).write_bytes(text)
            _rename_unless_there(output.path, self._cached(artefact, text))
        with suppress(Exception):  # the artefact is complete; a checkpoint that stays only takes space
            self._fs.rm(f"{self._root}/{artefact}.partial", recursive=True)

    def end(self, output: Output) -> None:
        shutil.rmtree(output.path, ignore_errors=True)

    def probe(self, name: str) -> None:
        _put_text(self._fs, b"mbml", f"{self._root}/{name}")
        self._fs.rm_file(f"{self._root}/{name}")

    def _cached(self, artefact: str, text: bytes) -> Path:
        """Its place in the cache; the manifest is part of the name because an artefact may be made anew."""
        stage, key = artefact.split("/")
        return _cache() / _digest(self._url.encode()) / stage / _digest(text) / key


class _Checkpoint:
    """The partial directory of one artefact in a remote store, and what of the scratch directory it holds."""

    def __init__(self, fs: Any, root: str, scratch: Path):
        self._fs, self._root, self._scratch = fs, root, scratch
        self._blobs: dict[str, str] = {}  # file -> its name in the store
        self._states: dict[str, tuple[int, ...]] = {}  # file -> its state when it was copied

    def restore(self) -> None:
        """Fill the scratch directory from the last checkpoint, if there is a readable one."""
        try:
            blobs = json.loads(self._fs.cat_file(f"{self._root}/checkpoint.json"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return
        for name, blob in blobs.items():
            _check_inside(name)
            _get(self._fs, f"{self._root}/{blob}", self._scratch / name)
            self._states[name] = _state(self._scratch / name)
        self._blobs = blobs

    def save(self) -> None:
        """Copy what changed, switch over by replacing checkpoint.json, then remove what is out of date."""
        blobs, states = {}, {}
        for name in _files(self._scratch):
            states[name] = _state(self._scratch / name)
            if self._states.get(name) == states[name]:
                blobs[name] = self._blobs[name]
            else:
                blobs[name] = uuid.uuid4().hex
                _put(self._fs, self._scratch / name, f"{self._root}/{blobs[name]}")
        if blobs == self._blobs:
            return
        _put_text(self._fs, json.dumps(blobs).encode(), f"{self._root}/checkpoint.json")
        for blob in set(self._blobs.values()) - set(blobs.values()):
            with suppress(FileNotFoundError):
                self._fs.rm_file(f"{self._root}/{blob}")
        self._blobs, self._states = blobs, states


def _artefact(stage: str, key: str) -> str:
    for name in (stage, key):
        if not _NAME.fullmatch(name) or name.endswith(".partial"):
            raise StoreError(f"{name!r} cannot be a stage or key: use letters, digits and . _ = + - only.")
    return f"{stage}/{key}"


def _check_inside(name: str) -> None:
    if name.startswith("/") or ".." in name.split("/"):
        raise StoreError(f"The file name {name!r} leads out of its artefact.")


def _files(directory: Path) -> list[str]:
    """All files below `directory` but the store's own manifest, as relative names with forward slashes."""
    names = (path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    return sorted(name for name in names if name != _MANIFEST)


def _has_files(directory: Path, manifest: dict[str, Any]) -> bool:
    try:
        return directory.is_dir() and all(
            (directory / entry["file"]).stat().st_size == entry["bytes"] for entry in manifest["files"]
        )
    except FileNotFoundError:
        return False


def _state(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _to_json(value: Any, what: str) -> bytes:
    try:
        return (json.dumps(value, indent=1) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise StoreError(f"{what} cannot be written as JSON ({error}).") from error


def _rename_unless_there(source: Path, target: Path) -> None:
    """Rename a directory; if a complete one is there already (another process was faster), drop `source`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(source, target)
    except OSError:
        if not (target / _MANIFEST).is_file():
            raise
        shutil.rmtree(source, ignore_errors=True)


def _put(fs: Any, local: Path, remote: str) -> None:
    fs.makedirs(remote.rsplit("/", 1)[0], exist_ok=True)
    fs.put_file(str(local), remote)


def _put_text(fs: Any, text: bytes, remote: str) -> None:
    """Under another name first, because a plain write to a folder behind file:// can be cut in the middle."""
    directory, name = remote.rsplit("/", 1)
    temporary = f"{directory}/.{name}.{uuid.uuid4().hex}.tmp"
    fs.makedirs(directory, exist_ok=True)
    fs.pipe_file(temporary, text)
    fs.mv(temporary, remote)


def _get(fs: Any, remote: str, local: Path) -> None:
    local.parent.mkdir(parents=True, exist_ok=True)
    fs.get_file(remote, str(local))


def _cache() -> Path:
    default = Path(tempfile.gettempdir()) / f"mbml-cache-{os.getuid()}"
    cache = Path(os.environ.get("MBML_CACHE", default)).absolute()
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    return cache


def _scratch(artefact: str) -> Path:
    """A fresh directory on the file system of the cache, so that it can be renamed into it."""
    return Path(tempfile.mkdtemp(prefix=artefact.replace("/", "-") + "-", dir=_cache()))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
