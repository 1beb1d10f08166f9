"""The science: environments, data, networks, losses, learners, evaluation and the adaptive policy; no Ray."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mbml.deploy import AdaptivePolicy, PolicyError

__all__ = ["AdaptivePolicy", "PolicyError"]


def __getattr__(name: str) -> Any:
    """The two names that users import; nobody else waits for them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mbml import deploy

    return getattr(deploy, name)
