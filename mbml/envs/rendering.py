"""MuJoCo, and pictures of it: whatever MUJOCO_GL says, only drawing depends on it."""

# pyright: reportAttributeAccessIssue=false

import importlib
import os
import subprocess
import sys
from typing import Any
from unittest.mock import patch

import gymnasium

try:
    import mujoco
except (AttributeError, OSError, RuntimeError):  # what a MUJOCO_GL that this machine lacks ends in
    with patch.dict(os.environ, MUJOCO_GL="disable"):
        import mujoco

__all__ = ["backend", "mujoco", "new_renderer"]

_DRAW = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='.1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 32, 32)
renderer.update_scene(data)
renderer.render()
"""


def _backends() -> tuple[str, ...]:
    """What MUJOCO_GL says or, without it, what is tried in this order."""
    chosen = os.environ.get("MUJOCO_GL")
    return (chosen,) if chosen else ("egl", "osmesa", "glfw")


def backend() -> tuple[str | None, dict[str, str]]:
    """The first backend that draws, and of those tried before it why not. Each draws in a process of its own, so that
    a driver that crashes or hangs takes nothing along.
    """
    faults = {}
    for name in _backends():
        program = [sys.executable, "-c", _DRAW]
        try:
            done = subprocess.run(
                program, env=os.environ | {"MUJOCO_GL": name}, capture_output=True, text=True, timeout=60
            )
        except subprocess.TimeoutExpired:
            faults[name] = "hung"
            continue
        if not done.returncode:
            return name, faults
        said = done.stderr.strip().splitlines()[-1:] or [""]
        faults[name] = f"crashed with signal {-done.returncode}" if done.returncode < 0 else said[0].partition(":")[0]
    return None, faults


def new_renderer(model: Any, height: int = 480, width: int = 480) -> Any:
    """A `mujoco.Renderer` by MUJOCO_GL or, without one, by the first of EGL, OSMesa and GLFW that works.

    Raises gymnasium.error.DependencyNotInstalled where none does.
    """
    for name in _backends():
        try:
            with patch.dict(os.environ, MUJOCO_GL=name):
                # The renderer looks its context up there, which is chosen when that module is loaded.
                importlib.reload(importlib.import_module("mujoco.rendering.classic.gl_context"))
            return importlib.import_module("mujoco.rendering.classic.renderer").Renderer(model, height, width)
        except Exception as error:  # each backend fails in its own ways
            fault = error
    refused = f"No picture can be drawn on this machine ({type(fault).__name__} with MUJOCO_GL={name})"
    advice = "install libegl1 or libosmesa6 and set MUJOCO_GL to egl or osmesa"
    raise gymnasium.error.DependencyNotInstalled(f"{refused}; {advice}.")
