"""Whether pictures of robots can be drawn here; where they cannot, tests of pictures expect the message about it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from hyperrl.envs import make_env

MISSING = "pictures of robots need OpenGL, and '.*' does not work here .*: install libegl1 or libosmesa6"


@functools.cache
def works() -> bool:
    env = make_env("HalfCheetahDir-v0", 1)
    env.reset()
    try:
        env.render_frame()
    except RuntimeError:
        return False
    return True


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
