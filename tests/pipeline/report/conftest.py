"""Makes the synthetic summary available to the tests of this folder."""

import importlib.util
import pathlib
from collections.abc import Callable

import pytest

_FILE = pathlib.Path(__file__).with_name("synthetic.py")


@pytest.fixture(scope="session")
def make_summary() -> Callable[..., dict]:
    """The function `summary(train, test, seeds, methods)` of synthetic.py."""
    spec = importlib.util.spec_from_file_location("synthetic_summary", _FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.summary
