"""Pictures of robots: what is seen of them and of their goals, and what they need."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from opengl import MISSING, needs_opengl, works

from hyperrl.envs import make_env
from hyperrl.envs.mujoco.base import MujocoMetaEnv
from hyperrl.envs.mujoco.half_cheetah import HalfCheetahDir
from hyperrl.envs.mujoco.rendering import GoalPicture, Landmark
from hyperrl.workers import opengl
from hyperrl.workers.metaworld import MetaWorldBatch, load_tasks

ROBOTS = ["HalfCheetahDir-v0", "Walker2DRandParams-v0", "HopperRandParams-v0", "AntDir-v0"]
GREEN = (0.0, 1.0, 0.0, 1.0)


class Marked(HalfCheetahDir):
    """With landmarks of our choice."""

    marks: tuple[Landmark, ...] = ()

    def goal_in_picture(self, index: int) -> GoalPicture:
        return GoalPicture("a goal", self.marks)


def at(env: MujocoMetaEnv, x: float = 0.0) -> MujocoMetaEnv:
    """Reset without noise, to a place."""
    qpos = torch.tensor(env._batch.model.qpos0)
    qpos[0] += x
    env.inject("qpos", qpos)
    env.inject("qvel", torch.zeros(env._qvel.shape[1]))
    env.reset()
    return env


def drawn(env: MujocoMetaEnv, index: int = 0) -> np.ndarray:
    """The picture of the scene alone `[H, W, 3]`."""
    axes = Figure(figsize=(4, 4), dpi=100, layout="constrained").add_subplot()
    env.draw_frame(axes, index)
    return np.asarray(axes.images[0].get_array()).astype(int)


def green(picture: np.ndarray) -> np.ndarray:
    """Which pixels are of a landmark `[H, W]`."""
    red, green_, blue = np.moveaxis(picture, -1, 0)
    return (green_ > 60) & (green_ > 2 * red) & (green_ > 2 * blue)


def marked(*marks: Landmark, env_class: type = Marked) -> np.ndarray:
    """Rows and columns of the pixels of landmarks `[n, 2]`, around a robot at the origin."""
    env = env_class(1)
    env.marks = marks
    return np.argwhere(green(drawn(at(env))))


class TestScene:
    """The robot and the floor."""

    @needs_opengl
    def test_robot_is_where_its_state_is(self) -> None:
        """Also in what is behind `xpos` after a step: the drawn pose is that of `qpos`."""
        env, still = (HalfCheetahDir(size, seed=1, fixed_task=[1.0]) for size in (2, 1))
        env.rollout(5)
        assert not np.allclose(env._torso[0, 2], 0.7 + env._qpos[0, 1], atol=1e-4)  # late
        still.inject("qpos", env._qpos[0].copy())
        still.inject("qvel", env._qvel[0].copy())
        still.reset()
        assert np.array_equal(drawn(still), drawn(env))
        assert not np.array_equal(drawn(env, 1), drawn(env))

    @needs_opengl
    def test_camera_follows_and_the_floor_has_no_end(self) -> None:
        """Its pattern repeats every two metres: a tile is one metre."""
        env = HalfCheetahDir(1)
        first = drawn(at(env))
        for metres in (2.0, 200.0, -80.0):
            changed = np.abs(drawn(at(env, metres)) - first).max(-1) > 10
            assert changed.mean() < 0.01  # along edges, by rounding
        for metres in (1.0, 201.0):
            moved = np.abs(drawn(at(env, metres)) - first).max(-1) > 20
            assert moved[-100:].mean() > 0.5

    @needs_opengl
    def test_one_state_has_one_picture(self) -> None:
        """Whatever was drawn before."""
        env = HalfCheetahDir(2, seed=3)
        env.reset()
        first = env.render_frame(0)
        env.render_frame(1)
        at(other := HalfCheetahDir(2, seed=3), 30.0)
        other.render_frame(0)
        other.set_seed(3)
        other.reset()
        for each in (env, other):
            assert np.array_equal(each.render_frame(0), first)

    @needs_opengl
    def test_every_environment_has_its_own_model(self) -> None:
        env = at(HalfCheetahDir(2))
        before = drawn(env), drawn(env, 1)
        env._batch.expand("geom_size")[1, 1:] *= 2
        assert np.array_equal(drawn(env), before[0])
        assert not np.array_equal(drawn(env, 1), before[1])

    @needs_opengl
    @pytest.mark.parametrize(
        "env_id", ["HalfCheetahDir-v0", "Walker2DRandParams-v0", "HopperRandParams-v0", "AntDir-v0"]
    )
    def test_robots_are_in_the_middle(self, env_id: str) -> None:
        """What differs from a picture without robot is within the frame, and not small."""
        env = make_env(env_id, 1)
        with_robot = drawn(at(env))
        alpha = env._batch.expand("geom_rgba")
        alpha[:, 1:, 3] = 0.0
        material = env._batch.model.geom_matid[1]
        if material >= 0:
            env._batch.expand("mat_rgba")[:, material, 3] = 0.0
        robot = (np.abs(drawn(env) - with_robot) > 10).any(-1)
        height, width = robot.shape
        rows, columns = robot.nonzero()
        assert columns.min() > 0.05 * width
        assert columns.max() < 0.95 * width
        assert rows.min() > 0.02 * height
        assert rows.max() < 0.95 * height
        assert abs(columns.mean() / width - 0.5) < 0.15
        assert robot.mean() > 0.01

    @needs_opengl
    def test_drawing_does_not_touch_the_simulation(self) -> None:
        env, undisturbed = HalfCheetahDir(2, seed=1), HalfCheetahDir(2, seed=1)
        action = torch.full((2, 6), 0.3)
        for each in (env, undisturbed):
            each.reset()
        for _ in range(5):
            env.render_frame(1)
            assert np.array_equal(env._torso, undisturbed._torso)  # `xpos`, which is late and stays so
            one, other = (each.step(each.fake_tensordict().set("action", action)) for each in (env, undisturbed))
            assert torch.equal(one["next", "observation"], other["next", "observation"])


class TestPicture:
    """The scene in a figure."""

    @needs_opengl
    def test_pixels_are_those_of_the_figure(self) -> None:
        """One pixel of the scene is one of the picture: nothing is blurred."""
        env = at(HalfCheetahDir(1))
        scene, picture = drawn(env), env.render_frame().astype(int)
        height, width, _ = scene.shape
        assert (height, width) > (330, 380)
        places = [
            (top, left)
            for top in range(400 - height + 1)
            for left in range(400 - width + 1)
            if np.array_equal(picture[top : top + height : 7, left : left + width : 7], scene[::7, ::7])
        ]
        assert len(places) == 1

    @needs_opengl
    def test_title_says_goal_episode_and_step(self) -> None:
        env = HalfCheetahDir(2, 3, episode_length=4)
        env.rollout(6)
        axes = Figure().add_subplot()
        env.goal_in_picture = lambda index: GoalPicture(f"goal of {index}")
        env.draw_frame(axes, 1)
        assert axes.get_title() == "goal of 1\nepisode 2 of 3, step 2 of 4"

    @needs_opengl
    def test_larger_figures_have_more_pixels(self) -> None:
        env = at(HalfCheetahDir(1))
        small = drawn(env)
        axes = Figure(figsize=(9, 9), dpi=100).add_subplot()
        env.draw_frame(axes, 0)
        large = np.asarray(axes.images[0].get_array()).astype(int)
        assert large.shape[0] > 640  # than the engine draws by itself
        assert large.shape[0] == round(axes.bbox.height)
        assert np.abs(large[::20, ::20].mean((0, 1)) - small[::20, ::20].mean((0, 1))).max() < 10
        assert np.array_equal(drawn(env), small)

    def test_families_without_a_picture_of_the_goal_show_the_task(self) -> None:
        env = HalfCheetahDir(2)
        env.inject("task", [[-1.0], [1.0]])
        env.reset()
        words = MujocoMetaEnv.goal_in_picture(env, 0)
        assert words == GoalPicture("task -1.00", ())
        env.state["task"] = torch.arange(10.0).view(2, 5)
        assert MujocoMetaEnv.goal_in_picture(env, 1).words == "task 5.00, 6.00, 7.00, 8.00, ..."


class TestLandmarks:
    """Marks are where they are said to be."""

    @needs_opengl
    def test_without_landmarks_nothing_is_green(self) -> None:
        assert len(marked()) == 0

    @needs_opengl
    def test_shapes_go_from_start_to_end(self) -> None:
        """An arrow and a disk as wide as a line end where the line does."""
        ends = (-0.9, 0.0, 1.3), (0.6, 0.0, 1.3)
        places = {shape: marked(Landmark(shape, *ends, 0.04, GREEN)) for shape in ("line", "arrow", "disk")}
        left, right = places["disk"][:, 1].min(), places["disk"][:, 1].max()
        assert right - left > 100
        for shape, tolerance in (("line", 6), ("arrow", 8)):  # the one has round ends, the other a tip
            assert abs(places[shape][:, 1].min() - left) <= tolerance
            assert abs(places[shape][:, 1].max() - right) <= tolerance
        flipped = marked(Landmark("arrow", *reversed(ends), 0.04, GREEN))
        widest = [np.bincount(place[:, 1]).argmax() for place in (places["arrow"], flipped)]  # the head's base
        assert widest[0] > (left + right) / 2 > widest[1]

    @needs_opengl
    def test_coordinates_are_those_of_the_world(self) -> None:
        """Seen from the side, x goes right and z up; the floor is at 0, and half the picture's length is known."""

        def centre(x: float, z: float) -> np.ndarray:
            return marked(Landmark("disk", (x, 0.0, z - 0.05), (x, 0.0, z + 0.05), 0.05, GREEN)).mean(0)

        origin, right, up = centre(0.0, 1.3), centre(1.0, 1.3), centre(0.0, 1.8)
        assert right[1] - origin[1] > 80
        assert abs(right[0] - origin[0]) < 2
        assert origin[0] - up[0] > 40
        assert abs(up[1] - origin[1]) < 2

    @needs_opengl
    def test_colour_and_size(self) -> None:
        thin, thick = (marked(Landmark("line", (-1, 0, 1.5), (1, 0, 1.5), r, GREEN)) for r in (0.02, 0.06))
        assert len(thick) == pytest.approx(3 * len(thin), rel=0.3)
        assert len(marked(Landmark("line", (-1, 0, 1.5), (1, 0, 1.5), 0.06, (1.0, 0.0, 0.0, 1.0)))) == 0


class TestContexts:
    """What pictures need is there when it is needed, and no longer."""

    @needs_opengl
    def test_made_with_the_first_picture_and_freed_with_the_environment(self) -> None:
        env = at(HalfCheetahDir(1))
        assert env._renderer is None
        env.render_frame()
        made = env._renderer
        env.render_frame()
        assert env._renderer is made
        freed = []
        gl, gone = made._gl, weakref.ref(made)
        free, gl.free = gl.free, lambda: (freed.append(True), free())
        del env, made
        gc.collect()
        assert gone() is None
        assert freed == [True]

    @needs_opengl
    def test_freed_with_close(self) -> None:
        """Also while somebody holds the environment; a second call is none too many."""
        env = at(HalfCheetahDir(1))
        expected = env.render_frame()
        gone = weakref.ref(env._renderer)
        env.close()
        env.close()
        gc.collect()
        assert gone() is None
        assert env.is_closed
        assert np.array_equal(env.render_frame(), expected)  # made anew

    @needs_opengl
    def test_any_thread_can_draw_and_free(self) -> None:
        env, other = at(HalfCheetahDir(1)), [at(HalfCheetahDir(1))]
        expected = env.render_frame()
        assert np.array_equal(other[0].render_frame(), expected)
        seen: list[np.ndarray] = []

        def work() -> None:
            seen.append(env.render_frame())
            other.clear()
            gc.collect()
            seen.append(env.render_frame())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        for picture in (*seen, env.render_frame()):
            assert np.array_equal(picture, expected)

    def test_a_fresh_process_needs_no_settings(self, tmp_path: Path) -> None:
        """MuJoCo comes first, there is no display, and MUJOCO_GL is not set; nothing is said at the end."""
        script = """
import mujoco
from hyperrl.envs import make_env
envs = [make_env("HalfCheetahDir-v0", 2), make_env("HalfCheetahDir-v0", 2)]
for env in envs:
    env.reset()
try:
    print([env.render_frame(1).shape for env in envs])
except RuntimeError as error:
    print(error)
"""
        hidden = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "DISPLAY", "WAYLAND_DISPLAY")
        variables = {name: value for name, value in os.environ.items() if name not in hidden}
        command = [sys.executable, "-W", "ignore:::glfw", "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=tmp_path, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        drew = done.stdout.strip() == "[(400, 400, 3), (400, 400, 3)]"
        assert drew or (not works() and "install libegl1 or libosmesa6" in done.stdout)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("wanted", "system", "installed", "expected"),
        [
            ("", "Linux", ["EGL", "OSMesa"], "egl"),
            ("", "Linux", ["OSMesa"], "osmesa"),
            ("", "Linux", [], "glfw"),
            (" OSMesa ", "Linux", ["EGL", "OSMesa"], "osmesa"),
            ("glfw", "Linux", ["EGL"], "glfw"),
            ("on", "Linux", ["EGL"], "egl"),
            ("", "Darwin", [], "cgl"),
            ("", "Windows", [], "glfw"),
        ],
    )
    def test_kind_of_context(
        self, wanted: str, system: str, installed: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MUJOCO_GL", wanted)
        monkeypatch.setattr(opengl.platform, "system", lambda: system)
        monkeypatch.setattr(opengl, "find_library", lambda name: f"lib{name}.so" if name in installed else None)
        assert opengl.choose_backend() == expected

    def test_missing_library_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(name: str) -> Any:
            raise AttributeError(f"no {name}")

        monkeypatch.setenv("MUJOCO_GL", "osmesa")
        monkeypatch.setattr(opengl.importlib, "import_module", fail)
        env = at(HalfCheetahDir(1))
        with pytest.raises(RuntimeError, match=MISSING) as error:
            env.render_frame()
        assert "'osmesa' does not work here (AttributeError: no mujoco.osmesa)" in str(error.value)
        assert "set MUJOCO_GL" in str(error.value)
        assert "\n" not in str(error.value)

    def test_window_without_a_display_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever goes on to draw in no context ends the process."""
        empty = SimpleNamespace(GLContext=lambda width, height: SimpleNamespace(_context=None))
        monkeypatch.setenv("MUJOCO_GL", "glfw")
        monkeypatch.setattr(opengl.importlib, "import_module", lambda name: {"mujoco.glfw": empty}[name])
        env = at(HalfCheetahDir(1))
        with pytest.raises(RuntimeError, match=r"'glfw' does not work here \(RuntimeError: it made no context\)"):
            env.render_frame()


class TestMetaWorld:
    """Its simulators are drawn by Gymnasium, in the same kind of context."""

    @pytest.fixture
    def arm(self) -> Iterator[MetaWorldBatch]:
        batch = MetaWorldBatch(1, tasks=load_tasks("reach", 0))
        batch.begin(0, 0)
        yield batch
        batch.close()

    @needs_opengl
    @pytest.mark.parametrize("wanted", [None, "", "on"])
    def test_settings_of_the_process_stay(
        self, wanted: str | None, arm: MetaWorldBatch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is no kind of context is left to us, which is not what Gymnasium does."""
        monkeypatch.delenv("MUJOCO_GL", raising=False)
        if wanted is not None:
            monkeypatch.setenv("MUJOCO_GL", wanted)
        assert arm.picture(0).std() > 10
        assert os.environ.get("MUJOCO_GL") == wanted

    @pytest.mark.parametrize(
        ("installed", "expected"), [(["EGL", "OSMesa"], "egl"), (["OSMesa"], "osmesa"), ([], "glfw")]
    )
    def test_kind_of_context_is_that_of_robots(
        self, installed: list[str], expected: str, arm: MetaWorldBatch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(name: str) -> Any:
            raise AttributeError(f"no\n{name}")

        monkeypatch.delenv("MUJOCO_GL", raising=False)
        monkeypatch.setattr(opengl.platform, "system", lambda: "Linux")
        monkeypatch.setattr(opengl, "find_library", lambda name: f"lib{name}.so" if name in installed else None)
        monkeypatch.setattr(opengl.importlib, "import_module", fail)
        with pytest.raises(RuntimeError, match=MISSING) as error:
            arm.picture(0)
        assert f"{expected!r} does not work here (AttributeError: no mujoco.{expected})" in str(error.value)
