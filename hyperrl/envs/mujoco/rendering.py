"""Pictures of robots: off-screen OpenGL, which needs no display, and what `draw_frame` shows of a task."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import mujoco
import numpy as np
from mujoco.batch import Batch
from numpy.typing import NDArray

from hyperrl import keys
from hyperrl.envs.rendering import Pictures
from hyperrl.workers.opengl import missing, new_context

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREEN = (0.15, 0.65, 0.25, 1.0)
_SKY, _BRIGHT_TILE, _DARK_TILE = (220, 232, 245), (205, 212, 220), (150, 165, 180)
_SHADOW_PIXELS = 1024  # side of the shadow map; the engine's 4096 take 40 ms per picture on a CPU
_SHADOW_SIZE = 6.0  # metres around the robot
_LIGHT = (-1.0, -1.5, 4.0)  # where it is, seen from the robot
_TORSO = 1
_MAX_SHAPES = 200
_SHAPES = {
    "arrow": mujoco.mjtGeom.mjGEOM_ARROW,
    "line": mujoco.mjtGeom.mjGEOM_CAPSULE,
    "disk": mujoco.mjtGeom.mjGEOM_CYLINDER,
}


class Landmark(NamedTuple):
    """A mark of the goal in the scene.

    Attributes:
        shape: an arrow, a line with round ends, or a disk, whose axis goes from start to end.
        start: world coordinates in metres.
        end: world coordinates in metres.
        radius: of the shape, in metres.
        rgba: its colour.
    """

    shape: Literal["arrow", "line", "disk"]
    start: tuple[float, float, float]
    end: tuple[float, float, float]
    radius: float = 0.03
    rgba: tuple[float, float, float, float] = _GREEN


class GoalPicture(NamedTuple):
    """What a picture shows of a task.

    Attributes:
        words: for the title.
        landmarks: marks in the scene.
    """

    words: str
    landmarks: Sequence[Landmark] = ()


class View(NamedTuple):
    """From where a robot is seen.

    Attributes:
        azimuth: direction in which the camera looks, in degrees from the x axis.
        elevation: angle of that direction above the ground, in degrees.
        distance: of the camera, in metres.
        height: of the point that it looks at, above or below the robot, in metres.
    """

    azimuth: float
    elevation: float
    distance: float
    height: float


_SIDE = View(90.0, -10.0, 3.6, 0.8)
_VIEWS = {
    "half_cheetah": _SIDE,
    "walker2d": _SIDE,
    "hopper": _SIDE,
    "ant": View(90.0, -60.0, 8.5, 0.0),  # all goals, which are within 3 m of the start
}


class RobotPictures(Pictures):
    """The part of `MujocoMetaEnv` that draws. A family writes `goal_in_picture`."""

    robot: ClassVar[str]
    episodes_per_task: int
    _batch: Batch
    _step_count: NDArray[np.int64]
    _renderer: Renderer | None = None

    def goal_in_picture(self, index: int) -> GoalPicture:
        """What a picture shows of the task of environment `index`."""
        task = self.state[keys.TASK][index].tolist()
        return GoalPicture("task " + ", ".join(f"{value:.2f}" for value in task[:4]) + ", ..." * (len(task) > 4))

    def draw_frame(self, axes: Axes, index: int) -> None:
        """Draw the robot, with a camera that follows it, and the goal; tiles of the floor measure one metre."""
        goal = self.goal_in_picture(index)
        episode, step = int(self.state["episode"][index]) + 1, self._step_count[index]
        played = f"episode {episode} of {self.episodes_per_task}, step {step} of {self.episode_length}"
        axes.set_title(f"{goal.words}\n{played}")
        axes.set(xticks=(), yticks=())
        axes.set_axis_off()
        axes.figure.figure.draw_without_rendering()  # the layout decides how many pixels the axes have
        width, height = (round(pixels) for pixels in axes.bbox.size)
        model, data = self._batch.get_model(index), self._batch.get_data(index)
        if self._renderer is None:
            self._renderer = Renderer(model)
        picture = self._renderer.draw(model, data, _VIEWS[self.robot], goal.landmarks, (width, height))
        axes.imshow(picture, aspect="auto", interpolation="nearest")


class Renderer:
    """Draws scenes without a window; the OpenGL context is freed together with it.

    `mujoco.Renderer` takes the kind of context that was chosen when MuJoCo was imported: one with windows, unless
    MUJOCO_GL was set. Here it is chosen when it is needed, and one that needs no display is preferred.

    Args:
        model: a robot whose textures and sizes are those of all that are drawn later; it is repainted.

    Raises:
        RuntimeError: if OpenGL does not work here.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        model.vis.quality.shadowsize = _SHADOW_PIXELS
        _repaint(model)
        self._gl, self._context = _new_contexts(model)
        self._scene = mujoco.MjvScene(model, maxgeom=_MAX_SHAPES)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_HAZE] = True
        # At the interpreter's exit the system frees them, and the order of things is no longer ours.
        weakref.finalize(self, _free, self._gl, self._context).atexit = False

    def draw(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        view: View,
        landmarks: Sequence[Landmark],
        size: tuple[int, int],
    ) -> NDArray[np.uint8]:
        """Return a picture `[height, width, 3]` of a state.

        Args:
            model: the robot; it is repainted.
            data: its state; what depends on positions is computed anew.
            view: from where it is seen.
            landmarks: further shapes.
            size: width and height in pixels.
        """
        _repaint(model)
        mujoco.mj_fwdPosition(model, data)  # after a step, places of bodies are those of a moment ago
        self._fill_scene(model, data, view, landmarks)
        width, height = size
        rows = np.empty((height, width, 3), np.uint8)
        area = mujoco.MjrRect(0, 0, width, height)
        with self._gl.as_current():
            if width > self._context.offWidth or height > self._context.offHeight:
                mujoco.mjr_resizeOffscreen(width, height, self._context)
            mujoco.mjr_render(area, self._scene, self._context)
            mujoco.mjr_readPixels(rows, None, area, self._context)
        return rows[::-1]  # OpenGL begins at the bottom

    def _fill_scene(
        self, model: mujoco.MjModel, data: mujoco.MjData, view: View, landmarks: Sequence[Landmark]
    ) -> None:
        camera = mujoco.MjvCamera()
        camera.azimuth, camera.elevation, camera.distance = view.azimuth, view.elevation, view.distance
        camera.lookat[:] = (*data.xpos[_TORSO, :2], view.height)
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        # First of all, as the endless floor is laid around the camera of the scene: otherwise that of the last picture.
        mujoco.mjv_updateCamera(model, data, camera, self._scene)
        mujoco.mjv_updateScene(model, data, mujoco.MjvOption(), None, camera, everything, self._scene)
        for landmark in landmarks:
            self._add(landmark)

    def _add(self, landmark: Landmark) -> None:
        geom, shape = self._scene.geoms[self._scene.ngeom], _SHAPES[landmark.shape]
        mujoco.mjv_initGeom(geom, shape, np.zeros(3), np.zeros(3), np.zeros(9), np.array(landmark.rgba, np.float32))
        mujoco.mjv_connector(geom, shape, landmark.radius, np.array(landmark.start), np.array(landmark.end))
        if landmark.shape == "arrow":
            geom.size[2] *= 2.0  # the engine draws arrows half as long
        geom.category = mujoco.mjtCatBit.mjCAT_DECOR.value
        self._scene.ngeom += 1


def _repaint(model: mujoco.MjModel) -> None:
    """Give an own copy of a robot's model a floor without end, in tiles of one metre, and calm, bright colours."""
    floor = model.geom("floor")
    floor.size[:2], floor.rgba[:] = 0.0, 1.0
    material = model.mat(floor.matid.item())
    material.texuniform[:], material.texrepeat[:], material.reflectance[:] = True, 1.0, 0.0  # a tile per metre
    model.light_mode[0], model.light_bodyid[0] = mujoco.mjtCamLight.mjCAMLIGHT_TRACK.value, _TORSO
    model.light_pos0[0], model.light_dir0[0], model.light_diffuse[0] = _LIGHT, np.negative(_LIGHT), 0.4
    model.vis.headlight.ambient[:], model.vis.headlight.diffuse[:] = 0.4, 0.3
    model.vis.map.shadowclip = _SHADOW_SIZE / model.stat.extent
    model.vis.rgba.haze[:3] = np.divide(_SKY, 255)
    for index in range(model.ntex):
        start, size = model.tex_adr[index], model.tex_height[index] * model.tex_width[index]
        pixels = model.tex_data[start : start + 3 * size].reshape(size, 3)
        if model.tex_type[index] == mujoco.mjtTexture.mjTEXTURE_SKYBOX:
            pixels[:] = _SKY
        elif model.tex(index).name == "texplane":
            pixels[:] = np.where(pixels > pixels.mean(), _BRIGHT_TILE, _DARK_TILE)


def _new_contexts(model: mujoco.MjModel) -> tuple[Any, mujoco.MjrContext]:
    """Return a context of OpenGL for pictures out of sight, and the engine's in it."""
    try:
        gl = new_context(model.vis.global_.offwidth, model.vis.global_.offheight)
        with gl.as_current():
            context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, context)
    except Exception as error:
        raise missing(error) from error
    return gl, context


def _free(gl: Any, context: mujoco.MjrContext) -> None:
    with gl.as_current():
        context.free()
    gl.free()
