"""The methods that a run compares, and changes of its configuration."""

from mbml.methods import METHODS, Variant
from mbml.settings import changed

ABLATIONS = [name for name, method in METHODS.items() if method.learner == "distill"]

__all__ = ["ABLATIONS", "METHODS", "Variant", "changed"]
