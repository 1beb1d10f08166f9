"""A trained policy outside this project: a folder that says everything about it, and the class that acts by it."""

from mbml.deploy.adaptive import AdaptivePolicy, Belief
from mbml.deploy.description import Description
from mbml.deploy.folder import write_folder
from mbml.policy import PolicyError

__all__ = ["AdaptivePolicy", "Belief", "Description", "PolicyError", "write_folder"]
