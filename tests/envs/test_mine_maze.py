"""MineMaze: rules, options, pictures, sampling laws and what players can earn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sampling import assert_mean, assert_share, assert_uniform
from tensordict import TensorDict
from torch import Tensor

from hyperrl import keys
from hyperrl.envs import env_ids, landmarks, make_env
from hyperrl.envs.mine_maze import ENVS, MineMaze
from hyperrl.envs.mine_maze_pictures import KEYS, render_pictures

MINE_IDS = [entry.id for entry in ENVS]
LEFT, FORWARD, RIGHT = range(3)
UP, DOWN = 2, 3
REWARDS = ("success_r", "fail_r", "check_success_r", "check_fail_r", "reward_per_progress")


def numbered_pictures() -> Tensor:
    """Pictures by whose brightness their numbers can be told, also through noise."""
    return torch.arange(len(KEYS), dtype=torch.uint8).mul(11).view(-1, 1, 1, 1).expand(-1, 10, 10, 3)


def keys_of(observation: Tensor) -> list[str]:
    """What numbered pictures show, for each observation `[B, 300 or 301]`."""
    numbers = (observation[:, :300].double().mean(-1) * 128 + 128) / 11
    return [KEYS[number] for number in numbers.round().int()]


def build(num_envs: int = 1, episodes: int = 1, **options: object) -> MineMaze:
    env = MineMaze(num_envs, episodes, **options)
    env.set_pictures(numbered_pictures())
    return env


def act(env: MineMaze, action: Sequence[int] | int) -> TensorDict:
    actions = torch.as_tensor(action).expand(env.num_envs)
    return env.step(TensorDict({keys.ACTION: actions}, [env.num_envs]))[keys.NEXT]


def walk(env: MineMaze, actions: Sequence[int]) -> list[tuple[str, float]]:
    """What environment 0 sees and earns after each action."""
    steps = [act(env, action) for action in actions]
    return [(keys_of(td[keys.OBSERVATION])[0], round(td[keys.REWARD][0].item(), 6)) for td in steps]


@dataclass
class Rules:
    """Three episodes by the words of `spec/envs-navigation.md` 7.3 to 7.6, one step at a time."""

    up: bool
    colours: list[int]
    rooms: list[list[int]]  # of each episode
    rewards: tuple[float, float, float, float, float]  # in the order of `REWARDS`
    timeout: int
    episode: int = 0
    over: bool = False

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.phase = self.room = self.x = self.y = 0
        self.counter = 1

    def step(self, action: int) -> tuple[float, bool]:
        """Reward and whether the episode has ended; if it has, the next one begins."""
        if self.over:
            return 0.0, True
        reward, ended = self.move(action)
        if ended and self.episode == 2:
            self.over = True
        elif ended:
            self.episode += 1
            self.start()
        return reward, ended

    def move(self, action: int) -> tuple[float, bool]:
        if self.counter >= self.timeout:
            return 0.0, True
        self.counter += 1
        success, fail, check_success, check_fail, progress = self.rewards
        if self.phase == 2:
            if action == FORWARD:
                return 0.0, False
            return (success if (action == RIGHT) == self.up else fail), True
        before = self.place()
        checks = self.phase == 1 and (self.x, self.y) == (0, 1)
        (self.on_platform if self.phase == 0 else self.in_room)(action)
        if self.place() == before:
            return 0.0, False
        if checks:
            return (check_success if (action == RIGHT) == self.rooms[self.episode][self.room] else check_fail), False
        return progress, False

    def on_platform(self, action: int) -> None:
        if action == RIGHT:
            self.x += 1
            if self.x == len(self.colours):
                self.phase, self.x = 1, 0

    def in_room(self, action: int) -> None:
        at = (self.x, self.y)
        if at == (0, 0) and action == FORWARD:
            self.y = 1
        elif at == (0, 1) and action != FORWARD:
            self.x = -1 if action == LEFT else 1
        elif self.x != 0 and self.y < 3 and action == FORWARD:
            self.y += 1
        elif (at == (-1, 3) and action == RIGHT) or (at == (1, 3) and action == LEFT):
            self.x = 0
        elif at == (0, 3) and action == FORWARD:
            self.y = 0
            self.room += 1
            self.phase = 2 if self.room == len(self.rooms[self.episode]) else 1

    def key(self) -> str:
        if self.phase == 0:
            return "green" if self.colours[self.x] else "red"
        return f"room{self.rooms[self.episode][self.room]}/{self.x},{self.y}" if self.phase == 1 else "end"

    def place(self) -> tuple[int, int, int, int]:
        return self.phase, self.room, self.x, self.y

    def onward(self) -> list[bool]:
        """Which actions change anything."""
        probes = [copy(self) for _ in range(3)]
        ends = [probe.move(action)[1] for action, probe in enumerate(probes)]
        return [end or probe.place() != self.place() for end, probe in zip(ends, probes, strict=True)]


class TestRules:
    """Moves, rewards and ends."""

    def test_one_room(self) -> None:
        env = build(num_rooms=1)
        env.inject("task", [DOWN])
        env.inject("rooms", [1])
        assert keys_of(env.reset()[keys.OBSERVATION]) == ["red"]
        seen = walk(env, [LEFT, RIGHT, RIGHT, FORWARD, FORWARD, LEFT, FORWARD, FORWARD, FORWARD, RIGHT, FORWARD])
        assert seen == [
            ("red", 0.0),
            ("room1/0,0", 0.1),
            ("room1/0,0", 0.0),
            ("room1/0,1", 0.1),
            ("room1/0,1", 0.0),
            ("room1/-1,1", 0.0),  # the wrong side
            ("room1/-1,2", 0.1),
            ("room1/-1,3", 0.1),
            ("room1/-1,3", 0.0),
            ("room1/0,3", 0.1),
            ("end", 0.1),
        ]
        assert walk(env, [FORWARD, LEFT]) == [("end", 0.0), ("end", 4.0)]

    @pytest.mark.parametrize("rewards", [(4.0, -3.0, 0.1, 0.0, 0.1), (5.0, -1.0, 0.5, -0.25, 0.05)])
    @pytest.mark.parametrize(("timeout", "progress"), [(60, 0.9), (40, 0.6), (12, 0.9), (2, 0.9), (1, 0.9)])
    @pytest.mark.parametrize("indicator", ["single", "repeated", "two"])
    def test_any_actions(self, rewards: tuple[float, ...], timeout: int, progress: float, indicator: str) -> None:
        """Against the rules, three episodes of 32 tasks, with actions that lead on with a given probability."""
        options = {"single": {}, "repeated": {"num_single_step_repeats": 3}, "two": {"multi_step_indicator": True}}
        options = {**options[indicator], **dict(zip(REWARDS, rewards, strict=True))}
        env = build(32, 3, num_rooms=3, timeout=timeout, publish=["task"], **options)
        generator = torch.Generator().manual_seed(5)
        rooms = torch.randint(2, (3, 32, 3), generator=generator)
        env.inject("rooms", rooms[0])
        td = env.reset()
        up, colours = (td[keys.TASK].squeeze(-1) == UP).tolist(), env.state["colours"].tolist()
        games = [Rules(up[row], colours[row], rooms[:, row].tolist(), rewards, timeout) for row in range(32)]
        for _ in range(3 * timeout):
            assert keys_of(td[keys.OBSERVATION]) == [game.key() for game in games]
            onward = torch.tensor([game.onward() for game in games])
            weights = torch.where(onward, progress, 1 - progress)
            action = weights.multinomial(1, generator=generator).squeeze(-1)
            rewarded, ended = zip(*(game.step(a) for game, a in zip(games, action.tolist(), strict=True)), strict=True)
            done = [game.over for game in games]
            starts = torch.tensor(ended) & ~torch.tensor(done)
            if starts.any():  # what is injected for the others must have no effect
                now = rooms[torch.tensor([game.episode for game in games]), torch.arange(32)]
                env.inject("rooms", torch.where(starts.unsqueeze(-1), now, 1 - now))
            td = act(env, action)
            torch.testing.assert_close(td[keys.REWARD].squeeze(-1), torch.tensor(rewarded))
            assert td[keys.EPISODE_DONE].squeeze(-1).tolist() == list(ended)
            assert td[keys.DONE].squeeze(-1).tolist() == done
            assert torch.equal(td[keys.TERMINATED], td[keys.DONE])
            assert torch.equal(td[keys.OBSERVATION][:, -1:], td[keys.EPISODE_DONE].float())
        assert all(done)

    def test_nothing_moves_in_the_last_step(self) -> None:
        env = build(num_rooms=1, timeout=3)
        env.inject("rooms", [0])
        env.reset()
        assert walk(env, [RIGHT, FORWARD, LEFT]) == [("room0/0,0", 0.1), ("room0/0,1", 0.1), ("room0/0,1", 0.0)]

    def test_next_episode_is_shown_and_the_last_end(self) -> None:
        env = build(1, 2, num_rooms=1, publish=["task_id"])
        env.inject("task", [UP])
        env.inject("rooms", [0], [1])
        env.reset()
        way = [RIGHT, FORWARD, LEFT, FORWARD, FORWARD, RIGHT, FORWARD, RIGHT]
        first, second = ([act(env, action) for action in way] for _ in range(2))
        assert keys_of(first[-1][keys.OBSERVATION]) == ["green"]
        assert keys_of(second[-1][keys.OBSERVATION]) == ["end"]
        assert first[-1][keys.OBSERVATION][0, -1] == second[-1][keys.OBSERVATION][0, -1] == 1
        assert [round(sum(td[keys.REWARD].item() for td in part), 5) for part in (first, second)] == [4.7, 4.6]
        assert [td[keys.DONE].item() for td in first + second] == [False] * 15 + [True]

    def test_colours_and_task_stay_and_rooms_change(self) -> None:
        env = build(256, 2, num_rooms=16, multi_step_indicator=True, timeout=5, seed=1)
        env.reset()
        before = {name: value.clone() for name, value in env.state.items()}
        for _ in range(5):
            td = act(env, FORWARD)
        assert td[keys.EPISODE_DONE].all()
        assert torch.equal(env.state["colours"], before["colours"])
        assert torch.equal(env.state[keys.TASK], before[keys.TASK])
        assert_share(env.state["cues"][:, 2:18] == before["cues"][:, 2:18], 0.5)

    def test_partial_reset_changes_nothing_else(self) -> None:
        env = build(256, 2, multi_step_indicator=True, seed=1)
        td = env.reset()
        td = act(env, RIGHT).exclude(keys.REWARD)
        before = {name: value.clone() for name, value in env.state.items()}
        mask = torch.arange(256) % 2 == 0
        env.reset(td.set("_reset", mask.unsqueeze(-1)))
        for name, value in env.state.items():
            assert torch.equal(value[~mask], before[name][~mask]), name
            assert name == "episode" or not torch.equal(value[mask], before[name][mask]), name


class TestOptions:
    """Observations, injections, and what is refused."""

    @pytest.mark.parametrize(
        ("env_id", "rooms", "colours", "noise", "hidden"),
        [
            ("MC-LSO-v0", 10, 2, None, False),
            ("MC-LS-v0", 16, 1, None, False),
            ("MC-LSN-v0", 10, 1, 0.05, False),
            ("MC-LSH-v0", 16, 1, None, True),
        ],
    )
    def test_ids(self, env_id: str, rooms: int, colours: int, noise: float | None, hidden: bool) -> None:
        assert env_id in env_ids()
        env = make_env(env_id, 3)
        assert isinstance(env, MineMaze)
        assert (env.num_rooms, env.num_colours, env.noise) == (rooms, colours, noise)
        assert (env.episode_length, env.episodes_per_task, env.horizon) == (200, 2, 400)
        assert (env.obs_dim, env.num_actions, env.task_dim, env.num_tasks) == (301, 3, 1, 2)
        assert (env.num_states, env.belief_dim) == (None, None)
        assert (env.reset()[keys.OBSERVATION][:, :300] == -1).all().item() == hidden

    def test_observation_is_the_flipped_normalised_picture(self) -> None:
        env = MineMaze(1, 1)
        pictures = torch.arange(22 * 300).mul(7).remainder(256).to(torch.uint8).view(22, 10, 10, 3)
        env.set_pictures(pictures.numpy())
        env.inject("task", [UP])
        observation = env.reset()[keys.OBSERVATION][0]
        assert observation.dtype == torch.float32
        for row, column, channel in ((0, 0, 0), (9, 0, 2), (3, 7, 1), (9, 9, 2)):
            expected = (int(pictures[1, 9 - row, column, channel]) - 128) / 128
            assert observation[30 * row + 3 * column + channel] == expected

    def test_hidden_signal_hides_all_colours(self) -> None:
        env = build(2, hide_signal=True, num_single_step_repeats=2, num_rooms=1)
        env.inject("task", [[UP], [DOWN]])
        env.inject("rooms", [0])
        td = env.reset()
        assert (td[keys.OBSERVATION] == -1).all()
        assert [keys_of(act(env, RIGHT)[keys.OBSERVATION]) for _ in range(2)] == [["hidden"] * 2, ["room0/0,0"] * 2]

    @pytest.mark.parametrize(("task", "colours"), [(UP, ["green", "red"]), (DOWN, ["green", "green"])])
    def test_injected_colours_are_those_of_down_tasks(self, task: int, colours: list[str]) -> None:
        env = build(multi_step_indicator=True)
        env.inject("task", [task])
        env.inject("colours", [1, 1])
        assert [*keys_of(env.reset()[keys.OBSERVATION]), walk(env, [RIGHT])[0][0]] == colours

    @pytest.mark.parametrize("shape", [(300,), (2, 300)])
    def test_injected_noise_is_added_and_limited(self, shape: tuple[int, ...]) -> None:
        env = MineMaze(2, 1, noise=0.05)
        env.set_pictures(np.full((22, 10, 10, 3), 192, np.uint8))
        noise = torch.linspace(-2, 2, 600).view(2, 300)[: shape[0] if len(shape) == 2 else 1].reshape(shape)
        env.inject("noise", noise, -noise)
        for sign, td in ((1, env.reset()), (-1, act(env, RIGHT))):
            torch.testing.assert_close(td[keys.OBSERVATION], (0.5 + sign * noise).clamp(-1, 1).expand(2, 300))

    def test_task_is_published_in_the_units_of_the_reference(self) -> None:
        env = MineMaze(2, 1, publish=["task", "task_id"])
        env.inject("task", [[UP], [DOWN]])
        td = env.reset()
        assert td[keys.TASK].tolist() == [[2], [3]]
        assert td[keys.TASK_ID].tolist() == [1, 0]

    def test_fixed_task(self) -> None:
        env = MineMaze(4, 1, publish=["task_id"], fixed_task=[3])
        assert env.reset()[keys.TASK_ID].tolist() == [0] * 4

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"num_rooms": 0}, "`num_rooms` is 0: expected an integer of at least 1"),
            ({"timeout": None}, "`timeout` is None: expected an integer"),
            ({"num_single_step_repeats": 0}, "`num_single_step_repeats` is 0: expected an integer"),
            (
                {"num_single_step_repeats": 2, "multi_step_indicator": True},
                "`num_single_step_repeats` is 2: .* expects 1",
            ),
            ({"multi_step_indicator": 1}, "`multi_step_indicator` is 1: expected true or false"),
            ({"hide_signal": None}, "`hide_signal` is None: expected true or false"),
            ({"noise": 0.0}, "`noise` is 0.0: expected a positive number or null"),
            ({"noise": "much"}, "`noise` is 'much': expected a positive number or null"),
            ({"success_r": None}, "`success_r` is None: expected a finite number"),
            ({"reward_per_progress": float("inf")}, "`reward_per_progress` is inf: expected a finite number"),
            ({"publish": ["belief"]}, "`publish` holds 'belief'"),
            ({"fixed_task": [1]}, r"`fixed_task` is \[1\]: .*expected 2 or 3"),
        ],
    )
    def test_bad_options_are_named(self, options: dict[str, object], words: str) -> None:
        with pytest.raises(ValueError, match=words) as error:
            MineMaze(2, **options)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            ("task", [1], r"injected task is \[1\]: expected 2 or 3"),
            ("task", [[2], [2.5]], "injected task is .*: expected 2 or 3"),
            ("task", 2, r"injected task has shape \(\): expected \(1,\) or \(2, 1\)"),
            ("rooms", [0, 1], r"injected rooms has shape \(2,\): expected \(3,\) or \(2, 3\)"),
            ("rooms", [[0, 1, 0], [0, 1, 2]], r"injected rooms is \[0, 1, 2\]: expected"),
            ("rooms", [0, 1, 2], r"injected rooms is \[0, 1, 2\]: expected 0 or 1"),
            ("colours", [1, 0], r"injected colours is \[1, 0\]: expected those of a DOWN task"),
            ("noise", [0.0] * 299, r"injected noise has shape \(299,\)"),
            ("start", [0], "nothing called 'start' is drawn"),
        ],
    )
    def test_bad_injections_are_named(self, name: str, value: object, words: str) -> None:
        env = MineMaze(2, num_rooms=3, multi_step_indicator=True, noise=0.1)
        with pytest.raises(ValueError, match=words) as error:
            env.inject(name, value)
        assert "\n" not in str(error.value)

    def test_only_what_is_drawn_can_be_injected(self) -> None:
        assert MineMaze(1).injectable == ("task", "rooms")
        assert MineMaze(1, noise=0.1, multi_step_indicator=True).injectable == ("task", "rooms", "colours", "noise")

    @pytest.mark.parametrize("pictures", [np.zeros((22, 10, 10), np.uint8), np.zeros((22, 10, 10, 3))])
    def test_other_pictures_are_refused(self, pictures: np.ndarray) -> None:
        with pytest.raises(ValueError, match=r"`pictures` is torch.*: expected torch.uint8 \(22, 10, 10, 3\)"):
            MineMaze(1).set_pictures(pictures)


class TestSampling:
    """Laws of the draws."""

    @pytest.mark.parametrize(("env_id", "probability"), [("MC-LS-v0", 0.5), ("MC-LSH-v0", 0.5), ("MC-LSO-v0", 0.25)])
    def test_tasks(self, env_id: str, probability: float) -> None:
        up = make_env(env_id, 20_000, seed=1, publish=["task_id"]).reset()[keys.TASK_ID]
        assert_share(up == 1, probability)

    def test_single_colours_tell_the_task(self) -> None:
        env = MineMaze(64, seed=2, num_single_step_repeats=3)
        env.reset()
        assert torch.equal(env.state["colours"], env.state[keys.TASK].unsqueeze(-1).expand(-1, 3))

    def test_two_colours_are_uniform_and_only_their_order_tells_the_task(self) -> None:
        env = MineMaze(20_000, seed=3, multi_step_indicator=True)
        env.reset()
        sequences = env.state["colours"] @ torch.tensor([2, 1])
        assert_uniform(sequences, range(4))
        assert torch.equal(env.state[keys.TASK] == 1, sequences == 2)

    def test_pillars_are_fair_and_independent_over_rooms_and_episodes(self) -> None:
        env = MineMaze(40_000, 2, seed=4, num_rooms=4, timeout=1)
        env.reset()
        first = env.state["cues"][:, 1:5].clone()
        act(env, FORWARD)
        bits = torch.cat((first, env.state["cues"][:, 1:5]), 1)
        assert_uniform(bits @ 2 ** torch.arange(8), range(256))

    def test_noise_is_gaussian_and_independent(self) -> None:
        env = MineMaze(100, 1, seed=5, noise=0.05)
        env.set_pictures(np.full((22, 10, 10, 3), 128, np.uint8))
        noise = torch.stack((env.reset()[keys.OBSERVATION], act(env, RIGHT)[keys.OBSERVATION])) / 0.05
        assert_uniform(torch.special.ndtr(noise.double()).mul(10).long(), range(10))
        for other in (noise.roll(1, 0)[:1], noise.roll(1, 1), noise.roll(1, 2)):  # over time, environments and values
            assert_mean(noise[: len(other)] * other, 0.0)

    def test_task_split(self) -> None:
        options = {"multi_step_indicator": True, "publish": ["task_id"]}
        tasks = [
            MineMaze(256, task_split=split, **options).reset()[keys.TASK_ID].unique().tolist()
            for split in ("train", "test")
        ]
        assert sorted(tasks) == [[0], [1]]


def distance(one: str, other: str) -> float:
    """Euclidean distance of two normalised pictures."""
    bank = render_pictures().astype(np.float64) / 128
    return float(np.linalg.norm(bank[KEYS.index(one)] - bank[KEYS.index(other)]))


class TestPictures:
    """What the pictures show (spec 7.6 and 7.7)."""

    def test_exactly_the_right_ones_are_identical(self) -> None:
        same = {f"room1/{cell}": f"room0/{cell}" for cell in ("-1,2", "1,2", "-1,3", "1,3", "0,3")}
        for i, one in enumerate(KEYS):
            for other in KEYS[:i]:
                if same.get(one, one) == same.get(other, other):
                    assert distance(one, other) == 0
                else:
                    assert distance(one, other) > 1.3

    @pytest.mark.parametrize(
        ("one", "other", "stated"),
        [
            ("red", "end", 7.7),
            ("room0/0,0", "room1/0,0", 4.6),
            ("room0/0,1", "room1/0,1", 6.1),
            ("room0/-1,1", "room1/-1,1", 2.6),
            ("room0/1,1", "room1/1,1", 2.6),
            ("room0/-1,3", "room0/1,3", 3.6),
            ("room0/-1,2", "room0/0,3", 2.0),
            ("room0/1,2", "room0/0,3", 1.5),
        ],
    )
    def test_they_differ_about_as_much_as_the_original_ones(self, one: str, other: str, stated: float) -> None:
        assert 0.75 * stated < distance(one, other) < 1.25 * stated

    def test_the_closest_ones_are_those_of_the_originals(self) -> None:
        pairs = [(distance(a, b), a, b) for i, a in enumerate(KEYS) for b in KEYS[:i]]
        assert min(pair for pair in pairs if pair[0] > 0)[1:] == ("room0/0,3", "room0/1,2")

    def test_green_is_unlike_anything_else(self) -> None:
        assert min(distance("green", key) for key in KEYS if key != "green") > 0.9 * 6.8

    @pytest.mark.parametrize(
        ("key", "rows", "columns", "colour"),
        [
            ("green", (0, 10), (0, 10), (65, 180, 100)),
            ("green", (0, 10), (0, 5), (80, 185, 105)),
            ("green", (0, 10), (8, 10), (50, 170, 80)),
            ("red", (0, 10), (0, 10), (110, 15, 5)),
            ("red", (3, 7), (3, 7), (95, 12, 5)),
            ("end", (0, 10), (0, 10), (15, 15, 25)),
            ("room0/0,0", (0, 1), (0, 1), (140, 170, 235)),
            ("room1/0,0", (0, 1), (9, 10), (140, 170, 235)),
            ("room0/0,0", (2, 6), (0, 1), (75, 75, 75)),
            ("room0/0,0", (0, 7), (3, 7), (180, 180, 180)),
            ("room1/0,0", (0, 7), (3, 7), (95, 180, 175)),
            ("room0/0,0", (8, 10), (0, 10), (120, 120, 120)),
            ("room0/0,1", (0, 10), (0, 10), (180, 180, 180)),
            ("room1/0,1", (0, 10), (0, 10), (105, 180, 180)),
            ("room0/-1,1", (0, 8), (8, 10), (135, 135, 135)),
            ("room1/-1,1", (0, 8), (8, 10), (70, 135, 135)),
            ("room0/1,1", (0, 8), (0, 2), (135, 135, 135)),
            ("room1/1,1", (0, 8), (0, 2), (70, 135, 135)),
            ("room0/-1,1", (3, 8), (3, 7), (100, 100, 100)),
            ("room0/-1,1", (0, 3), (4, 6), (105, 115, 120)),
            ("room0/1,1", (0, 3), (4, 6), (110, 105, 100)),
            ("room0/-1,1", (0, 8), (0, 2), (75, 75, 75)),
            ("room0/1,1", (0, 8), (8, 10), (75, 75, 75)),
            ("room0/-1,2", (0, 7), (3, 7), (105, 115, 120)),
            ("room0/1,2", (0, 7), (3, 7), (110, 105, 100)),
            ("room0/-1,2", (0, 7), (0, 2), (70, 70, 70)),
            ("room0/1,2", (0, 7), (8, 10), (80, 80, 80)),
            ("room0/-1,2", (0, 7), (7, 10), (95, 95, 95)),
            ("room0/1,2", (0, 7), (0, 3), (95, 95, 95)),
            ("room0/0,3", (0, 8), (0, 2), (75, 75, 75)),
            ("room0/0,3", (0, 8), (3, 7), (100, 100, 100)),
            ("room0/0,3", (8, 10), (2, 8), (115, 115, 115)),
        ],
    )
    def test_regions_have_about_the_stated_colours(
        self, key: str, rows: tuple[int, int], columns: tuple[int, int], colour: tuple[int, int, int]
    ) -> None:
        region = render_pictures()[KEYS.index(key), slice(*rows), slice(*columns)]
        np.testing.assert_allclose(region.mean((0, 1)), colour, rtol=0, atol=12)

    @pytest.mark.parametrize(
        ("key", "stone", "speck", "number"),
        [("-1,3", (105, 107, 108), (110, 167, 182), 18), ("1,3", (102, 100, 100), (150, 125, 108), 22)],
    )
    def test_ores_have_specks(
        self, key: str, stone: tuple[int, int, int], speck: tuple[int, int, int], number: int
    ) -> None:
        cells = render_pictures()[KEYS.index(f"room0/{key}")].reshape(-1, 3).astype(float)
        saturated = np.ptp(cells, axis=1) > 20
        assert abs(saturated.sum() - number) <= 2
        np.testing.assert_allclose(cells[saturated].mean(0), speck, rtol=0, atol=8)
        np.testing.assert_allclose(cells[~saturated].mean(0), stone, rtol=0, atol=8)

    def test_end_is_dark_with_15_brighter_cells(self) -> None:
        cells = render_pictures()[KEYS.index("end")].reshape(-1, 3)
        colours, counts = np.unique(cells, axis=0, return_counts=True)
        assert colours.tolist() == [[13, 13, 20], [37, 29, 53]]
        assert counts.tolist() == [85, 15]

    def test_they_are_always_the_same_and_read_only(self) -> None:
        np.random.seed(1)
        before = np.random.get_state()[1].copy()
        bank = render_pictures()
        again = render_pictures.__wrapped__()
        assert np.array_equal(bank, again)
        assert np.array_equal(np.random.get_state()[1], before)
        assert (bank.shape, bank.dtype) == ((22, 10, 10, 3), np.uint8)
        assert not bank.flags.writeable
        assert not bank[KEYS.index("hidden")].any()


class TestFrames:
    """`render_frame`, `path` and `coordinates`."""

    GREEN, RED, BLUE = (44, 160, 44), (214, 39, 40), (31, 119, 180)

    @staticmethod
    def share(frame: np.ndarray, colour: tuple[int, int, int]) -> float:
        return float((frame == colour).all(-1).mean())

    def test_all_parts_of_the_maze(self) -> None:
        env = MineMaze(1, 1, num_rooms=1, multi_step_indicator=True, record_path=True)
        env.inject("task", [UP])
        env.inject("rooms", [0])
        env.reset()
        indicator = env.render_frame(0)
        assert self.share(indicator, self.RED) > 0.01
        frames = []
        for action in (RIGHT, RIGHT, FORWARD, LEFT, FORWARD, FORWARD, RIGHT, FORWARD, LEFT):
            act(env, action)
            frames.append(env.render_frame(0))
        assert len({frame.tobytes() for frame in (indicator, *frames)}) == 10
        for frame in (indicator, *frames):
            assert self.share(frame, self.BLUE) > 0.0005
        for frame in frames[1:]:  # the side on which to pass the pillar, or to turn
            assert self.share(frame, self.GREEN) > 0.005
        assert env.path(0).tolist() == [
            *([x, 0.0] for x in (-2.0, -1.0, 0.0)),
            [0.0, 1.0],
            *([-1.0, y] for y in (1.0, 2.0, 3.0)),
            [0.0, 3.0],
            [0.0, 4.0],
            [-1.0, 4.0],
        ]

    @pytest.mark.parametrize("kind", [0, 1])
    def test_the_rewarded_side_is_green(self, kind: int) -> None:
        env = MineMaze(1, 1, num_rooms=1)
        env.inject("task", [UP])
        env.inject("rooms", [kind])
        env.reset()
        for action in (RIGHT, FORWARD, LEFT, FORWARD, FORWARD, RIGHT, FORWARD):
            frame = env.render_frame(0)
            act(env, action)
        assert (self.column(frame, self.GREEN) < self.column(frame, self.BLUE)) == (kind == 0)  # in the room
        frame = env.render_frame(0)
        assert self.column(frame, self.GREEN) > self.column(frame, self.BLUE)  # at the end

    @staticmethod
    def column(frame: np.ndarray, colour: tuple[int, int, int]) -> float:
        """The mean column of a colour."""
        return float((frame == colour).all(-1).nonzero()[1].mean())

    def test_noise_is_in_the_frame(self) -> None:
        env = MineMaze(1, 1, noise=0.1)
        env.inject("noise", *torch.tensor([2.0, -2.0]).expand(300, 2).T)
        env.reset()
        white = self.share(env.render_frame(0), (0, 0, 0))
        act(env, LEFT)
        black = self.share(env.render_frame(0), (0, 0, 0))
        assert white < 0.02
        assert black > 0.3

    def test_what_the_agent_sees_is_in_the_frame(self) -> None:
        env = MineMaze(1, 1)
        env.inject("task", [UP])
        env.reset()
        frame = env.render_frame(0)
        for colour in render_pictures()[KEYS.index("green")].reshape(-1, 3):
            assert self.share(frame, tuple(colour)) > 0.001


Turn = Callable[[Tensor, Tensor], Tensor]


def by_colours(seen: Tensor, last: Tensor) -> Tensor:
    """Remember what was seen at the start of the episode: green, or green and then red."""
    green, red = (seen[:, :2] == KEYS.index(key) for key in ("green", "red"))
    up = green[:, 0] & (red[:, 1] | ~(green | red)[:, 1])
    return torch.where(up, RIGHT, LEFT)


def by_reward(seen: Tensor, last: Tensor) -> Tensor:
    """Go right first, and then where the reward was."""
    return torch.where(last < 0, LEFT, RIGHT)


def blindly(seen: Tensor, last: Tensor) -> Tensor:
    """Any turn, by what does not tell the task: the first kinds of pillars and whether there was a reward."""
    kind = KEYS[4:].index("room1/0,0")
    return torch.where((seen == 4 + kind).sum(-1) % 2 == 1, RIGHT, LEFT)


def assert_half_are_right(returns: Tensor) -> None:
    """A right turn at the end of MC-LS and MC-LSH earns 13.7 in all, a wrong one 6.7; on average 10.2."""
    right = returns > 10
    torch.testing.assert_close(returns, torch.where(right, 13.7, 6.7), rtol=0, atol=1e-4)
    assert_share(right, 0.5)


class TestReturns:
    """What players earn who see the pictures, and the most that can be earned."""

    ONWARD = {
        **{"0,0": FORWARD, "-1,1": FORWARD, "1,1": FORWARD, "-1,2": FORWARD, "1,2": FORWARD},
        **{"-1,3": RIGHT, "1,3": LEFT, "0,3": FORWARD},
    }

    def onward(self, key: str) -> int:
        """The way on from a picture; the pillar's kind tells the side."""
        if "/" not in key:
            return RIGHT
        room, cell = key.split("/")
        return (LEFT, RIGHT)[int(room[-1])] if cell == "0,1" else self.ONWARD[cell]

    def play(self, env_id: str, num_tasks: int, turn: Turn) -> tuple[Tensor, Tensor]:
        """Returns and lengths of both episodes `[B, 2]` of a player who knows the way and sees only pictures.

        Args:
            env_id: which environment.
            num_tasks: B.
            turn: the turn at the end, given what was seen in the episode, `[B, 201]` numbers of pictures, -1 behind
                the last; and the last reward of the episode before `[B]`, 0 in the first.
        """
        env = make_env(env_id, num_tasks, seed=7)
        views = (torch.from_numpy(render_pictures().copy()).flip(1).float().flatten(1) - 128) / 128
        onward = torch.tensor([self.onward(key) for key in KEYS])
        rows = torch.arange(num_tasks)
        returns, lengths = torch.zeros(num_tasks, 2), torch.zeros(num_tasks, 2, dtype=torch.int64)
        episode, last = torch.zeros_like(rows), torch.zeros(num_tasks)
        seen = torch.full((num_tasks, 201), -1)
        td = env.reset()
        while not td[keys.DONE].all():
            assert not td[keys.DONE].any()  # all take the shortest way
            picture = torch.cdist(td[keys.OBSERVATION][:, :300], views).argmin(-1)
            seen[rows, lengths[rows, episode]] = picture
            action = torch.where(picture == KEYS.index("end"), turn(seen, last), onward[picture])
            td = act(env, action)
            reward, ended = td[keys.REWARD].squeeze(-1), td[keys.EPISODE_DONE].squeeze(-1)
            returns[rows, episode] += reward
            lengths[rows, episode] += 1
            last = torch.where(ended, reward, last)
            seen[ended] = -1
            episode = (episode + ended).clamp(max=1)
        return returns, lengths

    @pytest.mark.parametrize(
        ("env_id", "length", "best"), [("MC-LSO-v0", 63, 10.2), ("MC-LS-v0", 98, 13.7), ("MC-LSN-v0", 62, 10.1)]
    )
    def test_memory_of_the_colours_earns_the_most(self, env_id: str, length: int, best: float) -> None:
        returns, lengths = self.play(env_id, 200, by_colours)
        torch.testing.assert_close(returns, torch.full((200, 2), best), rtol=0, atol=1e-4)
        assert (lengths == length).all()
        known = landmarks(env_id)
        assert (
            known["within_episode_memory"] == known["bayes_optimal"] == known["task_known"] == pytest.approx(2 * best)
        )

    def test_blind_turns(self) -> None:
        for env_id in ("MC-LS-v0", "MC-LSH-v0"):
            returns, lengths = self.play(env_id, 1000, blindly)
            assert (lengths == 98).all()
            assert_half_are_right(returns)
        assert landmarks("MC-LSH-v0")["within_episode_memory"] == pytest.approx(2 * 10.2)

    @pytest.mark.parametrize("env_id", ["MC-LS-v0", "MC-LSH-v0"])
    def test_memory_of_the_reward_only(self, env_id: str) -> None:
        returns, _ = self.play(env_id, 1000, by_reward)
        torch.testing.assert_close(returns[:, 1], torch.full((1000,), 13.7), rtol=0, atol=1e-4)
        assert_half_are_right(returns[:, 0])  # on average 10.2 + 13.7 = 23.9
        assert landmarks("MC-LSH-v0")["bayes_optimal"] == 23.9

    def test_colours_that_are_hidden_cannot_be_remembered(self) -> None:
        returns, _ = self.play("MC-LSH-v0", 1000, by_colours)
        assert_half_are_right(returns[:, 0])

    @pytest.mark.parametrize("env_id", MINE_IDS)
    def test_nobody_earns_more_than_a_known_task(self, env_id: str) -> None:
        """The largest return of 199 moves, by backward induction, whatever colours, pillars and task are."""
        env = make_env(env_id, 64, seed=8)
        env.reset()
        place = torch.arange(len(env._cues))
        situation = 2 * place + env.state["cues"][:, env._cues]
        moves, rewards = (table.view(-1, 4)[situation] for table in (env._moves, env._rewards))
        value = torch.zeros(64, len(place))
        for _ in range(env.episode_length - 1):
            value = (rewards + value.unsqueeze(1).expand(-1, len(place), -1).gather(2, moves)).amax(-1)
        expected = torch.full((64,), landmarks(env_id)["task_known"] / 2)
        torch.testing.assert_close(value[:, 0], expected, rtol=0, atol=1e-4)
