"""Pictures of environments: what `MetaEnv.render_frame` draws, and the path that it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES, _DPI = 4.0, 100


class Pictures:
    """The part of `MetaEnv` that draws. A family writes `draw_frame`, and `coordinates` if it has places in a plane."""

    record_path: bool
    num_envs: int
    episode_length: int
    state: dict[str, Tensor]

    # Written by a subclass ---------------------------------------------------------------------------------------

    def coordinates(self) -> Tensor:
        """Where the agents are, `[B, 2]`; only of families with places in a plane."""
        raise NotImplementedError

    def draw_frame(self, axes: Axes, index: int) -> None:
        """Draw the current state of environment `index` on empty axes."""
        raise NotImplementedError(f"{type(self).__name__} has no picture: expected it to define `draw_frame`")

    # Public ------------------------------------------------------------------------------------------------------

    def render_frame(self, index: int = 0) -> np.ndarray:
        """Return a picture of the current state of one environment, `[400, 400, 3]` uint8.

        Where an inner episode has just ended, the state is already that of the next one.

        Args:
            index: which of the B environments.

        Raises:
            ValueError: if there is no such environment.
            RuntimeError: before the first reset.
            NotImplementedError: if the family has no picture.

        Example:
            >>> env = make_env("GridNavi-v0", 4, record_path=True, publish=["belief"])
            >>> td = env.rollout(7)
            >>> env.render_frame(2).shape
            (400, 400, 3)
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        if index not in range(self.num_envs):
            raise ValueError(f"`index` is {index!r}: expected a number from 0 to {self.num_envs - 1}")
        if not self.state:
            raise RuntimeError("call reset() before render_frame()")
        figure = Figure(figsize=(_INCHES, _INCHES), dpi=_DPI, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        self.draw_frame(figure.add_subplot(), index)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()

    def path(self, index: int) -> Tensor:
        """Return where environment `index` has been in this episode, `[n, 2]`; where it is, without `record_path`."""
        if not self.record_path:
            return self.coordinates()[index].unsqueeze(0)
        return self.state["path"][index, : int(self.state["path_length"][index])]

    # For `MetaEnv` -----------------------------------------------------------------------------------------------

    def _start_path(self, mask: Tensor) -> None:
        """Begin the path of a new episode where `mask` `[B]` is set."""
        if not self._keeps_path():
            return
        place = self.coordinates()
        if "path" not in self.state:
            self.state["path"] = place.new_zeros(self.num_envs, self.episode_length + 1, 2)
            self.state["path_length"] = torch.zeros_like(mask, dtype=torch.int64)
        start = torch.where(mask.unsqueeze(-1), place, self.state["path"][:, 0])
        self.state["path"][:, 0] = start
        self.state["path_length"] = torch.where(mask, 1, self.state["path_length"])

    def _extend_path(self) -> None:
        """Add where a step has ended."""
        if not self._keeps_path():
            return
        length = self.state["path_length"].clamp(max=self.episode_length)
        self.state["path"][torch.arange(self.num_envs, device=length.device), length] = self.coordinates()
        self.state["path_length"] = length + 1

    def _keeps_path(self) -> bool:
        return self.record_path and type(self).coordinates is not Pictures.coordinates
