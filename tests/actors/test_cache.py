"""Copies of artefacts from a store behind a URL, of which only so many stay."""

import os
import time
from pathlib import Path

import pytest

from actors.cache import CacheError
from actors.store import Store

KEYS = ("k0", "k1", "k2", "k3")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Four artefacts of a megabyte, of which this machine has no copy."""
    monkeypatch.setenv("MBML_CACHE", str(tmp_path / "elsewhere"))
    store = Store(f"file://{tmp_path / 'store'}")
    for key in KEYS:
        with store.create("bcq", key, {}) as out:
            (out.path / "weights").write_bytes(key.encode() * 500_000)
    monkeypatch.setenv("MBML_CACHE", str(tmp_path / "cache"))
    return store


def aged(path: Path, hours: float) -> None:
    """Make a copy one that was used so long ago."""
    then = time.time() - 3600 * hours
    os.utime(path / "manifest.json", (then, then))


def test_what_was_not_used_for_the_longest_time_goes(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MBML_CACHE_GB", "0.0025")
    first, second = (store.fetch("bcq", key) for key in KEYS[:2])
    aged(first, 2)
    aged(second, 3)
    assert store.fetch("bcq", "k0") == first  # which is a use
    third = store.fetch("bcq", "k2")
    assert [path.exists() for path in (first, second, third)] == [True, False, True]
    assert (store.fetch("bcq", "k1") / "weights").read_bytes() == b"k1" * 500_000


def test_what_may_be_read_now_stays(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MBML_CACHE_GB", "0")
    assert all(path.exists() for path in [store.fetch("bcq", key) for key in KEYS])


@pytest.mark.parametrize("said", ["much", "-1", "nan", ""])
def test_a_limit_that_is_none(store: Store, monkeypatch: pytest.MonkeyPatch, said: str):
    monkeypatch.setenv("MBML_CACHE_GB", said)
    with pytest.raises(CacheError, match=r"MBML_CACHE_GB is .*it should be a number of gigabytes"):
        store.fetch("bcq", "k0")
