"""MineMaze: remember a colour through rooms seen in first person (`spec/envs-navigation.md` section 7), as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import numpy as np
import torch
from torch import Tensor

from hyperrl import keys
from hyperrl.envs.base import MetaEnv, Transition
from hyperrl.envs.layout import Layout, MetaEnvOptions, check_flags, check_numbers, check_positive, is_number
from hyperrl.envs.mine_maze_pictures import KEYS, PIXELS, POSITIONS, render_pictures
from hyperrl.envs.registration import EnvEntry

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEFT, _FORWARD, _RIGHT = range(3)
_WAIT = 3  # what a call does that times out: no action, but a column of the tables
_MOVES = {_LEFT: (-1, 0), _FORWARD: (0, 1), _RIGHT: (1, 0)}
_CHECK = (0, 1)  # the cell in front of the pillar
# The moves that lead on from the cells of a room.
_ALLOWED = {
    (0, 0): (_FORWARD,),
    _CHECK: (_LEFT, _RIGHT),
    **{(side, y): (_FORWARD,) for side in (-1, 1) for y in (1, 2)},
    (-1, 3): (_RIGHT,),
    (1, 3): (_LEFT,),
    (0, 3): (_FORWARD,),
}
_ROOM_LENGTH = 4  # a room begins where the one before it ends
_DOWN = 3  # the task DOWN, whose id is 0; UP is 2, its id 1
_SIZE = PIXELS * PIXELS * 3
_PILLARS = ("grey", "turquoise")  # on the plan, by kind
_GREEN_RED = (1, 0)  # the only sequence of two colours that means UP
_DOWN_SEQUENCES = ((0, 1), (1, 1), (0, 0))


class MineMaze(MetaEnv):
    """An agent sees a colour, walks through rooms, and at the end turns right if the colour meant UP, or else left.

    Actions: 0 left, 1 forward, 2 right. First the agent stands in front of the colours of the indicator, one after
    the other; right leads on. In every room it walks up to a pillar of one of two kinds, drawn for each episode,
    which it should pass on the left (kind 0) or on the right (kind 1); only the reward tells. A move that is not
    possible pays nothing and takes a step; none leads back. The observation is a picture of 10 x 10 pixels in
    first person, `[300]` from -1 to 1: rows from the bottom, columns, colours. An episode ends, terminated, with the
    turn at the end, or else with step number `timeout`, in which nothing moves.

    The task is the meaning of the indicator, 2 for UP (id 1) and 3 for DOWN (id 0). A single colour, green for UP and
    red for DOWN, is drawn with equal probability. Of two colours, all four sequences are equally likely, and only
    green, red means UP. The sequence is drawn once per task.

    Pictures are rendered; `set_pictures` takes others in their place.

    Args:
        num_envs: B, the number of environments.
        episodes_per_task: K, the number of episodes per task.
        num_rooms: number of rooms.
        multi_step_indicator: the indicator is a sequence of two colours.
        num_single_step_repeats: how often a single colour is shown.
        success_r: reward for the right turn at the end.
        fail_r: reward for the wrong one.
        check_success_r: reward for passing a pillar on the right side.
        check_fail_r: reward for passing it on the other.
        reward_per_progress: reward for every other move.
        timeout: H, the number of steps of an episode; nothing moves in the last one (quirk M1).
        noise: standard deviation of Gaussian noise on every value of the observation, before it is limited to [-1, 1].
        hide_signal: black pictures in the place of the indicator.
        **options: what all environments take, see `MetaEnvOptions`.

    Raises:
        ValueError: if an option is out of range, or options exclude each other.

    Example:
        >>> env = MineMaze(16, seed=3, num_rooms=2, publish=["task"])
        >>> env.reset()["observation"].shape
        torch.Size([16, 301])
    """

    shows_next_episode = True

    def __init__(
        self,
        num_envs: int,
        episodes_per_task: int = 2,
        *,
        num_rooms: int = 16,
        multi_step_indicator: bool = False,
        num_single_step_repeats: int = 1,
        success_r: float = 4.0,
        fail_r: float = -3.0,
        check_success_r: float = 0.1,
        check_fail_r: float = 0.0,
        reward_per_progress: float = 0.1,
        timeout: int = 200,
        noise: float | None = None,
        hide_signal: bool = False,
        **options: Unpack[MetaEnvOptions],
    ) -> None:
        check_flags(multi_step_indicator=multi_step_indicator, hide_signal=hide_signal)
        check_positive("num_rooms", num_rooms)
        check_positive("timeout", timeout)
        _check_repeats(num_single_step_repeats, multi_step_indicator)
        _check_noise(noise)
        check_numbers(
            success_r=success_r,
            fail_r=fail_r,
            check_success_r=check_success_r,
            check_fail_r=check_fail_r,
            reward_per_progress=reward_per_progress,
        )
        payments = _Payments(success_r, fail_r, check_success_r, check_fail_r, reward_per_progress)
        layout = Layout(timeout, [-1.0] * _SIZE, [1.0] * _SIZE, len(_MOVES), task_dim=1, num_tasks=2)
        super().__init__(num_envs, episodes_per_task, layout, **options)
        self.num_rooms = num_rooms
        self.multi_step_indicator = multi_step_indicator
        self.noise = noise
        self.num_colours = 2 if multi_step_indicator else num_single_step_repeats
        self.injectable = ("task", "rooms") + ("colours",) * multi_step_indicator + ("noise",) * (noise is not None)
        self._make_tables(payments, hide_signal)
        self.set_pictures(render_pictures())

    def _make_tables(self, payments: _Payments, hide_signal: bool) -> None:
        places = _places(self.num_colours, self.num_rooms)
        self._places = places
        self._coordinates = torch.tensor([place.coordinates for place in places], dtype=torch.float32).to(self.device)
        self._cues = torch.tensor([place.cue for place in places], device=self.device)
        tables = _move_table(places), _reward_table(places, payments), _picture_table(places, hide_signal)
        self._moves, self._rewards, self._shown = (table.flatten().to(self.device) for table in tables)
        # 0-dimensional tensors, because a Python number in torch.where becomes one in every call.
        self._first_turn = torch.tensor(len(places) - 2, device=self.device)
        self._timeout = torch.tensor(self.episode_length, device=self.device)
        self._wait = torch.tensor(_WAIT, device=self.device)
        self._sequences = torch.tensor(_DOWN_SEQUENCES, device=self.device)
        self._green_red = torch.tensor([_GREEN_RED], device=self.device)
        # All sequences of colours are equally likely.
        counts = torch.tensor([len(_DOWN_SEQUENCES) if self.multi_step_indicator else 1, 1])
        ids = self.split_tasks(torch.arange(2))
        self._tasks = ids.repeat_interleave(counts[ids]).to(self.device)

    def set_pictures(self, pictures: np.ndarray | Tensor) -> None:
        """Show other pictures from the next observation on.

        They belong to the object, as its options do, and are not in the state dict.

        Args:
            pictures: `[22, 10, 10, 3]` uint8, rows from the top, in the order of `mine_maze_pictures.KEYS`.

        Raises:
            ValueError: if shape or type are others.
        """
        bank = torch.asarray(pictures, copy=True)  # arrays may be read-only
        expected = (len(KEYS), PIXELS, PIXELS, 3)
        if bank.shape != expected or bank.dtype != torch.uint8:
            raise ValueError(f"`pictures` is {bank.dtype} {tuple(bank.shape)}: expected torch.uint8 {expected}")
        self._views = ((bank.flip(1).to(torch.float32) - 128) / 128).flatten(1).to(self.device)

    # The inner episode -------------------------------------------------------------------------------------------

    def sample_tasks(self, n: int) -> Tensor:
        """Draw `n` task ids `[n]`."""
        index = torch.randint(self._tasks.shape[0], (n,), generator=self._generator, device=self.device)
        return self._tasks.index_select(0, index)

    def reset_task(self, mask: Tensor) -> None:
        """Show the new task in colours, 1 for green, `[B, n]`; those of a DOWN task of two colours are drawn."""
        up = self.state[keys.TASK].unsqueeze(-1)
        if self.multi_step_indicator:
            up = torch.where(up == 1, self._green_red, self.draw("colours", self._sample_colours))
        self.write("colours", mask, up.expand(-1, self.num_colours))

    def reset_state(self, mask: Tensor) -> None:
        """Put the agent on the first cell; draw the kinds of the pillars."""
        rooms = self.draw("rooms", self._sample_rooms)
        colours = self.state["colours"]
        self.write("cues", mask, torch.cat((colours, rooms, self.state[keys.TASK].unsqueeze(-1)), 1))
        self.write("situation", mask, colours[:, 0])
        self.write("step", mask, self._zero)

    def observe(self) -> Tensor:
        """The picture that is seen, `[B, 300]`; every call draws its noise."""
        picture = self._shown.index_select(0, self.state["situation"])
        view = self._views.index_select(0, picture)
        deviation = self.noise
        if deviation is None:
            return view
        return view.add_(self.draw("noise", lambda: self._sample_noise(deviation))).clamp_(-1.0, 1.0)

    def transition(self, action: Tensor) -> Transition:
        """Move, unless the time is up."""
        state = self.state
        step = state["step"] + 1
        state["step"] = step
        timed_out = step >= self._timeout
        action = torch.where(timed_out, self._wait, action)
        choice = torch.add(action, state["situation"], alpha=_WAIT + 1)
        place = self._moves.index_select(0, choice)
        cue = state["cues"].gather(1, self._cues.index_select(0, place).unsqueeze(-1)).squeeze(-1)
        state["situation"] = torch.add(cue, place, alpha=2)
        done = timed_out | (place >= self._first_turn)
        return Transition(self.observe(), self._rewards.index_select(0, choice), done, done)

    def _sample_colours(self) -> Tensor:
        index = torch.randint(len(_DOWN_SEQUENCES), (self.num_envs,), generator=self._generator, device=self.device)
        return self._sequences.index_select(0, index)

    def _sample_rooms(self) -> Tensor:
        return torch.randint(2, (self.num_envs, self.num_rooms), generator=self._generator, device=self.device)

    def _sample_noise(self, deviation: float) -> Tensor:
        noise = self._views.new_empty(self.num_envs, _SIZE)
        return noise.normal_(0.0, deviation, generator=self._generator)

    # What can be published, injected and drawn -------------------------------------------------------------------

    def publish_task(self) -> Tensor:
        """Meaning of the indicator `[B, 1]`, 2 for UP and 3 for DOWN."""
        return (_DOWN - self.state[keys.TASK]).to(torch.float32).unsqueeze(-1)

    def publish_task_id(self) -> Tensor:
        """1 for UP and 0 for DOWN, `[B]`."""
        return self.state[keys.TASK].clone()

    def parse_injection(self, name: str, value: Tensor) -> Tensor:
        """Check a task, the colours of a DOWN task, the kinds of the pillars, or what is added to an observation.

        Colours are spent at every reset, and of no effect on UP tasks, whose colours follow from the task.
        """
        size = {"task": 1, "colours": 2, "rooms": self.num_rooms, "noise": _SIZE}[name]
        rows = self.rows_of(name, value, (size,))
        if name == "noise":
            return rows.to(torch.float32)
        low, expected = (2, "2 or 3") if name == "task" else (0, "0 or 1")
        self.check_rows(name, rows, ((rows == low) | (rows == low + 1)).all(-1), expected)
        rows = rows.to(torch.int64)
        if name == "task":
            return _DOWN - rows.squeeze(-1)
        if name == "colours":
            means_up = (rows == self._green_red).all(-1)
            self.check_rows(name, rows, ~means_up, "those of a DOWN task (green, red means UP)")
        return rows

    def coordinates(self) -> Tensor:
        """Where the agents are, `[B, 2]`: the rooms stand in a row along y, four cells each."""
        return self._coordinates.index_select(0, self.state["situation"] // 2)

    def draw_frame(self, axes: Axes, index: int) -> None:
        """Draw what the agent sees, and beside it the map of the room, the indicator or the end that it is in."""
        from matplotlib.patches import Rectangle

        situation = int(self.state["situation"][index])
        here = self._places[situation // 2]
        axes.set_axis_off()
        episode = int(self.state["episode"][index]) + 1
        axes.set_title(f"episode {episode} of {self.episodes_per_task}, {self._whereabouts(here)}", y=0.84)
        picture = axes.inset_axes((0.0, 0.0, 0.6, 1.0), xticks=[], yticks=[])
        view = self.state[keys.OBSERVATION][index, :_SIZE].view(PIXELS, PIXELS, 3).flip(0)
        picture.imshow((view * 128 + 128).clamp(max=255).to(torch.uint8).cpu().numpy())
        plan = axes.inset_axes((0.66, 0.0, 0.34, 1.0), frame_on=False, xticks=[], yticks=[], aspect="equal")
        cues = self.state["cues"][index].tolist()
        shown = [place for place in self._places if place.room == here.room]
        tiles = {place.coordinates: _colour(place, cues[place.cue]) for place in shown}
        if here.cell is not None:
            tiles[0, _ROOM_LENGTH * here.room + 2] = _PILLARS[cues[here.cue]]
        for (x, y), colour in tiles.items():
            plan.add_patch(Rectangle((x - 0.45, y - 0.45), 0.9, 0.9, color=colour))
        plan.plot(*self.path(index).cpu().T, color="tab:blue", linewidth=1)
        plan.plot(*here.coordinates, "o", color="tab:blue", markersize=10)
        corners = np.array(list(tiles))
        plan.set_xlim(corners[:, 0].min() - 0.5, corners[:, 0].max() + 0.5)
        plan.set_ylim(corners[:, 1].min() - 0.5, corners[:, 1].max() + 0.5)

    def _whereabouts(self, here: _Place) -> str:
        if here.cell is not None:
            return f"room {here.room + 1} of {self.num_rooms}"
        return "the end" if here.room >= 0 else f"colour {here.cue + 1} of {self.num_colours}"


class _Payments(NamedTuple):
    """The rewards, by what they are for."""

    success: float
    fail: float
    check_success: float
    check_fail: float
    progress: float


class _Place(NamedTuple):
    """Where an agent can be.

    Attributes:
        coordinates: where it is in the maze.
        allowed: the moves that lead on.
        cue: number of the cue that counts there. The cues are the colours, the kinds of the pillars, and the task.
        room: number of the room; -1 for the indicator, the number of rooms for the end.
        cell: the place in the room, (0, 0) first; None outside.
    """

    coordinates: tuple[int, int]
    allowed: tuple[int, ...]
    cue: int
    room: int
    cell: tuple[int, int] | None = None


def _places(num_colours: int, num_rooms: int) -> list[_Place]:
    """The indicator, the rooms, the end, and last of all the cells left and right of it, in which an episode ends."""
    places = [_Place((i - num_colours, 0), (_RIGHT,), i, -1) for i in range(num_colours)]
    for room in range(num_rooms):
        for x, y in POSITIONS:
            at = (x, _ROOM_LENGTH * room + y)
            places.append(_Place(at, _ALLOWED[x, y], num_colours + room, room, (x, y)))
    for x, allowed in ((0, (_LEFT, _RIGHT)), (-1, ()), (1, ())):
        places.append(_Place((x, _ROOM_LENGTH * num_rooms), allowed, num_colours + num_rooms, num_rooms))
    return places


def _move_table(places: list[_Place]) -> Tensor:
    """Number of the place in which a move ends, `[P, 2, 4]`: by place, cue, and action."""
    number = {place.coordinates: i for i, place in enumerate(places)}
    table = torch.arange(len(places)).view(-1, 1, 1).repeat(1, 2, _WAIT + 1)
    for i, place in enumerate(places):
        for action in place.allowed:
            x, y = (a + b for a, b in zip(place.coordinates, _MOVES[action], strict=True))
            table[i, :, action] = number[x, y]
    return table


def _reward_table(places: list[_Place], payments: _Payments) -> Tensor:
    """Rewards `[P, 2, 4]`, by place, cue, and action."""
    table = torch.zeros(len(places), 2, _WAIT + 1)
    for i, place in enumerate(places):
        for cue in (0, 1):
            for action in place.allowed:
                table[i, cue, action] = _reward(place, cue, action, payments)
    return table


def _reward(place: _Place, cue: int, action: int, payments: _Payments) -> float:
    """Reward for a move that leads on; where there is a choice, the cue asks for left (0) or right (1)."""
    if len(place.allowed) == 1:
        return payments.progress
    right = (action == _RIGHT) == cue
    if place.cell == _CHECK:
        return payments.check_success if right else payments.check_fail
    return payments.success if right else payments.fail


def _picture_table(places: list[_Place], hide_signal: bool) -> Tensor:
    """Number of the picture that is shown, `[P, 2]`, by place and cue."""
    return torch.tensor([[KEYS.index(_key(place, cue, hide_signal)) for cue in (0, 1)] for place in places])


def _key(place: _Place, cue: int, hide_signal: bool) -> str:
    """Name of the picture that is shown in a place (spec 7.6)."""
    if place.cell is not None:
        return "room{}/{},{}".format(cue, *place.cell)
    if place.room >= 0:
        return "end"
    return "hidden" if hide_signal else ("red", "green")[cue]


def _colour(place: _Place, cue: int) -> str:
    """Colour of a place on the plan: that of the indicator, or green where the reward for a turn is."""
    if place.room < 0:
        return ("tab:red", "tab:green")[cue]
    is_side = place.cell in ((-1, 1), (1, 1)) if place.cell else not place.allowed
    rewarded = is_side and (place.coordinates[0] > 0) == cue
    return "tab:green" if rewarded else "lightgrey"


def _check_repeats(repeats: int, multi_step_indicator: bool) -> None:
    check_positive("num_single_step_repeats", repeats)
    if multi_step_indicator and repeats != 1:
        raise ValueError(f"`num_single_step_repeats` is {repeats}: `multi_step_indicator` expects 1")


def _check_noise(noise: float | None) -> None:
    if noise is not None and (not is_number(noise) or noise <= 0):
        raise ValueError(f"`noise` is {noise!r}: expected a positive number or null")


def _entry(name: str, description: str, landmarks: Sequence[float], **kwargs: Any) -> EnvEntry:
    known = dict(zip(("within_episode_memory", "bayes_optimal", "task_known"), landmarks, strict=True))
    return EnvEntry(name, "hyperrl.envs.mine_maze:MineMaze", description, {"episodes_per_task": 2, **kwargs}, known)


ENVS = (
    _entry(
        "MC-LSO-v0",
        "10 rooms in first person; the order of two colours tells the last turn",
        (20.4, 20.4, 20.4),
        num_rooms=10,
        multi_step_indicator=True,
    ),
    _entry("MC-LS-v0", "16 rooms in first person; a colour tells the last turn", (27.4, 27.4, 27.4)),
    _entry(
        "MC-LSN-v0",
        "10 rooms in noisy first person; a colour tells the last turn",
        (20.2, 20.2, 20.2),
        num_rooms=10,
        noise=0.05,
    ),
    _entry(
        "MC-LSH-v0",
        "16 rooms in first person; only the reward of the last turn tells which is right",
        (20.4, 23.9, 27.4),
        hide_signal=True,
    ),
)
