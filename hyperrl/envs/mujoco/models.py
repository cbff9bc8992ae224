"""Physics models of the robots: those of Gymnasium, adjusted to what the published results used.

The adjustments and why they are needed: `spec/envs-mujoco.md` section 3.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import as_file, files
from typing import NamedTuple

import mujoco

_ASSETS = files("gymnasium.envs.mujoco") / "assets"


class Robot(NamedTuple):
    """How a model of Gymnasium becomes that of an environment.

    Attributes:
        file: name of the model among Gymnasium's assets.
        substeps: physics steps per environment step.
        timestep: seconds per physics step; None keeps the file's.
        total_mass: what the whole robot is scaled to; None keeps the file's.
        margin: at which distance a geom makes contact; None keeps the file's. The engine adds the margins of two geoms
            since 3.5.0, where only the larger one counted.
        contact_forces: compute `cfrc_ext`, which stays zero unless a sensor of forces needs it.
    """

    file: str
    substeps: int
    timestep: float | None = None
    total_mass: float | None = None
    margin: float | None = None
    contact_forces: bool = False


ROBOTS = {
    "half_cheetah": Robot("half_cheetah.xml", 5, total_mass=14.0),
    "ant": Robot("ant.xml", 5, margin=0.005, contact_forces=True),
    "walker2d": Robot("walker2d.xml", 4, timestep=0.004),
    "hopper": Robot("hopper.xml", 4, timestep=0.004, margin=0.0005),
}


@cache
def load_model(name: str) -> mujoco.MjModel:
    """Return the compiled model of a robot in `ROBOTS`; callers share it and must not change it."""
    robot = ROBOTS[name]
    with as_file(_ASSETS / robot.file) as path:
        spec = mujoco.MjSpec.from_file(str(path))
    if robot.timestep is not None:
        spec.option.timestep = robot.timestep
    if robot.margin is not None:
        for geom in spec.geoms:
            geom.margin = robot.margin
    if robot.contact_forces:
        root = spec.worldbody.first_body()
        site = root.add_site(name="force")
        spec.add_sensor(type=mujoco.mjtSensor.mjSENS_FORCE, objtype=mujoco.mjtObj.mjOBJ_SITE, objname=site.name)
    if robot.total_mass is not None:
        _scale_densities(spec, robot.total_mass)
    return spec.compile()


def _scale_densities(spec: mujoco.MjSpec, total_mass: float) -> None:
    """Give a robot without explicit masses another mass; the file's own attribute for that warns into a log file."""
    spec.compiler.settotalmass = -1.0
    scale = total_mass / sum(spec.compile().body_mass)
    for geom in spec.geoms:
        geom.density *= scale
