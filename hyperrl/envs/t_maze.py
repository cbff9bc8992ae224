"""T-Maze: remember a hint to the end of a corridor (`spec/envs-navigation.md` section 6), as lookups in tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from hyperrl import keys
from hyperrl.envs.base import MetaEnv, Transition
from hyperrl.envs.layout import Layout, MetaEnvOptions, check_flags, check_numbers, check_positive
from hyperrl.envs.registration import EnvEntry, known_landmarks
from hyperrl.envs.t_maze_rules import (
    CORRIDOR,
    DOWN,
    NUM_ACTIONS,
    TIMED_OUT,
    UP,
    Indicators,
    check_latent,
    check_length,
    check_moves,
    fixed_checks,
    move_tables,
    reward_table,
    time_table,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
        reset_intermediate_indicators: draw the checks of all cells for every episode; otherwise show one pattern
            in all episodes of all environments, whatever the seed.
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
        check_numbers(
            check_up=check_up,
            check_down=check_down,
            check_reward=check_reward,
            success_reward=success_reward,
            fail_reward=fail_reward,
            persistent_reward=persistent_reward,
            timeout_reward=timeout_reward,
        )
        check_positive("timeout", timeout)  # not None (quirk T4)
        check_length(maze_length, maze_length_upper_bound)
        check_moves(force_right, allow_left, intermediate_checks, intermediate_indicators)
        indicators = Indicators.parse(
            maze_length,
            indicator_pos,
            hidden=latent_dist is not None,
            flipped_indicator_pos=flipped_indicator_pos,
            correlated_indicator_pos=correlated_indicator_pos,
            agreement_indicator_pos=agreement_indicator_pos,
        )
        if latent_dist is not None:
            check_latent(latent_dist, intermediate_indicators and reset_intermediate_indicators)
        times = time_table(timeout, pos_enc, wave_encoding_len)
        codes, features = (0.0, check_up, check_down), times.shape[1]
        time_low, time_high = (0.0, timeout) if wave_encoding_len is None else (-1.0, 1.0)
        layout = Layout(
            episode_length=timeout + 1,
            observation_low=(0.0, -1.0, 0.0, *[min(codes)] * intermediate_indicators, *[time_low] * features),
            observation_high=(1.0, 1.0, 1.0, *[max(codes)] * intermediate_indicators, *[time_high] * features),
            num_actions=NUM_ACTIONS,
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
        self._fixed_checks = fixed_checks(self.longest).to(self.device)
        down, up = (0.5, 0.5) if latent_dist is None else reversed(latent_dist)
        self._up_probability = torch.tensor([down, up], device=self.device).repeat(len(indicators.directions) // 2)
        moves, decides = move_tables(allow_left, force_right, force_final_decision, intermediate_checks)
        rewards = reward_table(indicators, decides, persistent_reward, success_reward, fail_reward, timeout_reward)
        self._moves, self._decides, self._rewards = (t.flatten().to(self.device) for t in (moves, decides, rewards))
        # 0-dimensional tensors, because a Python number in torch.where becomes one in every call.
        self._timed_out = torch.tensor(TIMED_OUT, device=self.device)
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
        option = torch.add(action, place, alpha=NUM_ACTIONS)
        move = self._moves.index_select(0, option)
        reward = self._rewards.index_select(0, torch.add(option, state[keys.TASK], alpha=len(self._moves)))
        if self.intermediate_checks:
            echoed = (action == self._check()) & (place == CORRIDOR)
            move = move + echoed
            reward = torch.add(reward, echoed, alpha=self.check_reward)
        position = position + move
        state["position"] = position.clamp_min(0) if self.allow_left else position
        state["step"] = step + (place != TIMED_OUT)
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
        """Draw the checks of all cells that matter, `[B, cells]`; a fixed pattern stays, also an injected one."""
        if not self.reset_intermediate_indicators:
            return self.state.get("checks", self._fixed_checks)
        up_probability = self._up_probability.index_select(0, self.state[keys.TASK]).unsqueeze(-1)
        shape = self.num_envs, self._num_checks
        down = torch.rand(shape, generator=self._generator, device=self.device) >= up_probability
        return torch.add(down, UP)  # down follows up

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
        rows = self.rows_of(name, value, (self.longest,) if name == "checks" else ())
        low, high = (self.maze_length, self.longest) if name == "maze_length" else (UP, DOWN)
        whole = (rows == rows.round()) & (rows >= low) & (rows <= high)
        possible = whole.all(-1) if name == "checks" else whole
        self.check_rows(name, rows, possible, f"whole numbers from {low} to {high}")
        rows = rows.to(torch.int64)
        if name == "maze_length":
            return rows
        return rows.unsqueeze(-1) if name == "check" else rows[:, : self._num_checks]

    def _parse_task(self, value: Tensor) -> Tensor:
        if len(self._possible) < len(self._directions) and value.shape[-1:] == (1,):
            value = torch.cat((value, UP + DOWN - value), -1)
        rows = self.rows_of("task", value, (self.task_dim,))
        directions = self._directions[self._possible]
        matches = (rows.unsqueeze(-2) == directions).all(-1)
        self.check_rows("task", rows, matches.any(-1), f"one of {directions.tolist()}")
        return self._possible[matches.to(torch.uint8).argmax(-1)]

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
        right_is_up = bool(self._indicators.is_right()[task, UP])
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


def _draw_direction(axes: Axes, label: str, cell: float, y: float, direction: int) -> None:
    marker, color = ("^", "tab:green") if direction == UP else ("v", "tab:red")
    axes.plot(cell, y, marker, color=color, markersize=11)
    axes.annotate(label, (cell, y), (0, 12 if y > 0 else -20), textcoords="offset points", ha="center")


_SHOWN = (2.0, 16.0, 16.0, 16.0)  # every episode shows what is right


def _entry(name: str, description: str, landmarks: Sequence[float | None], **kwargs: Any) -> EnvEntry:
    kwargs = {"episodes_per_task": 4, **kwargs}
    return EnvEntry(name, "hyperrl.envs.t_maze:TMaze", description, kwargs, known_landmarks(*landmarks))


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
