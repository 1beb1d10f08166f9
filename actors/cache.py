"""Local copies of artefacts from stores behind a URL: in $MBML_CACHE, or else in a directory of this user under the
system's temporary one. Of more than $MBML_CACHE_GB (50) those go that were not used for the longest time."""

import json
import os
import tempfile
import time
from contextlib import suppress
from glob import escape, glob
from pathlib import Path

_IN_USE = 3600.0
"""Seconds for which a copy is not removed after it was asked for: a job may be reading it."""


class CacheError(ValueError):
    """$MBML_CACHE_GB is no number; the message says what would be right."""


def folder() -> Path:
    """Local copies and work in progress, on one file system so that one can be renamed into the other."""
    default = Path(tempfile.gettempdir()) / f"mbml-cache-{os.getuid()}"
    cache = Path(os.environ.get("MBML_CACHE", default)).absolute()
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    return cache


def used(manifest: Path) -> None:
    """Note that a copy is used now."""
    with suppress(OSError):  # another process may have removed it
        os.utime(manifest)


def trim() -> None:
    """Remove copies until they take no more than they may; raises CacheError."""
    limit, copies = _limit(), []
    for manifest in map(Path, glob(f"{escape(str(folder()))}/*/*/*/*/manifest.json")):  # others' folders go meanwhile
        with suppress(OSError, ValueError, KeyError, TypeError):  # removed meanwhile, or damaged: then it is no copy
            size = sum(entry["bytes"] for entry in json.loads(manifest.read_text())["files"])
            copies.append((manifest.stat().st_mtime, size, manifest.parent))
    taken = sum(size for _, size, _ in copies)
    for last, size, copy in sorted(copies):
        if taken <= limit or time.time() - last < _IN_USE:
            return
        with suppress(OSError), tempfile.TemporaryDirectory(dir=folder()) as scratch:
            os.rename(copy, Path(scratch, "gone"))  # whole or absent for whoever looks now
        taken -= size


def _limit() -> float:
    said = os.environ.get("MBML_CACHE_GB", "50")
    with suppress(ValueError):
        if float(said) >= 0:
            return float(said) * 1e9
    raise CacheError(f"MBML_CACHE_GB is {said!r}; it should be a number of gigabytes, such as 50.")
