"""Whether OpenGL works here; then robots must be drawn. Where it does not, tests expect the message about it."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from hyperrl.envs import make_env

MISSING = "pictures of robots need OpenGL, and '.*' does not work here .*: install libegl1 or libosmesa6"
_KINDS = ("egl", "osmesa", "glfw", "cgl")
_ATTEMPT = """
import sys, importlib, mujoco
gl = importlib.import_module(f"mujoco.{sys.argv[1]}").GLContext(64, 64)
gl.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100.value).free()
gl.free()
"""


@functools.cache
def works() -> bool:
    """Asks MuJoCo alone, in processes of its own: a kind of OpenGL excludes others, and GLFW may end the process."""
    wanted = os.environ.get("MUJOCO_GL", "").strip().lower()
    return any(_works(kind) for kind in ([wanted] if wanted in _KINDS else _KINDS))


def _works(kind: str) -> bool:
    return subprocess.run([sys.executable, "-c", _ATTEMPT, kind], capture_output=True, check=False).returncode == 0


def needs_opengl(test: Callable[..., None]) -> Callable[..., None]:
    """A test that draws robots."""

    @functools.wraps(test)
    def either(*args: Any, **kwargs: Any) -> None:
        if works():
            return test(*args, **kwargs)
        env = make_env("HalfCheetahDir-v0", 1)
        env.reset()
        with pytest.raises(RuntimeError, match=MISSING):
            env.render_frame()
        return None

    return either
