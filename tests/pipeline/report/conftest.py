"""Makes the made-up results available to the tests of this folder."""

import importlib.util
import pathlib
from types import ModuleType

import pytest

_FILE = pathlib.Path(__file__).with_name("synthetic.py")


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """The module synthetic.py, with its functions `results` and `warmstart`."""
    spec = importlib.util.spec_from_file_location("synthetic_results", _FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
