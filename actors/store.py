"""The artefact store: one directory for each (stage, key), complete when its manifest.json is there.

    <url>/<stage>/<key>/            the files of a complete artefact and its manifest.json, which has their checksums
    <url>/<stage>/<key>.partial/    work that is not complete, kept so that the next try can resume

A plain path is used in place. For a URL that fsspec knows (s3://, gs://, file://) work goes on in a local scratch
directory and is copied. There, a partial directory holds the files of the last checkpoint under hashes of their content
and checkpoint.json, which says which is which and comes last: a checkpoint is whole or absent.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from actors import cache
from actors.lease import leased, locked
from mbml.reading import regular
from mbml.serialise import json_of, sha256_of, sha256_once

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=+-]*")
_MANIFEST = "manifest.json"
_CHECKSUM = "checksum"  # of the rest of the manifest
REMEDY = "the same command with --repair (of make: ARGS=--repair) makes it anew"
_LOCK = ".lock"
_LOCK_SECONDS = 0.5
_ABSENT = (FileNotFoundError, NotADirectoryError)


class StoreError(ValueError):
    """A store that cannot be used, or an artefact that is not in it."""


class Output(NamedTuple):
    """An artefact in the making."""

    path: Path
    """Local directory to write into; holds what an earlier try left."""
    manifest: dict[str, Any]
    """Takes further entries for the manifest, JSON."""
    checkpoint: Callable[[], None] = lambda: None
    """Copies the files in `path` that changed since the last time to a remote store, so that losing this machine
    does not lose them. Does nothing in a folder."""


class Store:
    """Artefacts under a plain path or an fsspec URL; `Store(store.url)` is the same one in another process.

    Every method raises StoreError for a stage or key with characters other than letters, digits, . _ = + -
    """

    def __init__(self, url: str | Path) -> None:
        """Raises StoreError when fsspec does not know the protocol, lacks the package for it or finds nobody there."""
        if str(url).startswith("memory://"):
            raise StoreError(f"The store {url} would be another one in every process; use a folder or another URL.")
        try:
            if not str(url).rpartition("://")[2].strip(" /"):
                raise ValueError("it names no folder")
            self._folder = None if "://" in str(url) else Path(url).expanduser().absolute()
            self.url = str(self._folder or url).rstrip("/")
            # Other machines publish while this one looks, so listings must not come from memory.
            self._fs, root = fsspec.url_to_fs(str(self._folder or url), use_listings_cache=False)
        except Exception as error:  # some protocols connect here already, each with exceptions of its own
            usable = "an fsspec URL such as s3://bucket/folder with the package for its protocol installed"
            fault = f"The store {url} cannot be opened ({' '.join(str(error).split()) or type(error).__name__})"
            raise StoreError(f"{fault}; use a folder such as runs/store or {usable}.") from error
        self._root = root.rstrip("/")

    def uri(self, stage: str, key: str) -> str:
        """Where the artefact is or will be, for messages."""
        return f"{self.url}/{_artefact(stage, key)}"

    def complete(self, stage: str, key: str) -> bool:
        """Whether the artefact is there: one look-up of its manifest."""
        try:  # not exists(), for which a lost connection means "is not there"
            return bool(self._fs.info(self._place(stage, key, _MANIFEST)))
        except _ABSENT:
            return False
        except OSError as error:
            if error.errno != errno.ELOOP:  # something is there, but no artefact
                raise
            return True

    def keys(self, stage: str) -> list[str]:
        """Keys of the complete artefacts of a stage."""
        with suppress(*_ABSENT):
            places = self._fs.ls(f"{self._root}/{stage}", detail=False)
            found = sorted(place.rstrip("/").rsplit("/", 1)[-1] for place in places)
            return [key for key in found if not key.endswith(".partial") and self.complete(stage, key)]
        return []

    def describe(self, stage: str, key: str) -> dict[str, Any]:
        """The manifest of a complete artefact; StoreError if there is none or it is damaged."""
        return self._read_manifest(stage, key)[0]

    def fetch(self, stage: str, key: str) -> Path:
        """A local directory with the files of a complete artefact; do not write into it.

        From a URL it is downloaded once per machine and version of the artefact; processes that do so at the
        same time do not disturb one another. Raises StoreError where it is absent, incomplete or damaged, naming the
        file, what it should be and what it is: every file is checked once, and again when it has changed.
        """
        manifest, text = self._read_manifest(stage, key)
        if self._folder is not None:
            return self._whole(self._folder / stage / key, manifest, self.uri(stage, key))
        target = self._cached(stage, key, text)
        if target.exists():  # else another process may put it there at any moment
            with suppress(StoreError):
                cache.used(target / _MANIFEST)
                return self._whole(target, manifest, str(target))
            shutil.rmtree(target, ignore_errors=True)  # something cleared old files out of the cache, or changed one
        with tempfile.TemporaryDirectory(dir=cache.folder()) as scratch:
            with suppress(FileNotFoundError):
                for entry in manifest["files"]:
                    self._get(self._place(stage, key, entry["file"]), Path(scratch, entry["file"]))
            self._whole(Path(scratch), manifest, self.uri(stage, key))
            Path(scratch, _MANIFEST).write_bytes(text)
            _rename_unless_there(Path(scratch), target)
        cache.trim()
        return target

    def file(self, stage: str, key: str, name: str) -> Path:
        """One file of a complete artefact, to read: in a folder it alone is checked, from a URL all are fetched.

        Raises StoreError where there is no such file, and as `fetch` does.
        """
        if self._folder is None:
            return self.fetch(stage, key) / name
        manifest, _ = self._read_manifest(stage, key)
        if not (entries := [entry for entry in manifest["files"] if entry["file"] == name]):
            raise StoreError(f"{self.uri(stage, key)} has no {name}; {REMEDY}.")
        return self._whole(self._folder / stage / key, {"files": entries}, self.uri(stage, key)) / name

    def damage(self, stage: str, key: str) -> str | None:
        """What is wrong with a complete artefact, in a sentence, if anything is."""
        try:
            self.fetch(stage, key)
        except StoreError as error:
            return str(error)
        return None

    def discard(self, stage: str, key: str) -> None:
        """Take an artefact out of the store, its manifest first."""
        if self._folder is not None:  # where anything may lie
            place = self._folder / _artefact(stage, key)
            with suppress(OSError):
                (place / _MANIFEST).unlink()
            return place.unlink() if place.is_symlink() else shutil.rmtree(place, ignore_errors=True)
        with suppress(*_ABSENT):
            self._fs.rm_file(self._place(stage, key, _MANIFEST))
            self._fs.rm(f"{self._root}/{_artefact(stage, key)}", recursive=True)

    @contextmanager
    def claim(self, stage: str, key: str, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Be the only process that makes an artefact; call `waits` again and again while another one does.

        Whoever waited finds the artefact complete, or goes on from what the other one left. A claim ends with its
        process; behind a URL it is a lease, which others take over half a minute after its last renewal.
        """
        with ExitStack() as stack:
            if self._folder is None:
                lease = f"{self._root}/{_artefact(stage, key)}.partial/{_LOCK}"
                stack.enter_context(leased(self._fs, lease, lambda: self.complete(stage, key), waits))
            while self._folder is not None and not self.complete(stage, key):
                partial = self._folder / stage / f"{key}.partial"
                partial.mkdir(parents=True, exist_ok=True)
                if (lock := locked(partial / _LOCK)) is not None:
                    stack.enter_context(lock)
                    if self.complete(stage, key):  # published between the look above and the lock
                        shutil.rmtree(partial, ignore_errors=True)
                    break
                waits()
                time.sleep(_LOCK_SECONDS)
            yield

    @contextmanager
    def create(self, stage: str, key: str, description: dict[str, Any]) -> Iterator[Output]:
        """Work on an artefact: a normal exit publishes it, an exception keeps its files for the next try.

        The manifest has stage, key, description, the time of creation (UTC), every file with its size, and
        what the job puts into `Output.manifest`. An artefact that is complete by then stays as it is, and the
        new files are dropped.

        Raises:
            StoreError: `description` or `Output.manifest` is not JSON of finite numbers, or the job made a
                manifest.json.
        """
        uri = self.uri(stage, key)
        json_of(description, f"The description of {uri}", StoreError)
        with self._partial(stage, key) as output:
            # A try that was killed while it wrote a file left its temporary name.
            for temporary in output.path.rglob(".*.tmp"):
                temporary.unlink()
            try:
                yield output
                if (output.path / _MANIFEST).exists():
                    raise StoreError(f"The job for {uri} wrote {_MANIFEST}, a name that belongs to the store.")
                made = {name: output.path / name for name in _files(output.path)}
                files = [{"file": n, "bytes": p.stat().st_size, "sha256": sha256_once(p)} for n, p in made.items()]
                created = datetime.now(UTC).isoformat(timespec="microseconds")
                own = {"stage": stage, "key": key, "description": description, "created": created, "files": files}
                # As it will be read: JSON makes strings of keys that are numbers, which sort otherwise.
                manifest = json.loads(json_of(output.manifest | own, f"The manifest of {uri}", StoreError))
                text = json.dumps(manifest | {_CHECKSUM: _checksum(manifest)}, indent=1) + "\n"
                self._publish(stage, key, output.path, text.encode())
            except Exception as error:
                try:
                    output.checkpoint()
                except Exception as second:  # the first error is the one to hear about
                    error.add_note(f"Its partial work could not be copied to {uri}.partial: {second}")
                raise

    def saved(self, stage: str, key: str, file: str) -> str | None:
        """What changes whenever `file` of an artefact in the making is saved anew; None where it is not there."""
        if self._folder is None:
            return self._checkpoint(f"{self._root}/{stage}/{key}.partial").get(file)
        with suppress(*_ABSENT):
            return str((self._folder / stage / f"{key}.partial" / file).stat().st_mtime_ns)
        return None

    def check_writable(self) -> None:
        """Write and remove a small file; StoreError with the reason if that fails."""
        place = f"{self._root}/.probe-{uuid.uuid4().hex}"
        try:
            self._put_text(b"mbml", place)
            self._fs.rm_file(place)
        except Exception as error:  # every protocol has its own exceptions for missing rights and credentials
            raise StoreError(f"The store {self.url} cannot be written to ({error}); choose another.") from error

    def _place(self, stage: str, key: str, file: str) -> str:
        return f"{self._root}/{_artefact(stage, key)}/{file}"

    def _read_manifest(self, stage: str, key: str) -> tuple[dict[str, Any], bytes]:
        uri = self.uri(stage, key)
        try:
            if self._folder is not None:
                regular(self._folder / stage / key / _MANIFEST)  # a pipe would wait for ever
            text = self._fs.cat_file(self._place(stage, key, _MANIFEST))
            manifest = json.loads(text)
            if (manifest["stage"], manifest["key"]) != (stage, key):
                raise ValueError(f"it is that of {manifest['stage']}/{manifest['key']}")
            for entry in manifest["files"]:
                _check_inside(entry["file"])
            said = manifest.pop(_CHECKSUM, None)
            summed = any("sha256" in entry for entry in manifest["files"])  # earlier stores have no sums
            if summed and said != (found := _checksum(manifest)):
                raise ValueError(f"it has checksum {said}, but its content makes {found}")
        except _ABSENT:
            raise StoreError(f"{uri} is absent or incomplete: it has no {_MANIFEST}.") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StoreError(f"{uri}/{_MANIFEST} is damaged ({error}); {REMEDY}.") from error
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EINVAL):  # a lost connection damages nothing
                raise
            raise StoreError(f"{uri}/{_MANIFEST} is damaged ({error.strerror}); {REMEDY}.") from error
        return manifest, text

    def _whole(self, directory: Path, manifest: dict[str, Any], uri: str) -> Path:
        """`directory`, which must hold every file of the manifest as it says; StoreError where one is otherwise."""
        for entry in manifest["files"]:
            path = directory / entry["file"]
            try:
                found: dict[str, Any] = {"bytes": path.stat().st_size}
                if "sha256" in entry and found["bytes"] == entry["bytes"]:  # earlier stores have none
                    found["sha256"] = sha256_once(path)
            except OSError as error:
                fault = error.strerror or error
                raise StoreError(f"{uri}/{entry['file']} cannot be read ({fault}); {REMEDY}.") from None
            for name, value in found.items():
                if value != entry[name]:
                    fault = f"it has {name} {value}, but its manifest says {entry[name]}"
                    raise StoreError(f"{uri}/{entry['file']} is damaged: {fault}; {REMEDY}.")
        return directory

    @contextmanager
    def _partial(self, stage: str, key: str) -> Iterator[Output]:
        """Where the work goes on, with what an earlier try left."""
        if self._folder is not None:
            partial = self._folder / stage / f"{key}.partial"
            partial.mkdir(parents=True, exist_ok=True)
            (partial / _MANIFEST).unlink(missing_ok=True)  # of a try that was killed just before the rename
            yield Output(partial, {})
            return
        remote = f"{self._root}/{stage}/{key}.partial"
        with tempfile.TemporaryDirectory(dir=cache.folder()) as scratch:
            for name, blob in self._checkpoint(remote).items():
                _check_inside(name)
                self._get(f"{remote}/{blob}", Path(scratch, name))
            yield Output(Path(scratch), {}, lambda: self._save_checkpoint(Path(scratch), remote))

    def _checkpoint(self, remote: str) -> dict[str, str]:
        """The files of the last readable checkpoint, and the hash of its content that each is stored under."""
        with suppress(*_ABSENT, ValueError):
            return json.loads(self._fs.cat_file(f"{remote}/checkpoint.json"))
        return {}

    def _save_checkpoint(self, local: Path, remote: str) -> None:
        """Copy what changed, switch over by replacing checkpoint.json, then remove what is out of date."""
        before, now = self._checkpoint(remote), {name: sha256_of(local / name)[:16] for name in _files(local)}
        if now == before:
            return
        for name, blob in now.items():
            if blob not in before.values():
                self._put(local / name, f"{remote}/{blob}")
        self._put_text(json.dumps(now).encode(), f"{remote}/checkpoint.json")
        for blob in set(before.values()) - set(now.values()):
            with suppress(FileNotFoundError):
                self._fs.rm_file(f"{remote}/{blob}")

    def _publish(self, stage: str, key: str, made: Path, text: bytes) -> None:
        there = self.complete(stage, key)
        (made / _MANIFEST).write_bytes(text)
        if self._folder is not None:
            if not there:
                shutil.rmtree(self._folder / stage / key, ignore_errors=True)  # without a manifest it is nothing
            _rename_unless_there(made, self._folder / stage / key)
            return (self._folder / stage / key / _LOCK).unlink(missing_ok=True)
        if not there:
            for name in _files(made):
                self._put(made / name, self._place(stage, key, name))
            self._put_text(text, self._place(stage, key, _MANIFEST))
            # Whoever needs the artefact next on this machine need not download it.
            _rename_unless_there(made, self._cached(stage, key, text))
            cache.trim()
        with suppress(Exception):  # the artefact is complete; a checkpoint that stays only takes space
            self._fs.rm(f"{self._root}/{stage}/{key}.partial", recursive=True)

    def _cached(self, stage: str, key: str, text: bytes) -> Path:
        """Its place in the cache; the manifest is part of the name because an artefact may be made anew."""
        return cache.folder() / _digest(self.url.encode()) / stage / _digest(text) / key

    def _put(self, local: Path, remote: str) -> None:
        self._fs.makedirs(remote.rsplit("/", 1)[0], exist_ok=True)
        self._fs.put_file(str(local), remote)

    def _put_text(self, text: bytes, remote: str) -> None:
        """Under another name first, because a plain write to a folder can be cut in the middle."""
        directory, name = remote.rsplit("/", 1)
        temporary = f"{directory}/.{name}.{uuid.uuid4().hex}.tmp"
        self._fs.makedirs(directory, exist_ok=True)
        self._fs.pipe_file(temporary, text)
        self._fs.mv(temporary, remote)

    def _get(self, remote: str, local: Path) -> None:
        local.parent.mkdir(parents=True, exist_ok=True)
        self._fs.get_file(remote, str(local))


def _artefact(stage: str, key: str) -> str:
    for name in (stage, key):
        if not _NAME.fullmatch(name) or name.endswith(".partial"):
            raise StoreError(f"{name!r} cannot be a stage or key: use letters, digits and . _ = + - only.")
    return f"{stage}/{key}"


def _check_inside(name: str) -> None:
    if name.startswith("/") or ".." in name.split("/"):
        raise StoreError(f"The file name {name!r} leads out of its artefact.")


def _files(directory: Path) -> list[str]:
    """All files below `directory` but the store's own, as relative names with forward slashes."""
    names = (path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    return sorted(name for name in names if name not in (_MANIFEST, _LOCK))


def _checksum(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _rename_unless_there(source: Path, target: Path) -> None:
    """Rename a directory; if a complete one is there already (another process was faster), drop `source`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(source, target)
    except OSError:
        if not (target / _MANIFEST).is_file():
            raise
        shutil.rmtree(source, ignore_errors=True)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
