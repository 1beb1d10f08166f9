"""MuJoCo, and pictures of it: whatever MUJOCO_GL says, only drawing depends on it."""

# pyright: reportAttributeAccessIssue=false

import importlib
import os
from typing import Any
from unittest.mock import patch

import gymnasium

try:
    import mujoco
except (AttributeError, OSError, RuntimeError):  # what a MUJOCO_GL that this machine lacks ends in
    with patch.dict(os.environ, MUJOCO_GL="disable"):
        import mujoco

__all__ = ["mujoco", "new_renderer"]


def new_renderer(model: Any, height: int = 480, width: int = 480) -> Any:
    """A `mujoco.Renderer` by MUJOCO_GL or, without one, by the first of EGL, OSMesa and GLFW that works.

    Raises gymnasium.error.DependencyNotInstalled where none does.
    """
    chosen = os.environ.get("MUJOCO_GL")
    for name in (chosen,) if chosen else ("egl", "osmesa", "glfw"):
        try:
            with patch.dict(os.environ, MUJOCO_GL=name):
                # The renderer looks its context up there, which is chosen when that module is loaded.
                importlib.reload(importlib.import_module("mujoco.rendering.classic.gl_context"))
            return importlib.import_module("mujoco.rendering.classic.renderer").Renderer(model, height, width)
        except Exception as error:  # each backend fails in its own ways
            fault = error
    refused = f"No picture can be drawn on this machine ({type(fault).__name__} with MUJOCO_GL={chosen or name})"
    advice = "install libegl1 or libosmesa6 and set MUJOCO_GL to egl or osmesa"
    raise gymnasium.error.DependencyNotInstalled(f"{refused}; {advice}.")
