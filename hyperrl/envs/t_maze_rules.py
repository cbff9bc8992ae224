"""Rules of the T-Maze (`spec/envs-navigation.md` section 6) as tables, and what its options have to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from hyperrl.envs.layout import check_positive, is_number

NUM_ACTIONS = 4
LEFT, RIGHT, UP, DOWN = range(NUM_ACTIONS)
CORRIDOR, END, TIMED_OUT = range(3)  # what the agent's place lets it do


@dataclass(frozen=True)
class Indicators:
    """What the task shows where, and what is right then.

    Attributes:
        cells: the first indicator's cell, and the second one's if there is one.
        second: the option that the second one comes from.
        hidden: whether they are not shown.
    """

    cells: tuple[int, ...]
    second: str | None
    hidden: bool

    @classmethod
    def parse(cls, maze_length: int, first: int, *, hidden: bool, **seconds: int | None) -> Indicators:
        """Check the cells, which must exist in the shortest maze (spec 6.1); of `seconds` at most one may be given."""
        used = {name: cell for name, cell in seconds.items() if cell is not None}
        exclusive = ["latent_dist"] * hidden + list(used)
        if len(exclusive) > 1:
            raise ValueError(f"`{exclusive[0]}` and `{exclusive[1]}` exclude each other: expected one of them alone")
        margin = len(used)  # two indicators keep off the ends
        for name, cell in {"indicator_pos": first, **used}.items():
            if isinstance(cell, bool) or not isinstance(cell, Integral) or not margin <= cell < maze_length - margin:
                raise ValueError(f"`{name}` is {cell!r}: expected a cell from {margin} to {maze_length - 1 - margin}")
        for name, cell in used.items():
            if cell == first:
                raise ValueError(f"`{name}` is {cell}: expected another cell than `indicator_pos`")
        return cls((first, *used.values()), next(iter(used), None), hidden)

    @property
    def directions(self) -> Tensor:
        """Direction of each indicator by task id `[N, D]`; id = [first is up] + 2 * [second is up]."""
        bits = torch.arange(len(self.cells))
        is_up = torch.arange(2 ** len(self.cells)).unsqueeze(-1) >> bits & 1
        return torch.where(is_up.bool(), UP, DOWN)

    def possible_tasks(self) -> Tensor:
        """Ids of the tasks that exist; with a flipped indicator two out of four (quirk T9)."""
        ids = torch.arange(len(self.directions))
        return ids[self._differ()] if self.second == "flipped_indicator_pos" else ids

    def is_right(self) -> Tensor:
        """Whether an action at the last cell means the right decision, by task id and action `[N, 4]` (spec 6.5)."""
        right_is_up = self.directions[:, 0] == UP
        if self.second == "correlated_indicator_pos":
            right_is_up &= self._differ()
        if self.second == "agreement_indicator_pos":
            right_is_up = self._differ()
        means_up = torch.tensor([True, False, True, False])  # if left and right are decisions at all
        return right_is_up.unsqueeze(-1) == means_up

    def cell_table(self, length: int) -> Tensor:
        """Whether a cell is the first one, and what its indicator shows, by task id and cell `[N, length, 2]`."""
        table = torch.zeros(len(self.directions), length, 2)
        table[:, 0, 0] = 1.0
        if not self.hidden:
            table[:, self.cells, 1] = torch.where(self.directions == UP, 1.0, -1.0)
        return table

    def _differ(self) -> Tensor:
        return self.directions[:, 0] != self.directions[:, -1]


def check_length(length: int, upper_bound: int | None) -> None:
    """Refuse lengths of a corridor that do not exist, and an upper bound below the length."""
    check_positive("maze_length", length)
    if upper_bound is None:
        return
    check_positive("maze_length_upper_bound", upper_bound)
    if upper_bound < length:
        raise ValueError(f"`maze_length_upper_bound` is {upper_bound}: expected at least `maze_length`, {length}")


def check_moves(force_right: bool, allow_left: bool, checks: bool, shown: bool) -> None:
    """Refuse options that exclude each other: moves against being forced, and checks that are not shown."""
    for name, used in {"allow_left": allow_left, "intermediate_checks": checks}.items():
        if force_right and used:
            raise ValueError(f"`force_right` and `{name}` exclude each other: expected one of them to be false")
    if checks and not shown:
        raise ValueError("`intermediate_checks` is True: expected `intermediate_indicators` to be true with it")


def check_latent(latent_dist: Sequence[float], redrawn: bool) -> None:
    """Refuse what are no two probabilities, and checks that, not being shown or `redrawn`, tell nothing of the task."""
    if (
        not isinstance(latent_dist, Sequence)
        or len(latent_dist) != 2
        or not all(is_number(p) and 0 <= p <= 1 for p in latent_dist)
    ):
        raise ValueError(f"`latent_dist` is {latent_dist!r}: expected two probabilities")
    if not redrawn:
        needed = "`intermediate_indicators` and `reset_intermediate_indicators`"
        raise ValueError(f"`latent_dist` is {latent_dist!r}: expected {needed} to be true with it")


def move_tables(left: bool, forced: bool, forced_decision: bool, checks: bool) -> tuple[Tensor, Tensor]:
    """Change of position but for echoes, and whether the episode ends, by place and action `[3, 4]` (spec 6.4)."""
    moves = torch.zeros(3, NUM_ACTIONS, dtype=torch.int64)
    moves[CORRIDOR, RIGHT] = not checks
    moves[CORRIDOR, LEFT] = -int(left)
    moves[END, LEFT] = -int(left and not forced_decision)
    if forced:
        moves[CORRIDOR] = 1
    decides = torch.zeros(3, NUM_ACTIONS, dtype=torch.bool)
    decides[END] = torch.tensor([forced_decision, forced_decision, True, True])
    decides[TIMED_OUT] = True
    return moves, decides


def reward_table(
    indicators: Indicators, decides: Tensor, step: float, success: float, fail: float, timed_out: float
) -> Tensor:
    """Rewards but for echoes, by task id, place and action `[N, 3, 4]`; `decides` is that of `move_tables`."""
    right = indicators.is_right()
    table = torch.full((len(right), *decides.shape), float(step))
    table[:, END] += decides[END] * torch.where(right, success, fail)
    table[:, TIMED_OUT] = timed_out
    return table


def fixed_checks(length: int) -> Tensor:
    """The pattern of checks where none are drawn, `[1, length]`: always the same one (quirk T12)."""
    return torch.randint(UP, DOWN + 1, (1, length), generator=torch.Generator().manual_seed(0))


def time_table(timeout: int, shown: bool, waves: int | None) -> Tensor:
    """What is shown of the time after t steps `[timeout + 1, features]`."""
    if waves is not None:
        check_positive("wave_encoding_len", waves)
        if not shown:
            raise ValueError(f"`wave_encoding_len` is {waves}: expected `pos_enc` to be true with it")
    time = torch.arange(timeout + 1, dtype=torch.float64).unsqueeze(-1)
    if waves is None:
        return time[:, : int(shown)].to(torch.float32)
    feature = torch.arange(waves)
    angle = time / timeout ** (2 * feature / waves)  # not the usual frequencies (quirk T2)
    return torch.where(feature % 2 == 0, angle.sin(), angle.cos()).to(torch.float32)
