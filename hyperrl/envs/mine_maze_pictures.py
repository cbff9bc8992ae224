"""First-person pictures of MineMaze, rendered: a ray caster in a world of boxes (`spec/envs-navigation.md` 7.6, 7.7).

The rooms are one world in which a camera stands at nine places; the pillar that tells the room's type is out of sight
from the last five. Indicators and the end are blocks right in front of the camera.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

POSITIONS = ((0, 0), (0, 1), (-1, 1), (1, 1), (-1, 2), (1, 2), (-1, 3), (1, 3), (0, 3))
"""Cells of a room, in the order of the pictures; (0, 2) is the pillar."""

KEYS = ("hidden", "green", "red", "end", *(f"room{kind}/{x},{y}" for kind in (0, 1) for x, y in POSITIONS))
"""What the pictures show, in their order."""

PIXELS = 10

_SUPERSAMPLING = 12  # rays per side of a pixel, whose mean is its colour
_FIELD = 0.7  # tangent of half the field of view
_SHADES = np.array([0.78, 1.0, 1.2])  # of faces across x (sides), y (fronts) and z (tops)
_TILE = 2.0  # side length of a texture's repetition
_SKY = (140.0, 170.0, 235.0)

# The world. Its x axis points right, y forward, z up; the pillar stands on the ground, the ores on a ledge behind it.
_PILLAR, _LANE, _WALL = 1.55, 2.6, 4.0  # half width of the pillar; middle of a lane beside it; outer wall
_EYE = 1.4
_FRONT, _BACK = 4.05, 6.5  # of the pillar
_LEDGE = 6.82  # where the ledge begins; as far from the camera in the lanes as the ores from the one on the ledge
_HEIGHT = 2.33  # of the ledge
_ORE = 10.15  # front of the ores and of the wall between which the way out begins
_NEAR = 1 / _FIELD  # distance at which one tile fills the frame
_HIGH, _FAR = 12.0, 20.0  # out of sight

_CAMERAS = {
    (0, 0): (0.0, 0.0, _EYE),
    (0, 1): (0.0, _FRONT - 1.1, _EYE),
    **{(side, 1): (side * _LANE, _LEDGE - 10 / 3, _EYE) for side in (-1, 1)},
    **{(side, 2): (side * _LANE, _ORE - 10 / 3, _HEIGHT + _EYE) for side in (-1, 1)},
    **{(side, 3): (side * _LANE, _ORE - _NEAR, _HEIGHT + _EYE) for side in (-1, 1)},
    (0, 3): (0.0, _ORE - _NEAR, _HEIGHT + _EYE),
}

# Specks of the ores: '#' in both kinds, '+' in iron only. All textures have 10 x 10 texels.
_SPECKS = (
    "..........",
    ".##....#..",
    "......###+",
    "..........",
    "###+......",
    ".....##...",
    "..........",
    ".+##...##.",
    "......##+.",
    ".##.......",
)


class _Box(NamedTuple):
    """An axis-aligned box with one texture on all faces."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    texture: str


@cache
def render_pictures() -> np.ndarray:
    """Render all pictures, `[22, 10, 10, 3]` uint8, rows from the top; always the same ones, read-only.

    Example:
        >>> render_pictures()[KEYS.index("hidden")].any()
        False
    """
    block = [_Box((-1, _NEAR, 0), (1, 4, 2), name) for name in KEYS[1:4]]
    pictures = [np.zeros((PIXELS, PIXELS, 3)), *(_render((0.0, 0.0, 1.0), [box]) for box in block)]
    for kind in ("iron", "diamond"):
        pictures += [_render(_CAMERAS[position], _room(kind)) for position in POSITIONS]
    bank = np.stack(pictures).round().clip(0, 255).astype(np.uint8)
    bank.setflags(write=False)
    return bank


def _room(kind: str) -> list[_Box]:
    """The world of a room whose pillar is of a kind of block."""
    end = _ORE + 2.2
    boxes = [
        _Box((-9, -9, -1), (9, _FAR, 0), "stone"),
        _Box((-_PILLAR, _FRONT, 0), (_PILLAR, _BACK, _HIGH), kind),
        _Box((-9, _LEDGE, 0), (9, _FAR, _HEIGHT), "stone"),
        _Box((-_WALL, end, 0), (_WALL, _FAR, _HIGH), "stone"),
    ]
    for side, ore in ((-1, "diamond_ore"), (1, "iron_ore")):
        boxes += [
            _mirrored(side, (_WALL, -1, 0), (9, _LEDGE + 1.9, 4.6), "stone"),
            _mirrored(side, (_WALL, _LEDGE + 1.9, 0), (_WALL + 0.1, _FAR, 6.2), "stone"),
            _mirrored(side, (1.6, _ORE + 0.1, 0), (_WALL, end, _HIGH), "stone"),
            _mirrored(side, (1.6, _ORE, _HEIGHT), (3.6, _ORE + 0.2, _HIGH), ore),
        ]
    return boxes


def _mirrored(side: int, low: tuple[float, float, float], high: tuple[float, float, float], texture: str) -> _Box:
    """A box on the right (1) or in its place on the left (-1)."""
    x = (low[0], high[0]) if side > 0 else (-high[0], -low[0])
    return _Box((x[0], *low[1:]), (x[1], *high[1:]), texture)


def _render(camera: tuple[float, float, float], boxes: list[_Box]) -> np.ndarray:
    """The picture `[10, 10, 3]` that a camera takes in the direction y, rows from the top."""
    size = PIXELS * _SUPERSAMPLING
    screen = _FIELD * ((np.arange(size) + 0.5) * 2 / size - 1)
    right, up = np.meshgrid(screen, -screen)
    rays = np.stack((right, np.ones_like(right), up), -1).reshape(-1, 3)
    colours = _cast(np.array(camera), rays, boxes)
    return colours.reshape(PIXELS, _SUPERSAMPLING, PIXELS, _SUPERSAMPLING, 3).mean((1, 3))


def _cast(origin: np.ndarray, rays: np.ndarray, boxes: list[_Box]) -> np.ndarray:
    """The colour `[N, 3]` of the nearest box in the direction of each ray `[N, 3]`, or of the sky."""
    nearest = np.full(len(rays), np.inf)
    colours = np.full((len(rays), 3), _SKY)
    for box in boxes:
        # A ray is in the box while it is between both faces across every axis.
        passes = np.stack([(np.array(face) - origin) / rays for face in (box.low, box.high)])
        enters, leaves = passes.min(0), passes.max(0).min(-1)
        axis, distance = enters.argmax(-1), enters.max(-1)
        hit = (distance > 0) & (distance < leaves) & (distance < nearest)
        nearest[hit] = distance[hit]
        points = origin + rays[hit] * distance[hit, None] - box.low
        colours[hit] = _texels(box.texture, points, axis[hit]) * _SHADES[axis[hit], None]
    return colours


def _texels(texture: str, points: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Colours `[N, 3]` of points on a box, relative to its lower corner, on faces across an axis."""
    across = np.where(axis == 0, points[:, 1], points[:, 0])
    upward = np.where(axis == 2, points[:, 1], points[:, 2])
    column, row = (np.floor(place / _TILE * PIXELS).astype(int) % PIXELS for place in (across, upward))
    return _texture(texture)[PIXELS - 1 - row, column]


@cache
def _texture(name: str) -> np.ndarray:
    """The texels `[10, 10, 3]` of a texture as seen from the front, rows from the top."""
    rng = np.random.default_rng(sum(name.encode()))
    grain = rng.normal(size=(PIXELS, PIXELS, 1))
    column = np.arange(PIXELS)
    if name == "green":
        slope = np.clip((6.5 - column) / 2, -1, 1)[:, None]
        return (65, 178, 98) + slope * (15, 5, 10) + grain * (10, 8, 12)
    if name == "red":
        rim = (np.abs(column - 4.5) / 4.5) ** 4
        return (92, 11, 4) + np.maximum(rim[:, None], rim)[..., None] * (45, 12, 8) + grain * (8, 2, 2)
    if name == "end":
        bright = rng.permutation(PIXELS**2).reshape(PIXELS, PIXELS, 1) < 15
        return np.where(bright, (37.0, 29.0, 53.0), (13.0, 13.0, 20.0))
    if name == "iron":
        return (180, 180, 180) + grain * 4
    if name == "diamond":
        return (98, 180, 176) + grain * (13, 3, 3)
    if name == "stone":
        return (98, 98, 98) + grain * 4
    ground, speck = ((105, 107, 108), (110, 167, 182)) if name == "diamond_ore" else ((102, 100, 100), (150, 125, 108))
    marks = np.array([list(row) for row in _SPECKS])
    is_speck = (marks == "#") | ((marks == "+") & (name == "iron_ore"))
    return np.where(is_speck[..., None], np.array(speck) + grain * 10, np.array(ground) + grain * 4)
