"""T-Maze: remember a hint to the end of a corridor (`spec/envs-navigation.md` section 6), as lookups in tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from hyperrl import keys
from hyperrl.envs.base import MetaEnv, Transition
from hyperrl.envs.layout import Layout, MetaEnvOptions, check_flags, check_positive, is_number
from hyperrl.envs.registration import EnvEntry

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NUM_ACTIONS = 4
_LEFT, _RIGHT, _UP, _DOWN = range(_NUM_ACTIONS)
_CORRIDOR, _END, _TIMED_OUT = range(3)  # what the agent's place lets it do
_FLOOR = "0.85"


class TMaze(MetaEnv):
    """An agent walks down a corridor and turns up or down at its end; an indicator on the way has shown what is right.

    Actions: 0 left, 1 right, 2 up, 3 down. The observation has one element each for: at the first cell; the indicator
    (1 up, -1 down, 0 where there is none); at the last cell; the check of the cell, a random direction that either is
    noise, or has to be echoed, or tells the task (see the options); and as many for the time as `pos_enc` asks for.
    An episode ends, terminated, with the decision at the last cell, or else in the step after `timeout` steps; its
    largest length is therefore `timeout` + 1 (quirk T3).

    The task is the direction of the first indicator, then that of a second one, 2 for up and 3 for down; its id is
    [first is up] + 2 * [second is up]. Without a second indicator, with a flipped one or with `latent_dist` the first
    direction is right, with the others see the options.

    Args:
        num_envs: B, the number of environments.
        episodes_per_task: K, the number of episodes per task.
        maze_length: L, the number of cells of the corridor.
        maze_length_upper_bound: draw the length anew for every task, uniformly from L up to this bound; None keeps L.
        indicator_pos: cell of the indicator.
        flipped_indicator_pos: cell of a second indicator, which shows the opposite of the first.
        correlated_indicator_pos: cell of a second, independent indicator; up is right only if the first shows up and
            the second down.
        agreement_indicator_pos: cell of a second, independent indicator; down is right if both show the same, else up.
        latent_dist: hide the indicator; instead a check is up with this probability if the task is up, or down.
        intermediate_indicators: show the checks. A check is up with probability 0.5.
        intermediate_checks: only the action that echoes the cell's check leads forward.
        reset_intermediate_indicators: draw the checks of all cells for every episode; otherwise once and for all.
        per_step_reset: if they are drawn for every episode, also draw the cell's check anew after every step.
        final_intermediate_indicator: whether the last cell has a check; it is only shown.
        check_up: what shows a check that is up.
        check_down: what shows a check that is down.
        check_reward: reward for an echo.
        success_reward: reward for the right decision.
        fail_reward: reward for the wrong decision.
        persistent_reward: added to the reward of every step, but for the one that times out.
        timeout_reward: reward of the step that times out.
        allow_left: whether left leads back.
        force_right: every action leads forward.
        force_final_decision: at the last cell left counts as up, and right as down.
        timeout: number of steps after which the next one only ends the episode.
        pos_enc: show the number of steps of the episode so far.
        wave_encoding_len: show it as this number of waves instead of as it is.
        **options: what all environments take, see `MetaEnvOptions`.

    Raises:
        ValueError: if an option is out of range, or options exclude each other.

    Example:
        >>> env = TMaze(16, seed=3, maze_length=10, publish=["task"])
        >>> env.reset()["observation"].shape
        torch.Size([16, 5])
    """

    shows_next_episode = True

    def __init__(
        self,
        num_envs: int,
        episodes_per_task: int = 4,
        *,
        maze_length: int = 100,
        maze_length_upper_bound: int | None = None,
        indicator_pos: int = 1,
        flipped_indicator_pos: int | None = None,
        correlated_indicator_pos: int | None = None,
        agreement_indicator_pos: int | None = None,
        latent_dist: Sequence[float] | None = None,
        intermediate_indicators: bool = True,
        intermediate_checks: bool = False,
        reset_intermediate_indicators: bool = True,
        per_step_reset: bool = True,
        final_intermediate_indicator: bool = True,
        check_up: float = 1.0,
        check_down: float = -1.0,
        check_reward: float = 0.1,
        success_reward: float = 4.0,
        fail_reward: float = -3.0,
        persistent_reward: float = 0.0,
        timeout_reward: float = 0.0,
        allow_left: bool = False,
        force_right: bool = True,
        force_final_decision: bool = True,
        timeout: int = 150,
        pos_enc: bool = False,
        wave_encoding_len: int | None = None,
        **options: Unpack[MetaEnvOptions],
    ) -> None:
        check_flags(
            intermediate_indicators=intermediate_indicators,
            intermediate_checks=intermediate_checks,
            reset_intermediate_indicators=reset_intermediate_indicators,
            per_step_reset=per_step_reset,
            final_intermediate_indicator=final_intermediate_indicator,
            allow_left=allow_left,
            force_right=force_right,
            force_final_decision=force_final_decision,
            pos_enc=pos_enc,
        )
        _check_numbers(
            check_up=check_up,
            check_down=check_down,
            check_reward=check_reward,
            success_reward=success_reward,
            fail_reward=fail_reward,
            persistent_reward=persistent_reward,
            timeout_reward=timeout_reward,
        )
        check_positive("timeout", timeout)  # not None (quirk T4)
        _check_length(maze_length, maze_length_upper_bound)
        _check_moves(force_right, allow_left, intermediate_checks, intermediate_indicators)
        indicators = _Indicators.parse(
            maze_length,
            indicator_pos,
            hidden=latent_dist is not None,
            flipped_indicator_pos=flipped_indicator_pos,
            correlated_indicator_pos=correlated_indicator_pos,
            agreement_indicator_pos=agreement_indicator_pos,
        )
        if latent_dist is not None:
            _check_latent(latent_dist, intermediate_indicators and reset_intermediate_indicators)
        times = _time_table(timeout, pos_enc, wave_encoding_len)
        codes, features = (0.0, check_up, check_down), times.shape[1]
        time_low, time_high = (0.0, timeout) if wave_encoding_len is None else (-1.0, 1.0)
        layout = Layout(
            episode_length=timeout + 1,
            observation_low=(0.0, -1.0, 0.0, *[min(codes)] * intermediate_indicators, *[time_low] * features),
            observation_high=(1.0, 1.0, 1.0, *[max(codes)] * intermediate_indicators, *[time_high] * features),
            num_actions=_NUM_ACTIONS,
            task_dim=len(indicators.cells),
            num_tasks=len(indicators.directions),
        )
        super().__init__(num_envs, episodes_per_task, layout, **options)
        self.maze_length = maze_length
        self.longest = maze_length_upper_bound or maze_length
        self.allow_left = allow_left
        self.timeout = timeout
        self.pos_enc = pos_enc
        self.intermediate_indicators = intermediate_indicators
        self.intermediate_checks = intermediate_checks
        self.reset_intermediate_indicators = reset_intermediate_indicators
        self.final_intermediate_indicator = final_intermediate_indicator
        self.check_reward = check_reward
        self._random_length = maze_length_upper_bound is not None
        # Where every step draws the cell's check anew, no other cell's check ever matters.
        self._redraws = intermediate_indicators and reset_intermediate_indicators and per_step_reset
        self._num_checks = 1 if self._redraws else self.longest
        draws = {"maze_length": self._random_length, "checks": intermediate_indicators, "check": self._redraws}
        self.injectable = (keys.TASK, *(name for name, used in draws.items() if used))

        self._indicators = indicators
        self._possible = indicators.possible_tasks().to(self.device)
        self._tasks = self.split_tasks(self._possible)
        self._directions = indicators.directions.to(self.device)
        self._cells = indicators.cell_table(self.longest).flatten(0, 1).to(self.device)
        self._times = times.to(self.device)
        self._codes = torch.tensor([0.0, 0.0, check_up, check_down], device=self.device).unsqueeze(-1)
        down, up = (0.5, 0.5) if latent_dist is None else reversed(latent_dist)
        self._up_probability = torch.tensor([down, up], device=self.device).repeat(len(indicators.directions) // 2)
        moves, decides = _move_tables(allow_left, force_right, force_final_decision, intermediate_checks)
        self._moves, self._decides = moves.flatten().to(self.device), decides.flatten().to(self.device)
        rewards = torch.full((len(indicators.directions), *moves.shape), float(persistent_reward))
        rewards[:, _END] += decides[_END] * torch.where(indicators.is_right(), success_reward, fail_reward)
        rewards[:, _TIMED_OUT] = timeout_reward
        self._rewards = rewards.flatten().to(self.device)
        # 0-dimensional tensors, because a Python number in torch.where becomes one in every call.
        self._up = torch.tensor(_UP, device=self.device)
        self._timed_out = torch.tensor(_TIMED_OUT, device=self.device)
        self._length = torch.tensor(maze_length, device=self.device)

    # The inner episode -------------------------------------------------------------------------------------------

    def sample_tasks(self, n: int) -> Tensor:
        """Draw `n` task ids `[n]`, uniformly from the tasks of the task split."""
        index = torch.randint(self._tasks.shape[0], (n,), generator=self._generator, device=self.device)
        return self._tasks.index_select(0, index)

    def reset_task(self, mask: Tensor) -> None:
        """Draw the length of the corridor."""
        length = self.draw("maze_length", self._sample_lengths) if self._random_length else self._length
        self.write("last", mask, length - 1)

    def reset_state(self, mask: Tensor) -> None:
        """Put the agent on the first cell and draw checks."""
        self.write("position", mask, self._zero)
        self.write("step", mask, self._zero)
        if self.intermediate_indicators:
            self.write("checks", mask, self.draw("checks", self._sample_checks))

    def observe(self) -> Tensor:
        """The cell, its check and the time `[B, O]`."""
        state = self.state
        position = state["position"]
        at_end = position == state["last"]
        # The first cell is shown as such even if it is also the last one.
        parts = [self._cells.index_select(0, torch.add(position, state[keys.TASK], alpha=self.longest))]
        parts.append((at_end & (position > self._zero)).unsqueeze(-1).to(torch.float32))
        if self.intermediate_indicators:
            parts.append(self._codes.index_select(0, self._visible_check()))
        if self.pos_enc:
            parts.append(self._times.index_select(0, state["step"]))
        return torch.cat(parts, -1)

    def transition(self, action: Tensor) -> Transition:
        """Move forward or back, or decide."""
        state = self.state
        position, step = state["position"], state["step"]
        at_end = (position == state["last"]).to(torch.int64)
        place = torch.where(step >= self.timeout, self._timed_out, at_end)
        option = torch.add(action, place, alpha=_NUM_ACTIONS)
        move = self._moves.index_select(0, option)
        reward = self._rewards.index_select(0, torch.add(option, state[keys.TASK], alpha=len(self._moves)))
        if self.intermediate_checks:
            echoed = (action == self._check()) & (place == _CORRIDOR)
            move = move + echoed
            reward = torch.add(reward, echoed, alpha=self.check_reward)
        position = position + move
        state["position"] = position.clamp_min(0) if self.allow_left else position
        state["step"] = step + (place != _TIMED_OUT)
        if self._redraws:
            state["checks"] = self.draw("check", self._sample_checks)
        episode_done = self._decides.index_select(0, option)
        return Transition(self.observe(), reward, episode_done, episode_done)

    def _check(self) -> Tensor:
        """Check of the agent's cell `[B]`, as the action that echoes it."""
        checks = self.state["checks"]
        if self._redraws:
            return checks.squeeze(-1)
        return checks.gather(1, self.state["position"].unsqueeze(-1)).squeeze(-1)

    def _visible_check(self) -> Tensor:
        """Check of the agent's cell `[B]`, 0 if it has none."""
        if self.final_intermediate_indicator:
            return self._check()
        return torch.where(self.state["position"] == self.state["last"], self._zero, self._check())

    def _sample_checks(self) -> Tensor:
        """Draw the checks of all cells that matter, `[B, cells]`; or one pattern for all episodes, `[1, cells]`."""
        if not self.reset_intermediate_indicators:
            kept = self.state.get("checks")
            return self._draw_checks(1, self._up_probability[:1]) if kept is None else kept
        return self._draw_checks(self.num_envs, self._up_probability.index_select(0, self.state[keys.TASK]))

    def _draw_checks(self, rows: int, up_probability: Tensor) -> Tensor:
        numbers = torch.rand(rows, self._num_checks, generator=self._generator, device=self.device)
        return (numbers >= up_probability.unsqueeze(-1)) + self._up  # down follows up

    def _sample_lengths(self) -> Tensor:
        shape = (self.num_envs,)
        return torch.randint(self.maze_length, self.longest + 1, shape, generator=self._generator, device=self.device)

    # What can be published and injected --------------------------------------------------------------------------

    def publish_task(self) -> Tensor:
        """Directions of the indicators `[B, 1 or 2]`, 2 for up and 3 for down."""
        return self._directions.index_select(0, self.state[keys.TASK]).to(torch.float32)

    def publish_task_id(self) -> Tensor:
        """[first indicator is up] + 2 * [second indicator is up], `[B]`."""
        return self.state[keys.TASK].clone()

    def parse_injection(self, name: str, value: Tensor) -> Tensor:
        """Check the shape and the range of a value and give it a leading dimension B.

        A task is `[D]` or `[B, D]`, where for flipped indicators the first direction is enough; a maze length or the
        check that a step draws is `[]` or `[B]`; the checks of an episode are `[C]` or `[B, C]`, for all cells of the
        longest maze. Directions are 2 for up and 3 for down.
        """
        if name == "task":
            return self._parse_task(value)
        cells = (self.longest,) if name == "checks" else ()
        _check_shape(name, value, cells, self.num_envs)
        low, high = (self.maze_length, self.longest) if name == "maze_length" else (_UP, _DOWN)
        if not ((value == value.round()) & (value >= low) & (value <= high)).all():
            raise ValueError(f"injected {name} is {value.tolist()}: expected whole numbers from {low} to {high}")
        value = value.to(torch.int64).expand(self.num_envs, *cells)
        if name == "maze_length":
            return value
        return value.unsqueeze(-1) if name == "check" else value[:, : self._num_checks]

    def _parse_task(self, value: Tensor) -> Tensor:
        if len(self._possible) < len(self._directions) and value.shape[-1:] == (1,):
            value = torch.cat((value, _UP + _DOWN - value), -1)
        _check_shape("task", value, (self.task_dim,), self.num_envs)
        matches = (value.unsqueeze(-2) == self._directions[self._possible]).all(-1)
        if not matches.any(-1).all():
            raise ValueError(
                f"injected task is {value.tolist()}: expected one of {self._directions[self._possible].tolist()}"
            )
        return self._possible[matches.to(torch.uint8).argmax(-1)].expand(self.num_envs)

    # Pictures ----------------------------------------------------------------------------------------------------

    def coordinates(self) -> Tensor:
        """Place in the corridor, which lies along y = 0, `[B, 2]`."""
        position = self.state["position"].to(torch.float32)
        return torch.stack((position, torch.zeros_like(position)), -1)

    def draw_frame(self, axes: Axes, index: int) -> None:
        """Draw the corridor as a strip, the right turn at its end, what the cells show, and the agent."""
        from matplotlib.patches import Rectangle

        task, position, last, step, episode = (
            int(self.state[name][index]) for name in (keys.TASK, "position", "last", "step", "episode")
        )
        end, width = last + 0.5, max(1.0, 0.1 * last)
        axes.add_patch(Rectangle((-0.5, -0.1), last + 1.0, 0.2, color=_FLOOR))
        axes.add_patch(Rectangle((end, -0.7), width, 1.4, color=_FLOOR))
        right_is_up = bool(self._indicators.is_right()[task, _UP])
        axes.add_patch(Rectangle((end, 0.5 if right_is_up else -0.7), width, 0.2, color="tab:green"))
        if not self._indicators.hidden:
            for cell, direction in zip(self._indicators.cells, self._directions[task].tolist(), strict=True):
                _draw_direction(axes, "indicator", cell, 0.3, direction)
        if self.intermediate_indicators and (check := int(self._visible_check()[index])):
            _draw_direction(axes, "check", position, -0.3, check)
        axes.plot(*self.path(index).T.tolist(), color="tab:blue", linewidth=1)
        axes.plot(position, 0.0, "o", color="tab:blue", markersize=8)
        axes.set(xlim=(-0.5 - 0.5 * width, end + width), ylim=(-1.0, 1.0), xlabel="cell")
        axes.set(xticks=range(0, last + 1, -(-last // 10) or 1), yticks=())
        axes.spines[["left", "right", "top"]].set_visible(False)
        axes.set_title(f"episode {episode + 1} of {self.episodes_per_task}, step {step} of {self.episode_length}")


@dataclass(frozen=True)
class _Indicators:
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
    def parse(cls, maze_length: int, first: int, *, hidden: bool, **seconds: int | None) -> _Indicators:
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
        return torch.where(is_up.bool(), _UP, _DOWN)

    def possible_tasks(self) -> Tensor:
        """Ids of the tasks that exist; with a flipped indicator two out of four (quirk T9)."""
        ids = torch.arange(len(self.directions))
        return ids[self._differ()] if self.second == "flipped_indicator_pos" else ids

    def is_right(self) -> Tensor:
        """Whether an action at the last cell means the right decision, by task id and action `[N, 4]` (spec 6.5)."""
        right_is_up = self.directions[:, 0] == _UP
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
            table[:, self.cells, 1] = torch.where(self.directions == _UP, 1.0, -1.0)
        return table

    def _differ(self) -> Tensor:
        return self.directions[:, 0] != self.directions[:, -1]


def _check_numbers(**numbers: object) -> None:
    for name, value in numbers.items():
        if not is_number(value):
            raise ValueError(f"`{name}` is {value!r}: expected a finite number")


def _check_length(length: int, upper_bound: int | None) -> None:
    check_positive("maze_length", length)
    if upper_bound is None:
        return
    check_positive("maze_length_upper_bound", upper_bound)
    if upper_bound < length:
        raise ValueError(f"`maze_length_upper_bound` is {upper_bound}: expected at least `maze_length`, {length}")


def _check_moves(force_right: bool, allow_left: bool, checks: bool, shown: bool) -> None:
    for name, used in {"allow_left": allow_left, "intermediate_checks": checks}.items():
        if force_right and used:
            raise ValueError(f"`force_right` and `{name}` exclude each other: expected one of them to be false")
    if checks and not shown:
        raise ValueError("`intermediate_checks` is True: expected `intermediate_indicators` to be true with it")


def _check_latent(latent_dist: Sequence[float], redrawn: bool) -> None:
    if (
        not isinstance(latent_dist, Sequence)
        or len(latent_dist) != 2
        or not all(is_number(p) and 0 <= p <= 1 for p in latent_dist)
    ):
        raise ValueError(f"`latent_dist` is {latent_dist!r}: expected two probabilities")
    if not redrawn:
        needed = "`intermediate_indicators` and `reset_intermediate_indicators`"
        raise ValueError(f"`latent_dist` is {latent_dist!r}: expected {needed} to be true with it")


def _check_shape(name: str, value: Tensor, shape: tuple[int, ...], num_envs: int) -> None:
    if value.shape not in (shape, (num_envs, *shape)):
        raise ValueError(f"injected {name} has shape {tuple(value.shape)}: expected {shape} or {(num_envs, *shape)}")


def _move_tables(left: bool, forced: bool, forced_decision: bool, checks: bool) -> tuple[Tensor, Tensor]:
    """Change of position but for echoes, and whether the episode ends, by place and action `[3, 4]` (spec 6.4)."""
    moves = torch.zeros(3, _NUM_ACTIONS, dtype=torch.int64)
    moves[_CORRIDOR, _RIGHT] = not checks
    moves[_CORRIDOR, _LEFT] = -int(left)
    moves[_END, _LEFT] = -int(left and not forced_decision)
    if forced:
        moves[_CORRIDOR] = 1
    decides = torch.zeros(3, _NUM_ACTIONS, dtype=torch.bool)
    decides[_END] = torch.tensor([forced_decision, forced_decision, True, True])
    decides[_TIMED_OUT] = True
    return moves, decides


def _time_table(timeout: int, shown: bool, waves: int | None) -> Tensor:
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


def _draw_direction(axes: Axes, label: str, cell: float, y: float, direction: int) -> None:
    marker, color = ("^", "tab:green") if direction == _UP else ("v", "tab:red")
    axes.plot(cell, y, marker, color=color, markersize=11)
    axes.annotate(label, (cell, y), (0, 12 if y > 0 else -20), textcoords="offset points", ha="center")


_LANDMARKS = ("random", "within_episode_memory", "bayes_optimal", "task_known")
_SHOWN = (2.0, 16.0, 16.0, 16.0)  # every episode shows what is right


def _entry(name: str, description: str, landmarks: Sequence[float | None], **kwargs: Any) -> EnvEntry:
    known = {key: value for key, value in zip(_LANDMARKS, landmarks, strict=True) if value is not None}
    return EnvEntry(name, "hyperrl.envs.t_maze:TMaze", description, {"episodes_per_task": 4, **kwargs}, known)


_AGREEMENT: dict[str, Any] = {"indicator_pos": 1, "agreement_indicator_pos": 50}

ENVS = (
    _entry("T-LN-v0", "corridor of 100 noisy cells, the first one shows the right turn", _SHOWN, indicator_pos=0),
    _entry("T-LN-P1-v0", "corridor of 100 noisy cells, the second one shows the right turn", _SHOWN, indicator_pos=1),
    _entry(
        "T-LN-P1-LDp7p5-v0",
        "corridor of 100 cells, the share of ups among their checks tells the right turn",
        (2.0, 15.4598, 15.8649, 16.0),
        indicator_pos=1,
        latent_dist=(0.7, 0.5),
    ),
    _entry(
        "T-LN-P1-A50-v0",
        "corridor of 100 noisy cells, two of which tell the right turn by showing the same or not",
        _SHOWN,
        **_AGREEMENT,
    ),
    _entry("T-LN-P1-A50-pos-v0", "T-LN-P1-A50-v0 that shows the time", _SHOWN, **_AGREEMENT, pos_enc=True),
    _entry(
        "T-LN-P1-A50-posw-v0",
        "T-LN-P1-A50-v0 that shows the time as two waves",
        _SHOWN,
        **_AGREEMENT,
        pos_enc=True,
        wave_encoding_len=2,
    ),
    _entry(
        "T-LS-P1-v0",
        "corridor of 100 cells, each to be left by the right one of two actions",
        (None, None, 55.6, 55.6),
        indicator_pos=1,
        intermediate_checks=True,
        force_right=False,
        force_final_decision=False,
    ),
)
