"""OpenGL out of sight, for pictures of robots: one that needs no display, if there is one."""

from __future__ import annotations

import importlib
import os
import platform
from ctypes.util import find_library
from typing import Any


def choose_backend() -> str:
    """Return MUJOCO_GL if it names one; else the first that is installed out of those that need no display."""
    wanted = os.environ.get("MUJOCO_GL", "").strip().lower()
    if wanted in ("egl", "osmesa", "glfw", "cgl"):
        return wanted
    if platform.system() == "Linux":
        for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
            if find_library(library):
                return name
    return "cgl" if platform.system() == "Darwin" else "glfw"


def new_context(width: int, height: int) -> Any:
    """Return a `GLContext` of MuJoCo; whatever a missing library, driver or display leads to is raised."""
    gl = importlib.import_module(f"mujoco.{choose_backend()}").GLContext(width, height)
    if not gl._context:  # GLFW without a display; to go on would end the process
        raise RuntimeError("it made no context")
    return gl


def missing(error: Exception) -> RuntimeError:
    """What to say of an error on the way to a picture."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return RuntimeError(
        f"pictures of robots need OpenGL, and {choose_backend()!r} does not work here ({reason}): "
        "install libegl1 or libosmesa6, or set MUJOCO_GL to 'egl', 'osmesa' or 'glfw'"
    )
