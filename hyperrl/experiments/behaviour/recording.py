"""Recorded meta-episodes: everything that happened, as arrays in one file that says what it is."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperrl.errors import ConfigError

FORMAT = 1
_INFO = "info"
Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Recording:
    """One meta-episode of each of N tasks, of at most T steps; arrays are zero behind the end of a shorter one.

    Attributes:
        info: what was played, by whom, with which seed, and in which versions.
        arrays: by name, as far as environment and agent have them:

            - ``length [N]``: steps of the meta-episode.
            - ``action [N, T]`` or ``[N, T, A]``, ``reward [N, T]`` (raw), ``success [N, T]``.
            - ``episode_done``, ``done``, ``terminated`` ``[N, T]``: ends that the step led to.
            - ``observation [N, T+1, O]``, ``task [N, T+1, D]``, ``task_id [N, T+1]``, ``state_id [N, T+1]``,
              ``belief [N, T+1, G]``: before each step, and after the last one.
            - ``value [N, T]``: of the state before each step, as the critic has it: in units of scaled rewards.
            - ``latent_mean`` and ``latent_log_variance [N, T+1, L]``; or ``latent [N, T+1, 2L]`` where it is no
              distribution.
            - ``predicted_reward [N, T]``: of each step, as the latent before it predicts it; or, where the decoder
              predicts those of all states, ``state_prediction [N, T+1, S]``: rewards, or probabilities of the reward.
            - ``start`` and ``position`` ``[N, T, 2]``: places before and after each step, which differ where an
              episode begins.
            - ``pictures [1 + steps, H, W, 3]`` of one of the tasks.
    """

    info: dict[str, Any]
    arrays: dict[str, Array]

    def __getitem__(self, name: str) -> Array:
        """An array by its name."""
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        """Whether there is such an array."""
        return name in self.arrays

    def __len__(self) -> int:
        """The number of tasks."""
        return len(self["length"])

    @cached_property
    def alive(self) -> NDArray[np.bool_]:
        """Which steps belong to the meta-episodes ``[N, T]``."""
        return np.arange(self["reward"].shape[1]) < self["length"][:, None]

    @cached_property
    def episode(self) -> NDArray[np.int64]:
        """The number of each step's episode, from 0 ``[N, T]``."""
        ends = self["episode_done"].astype(np.int64)
        return ends.cumsum(1) - ends

    @property
    def returns(self) -> NDArray[np.float64]:
        """Return of each episode ``[N, K]``."""
        return self._per_episode(self["reward"])

    @property
    def successes(self) -> NDArray[np.float64] | None:
        """Successful steps of each episode ``[N, K]``; none where the environment does not say."""
        return self._per_episode(self["success"]) if "success" in self else None

    def _per_episode(self, values: Array) -> NDArray[np.float64]:
        sums = np.zeros((len(self), self.info["episodes_per_task"]))
        task, step = self.alive.nonzero()
        np.add.at(sums, (task, self.episode[task, step]), values[task, step])
        return sums

    def episodes(self, index: int) -> list[slice]:
        """The steps of each episode of a task.

        Args:
            index: which task.
        """
        ends = (self["episode_done"][index].nonzero()[0] + 1).tolist()
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def without(self, name: str) -> Recording:
        """The same but for one array, if there is such an array."""
        return Recording(self.info, {key: array for key, array in self.arrays.items() if key != name})

    def check_index(self, index: int) -> None:
        """Refuse a task that is not there.

        Raises:
            ConfigError: there are not so many.
        """
        if index not in range(len(self)):
            raise ConfigError(f"index is {index}; expected a number from 0 to {len(self) - 1}, the number of a task")

    def write(self, path: str | Path) -> None:
        """Write a compressed ``.npz`` file, without pickles.

        Args:
            path: the file; its folder is made if it is missing.
        """
        arrays: dict[str, Any] = {_INFO: np.array(json.dumps(self.info)), **self.arrays}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("wb") as file:  # numpy would append its suffix to other names
            np.savez_compressed(file, **arrays)

    @classmethod
    def read(cls, path: str | Path) -> Recording:
        """Read what `write` wrote.

        Raises:
            ConfigError: it is no such file.
        """
        if not Path(path).is_file():
            raise ConfigError(f"{path}: no such file; expected a recording (.npz)")
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            info = json.loads(str(arrays.pop(_INFO)))
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ConfigError(
                f"{path}: not a recording ({type(error).__name__}); expected one of `hyperrl video`"
            ) from error
        if info.get("format") != FORMAT:
            raise ConfigError(f"{path} has format {info.get('format')}; expected {FORMAT}")
        return cls(info, arrays)
