"""T-Maze: rules and options beyond the golden files, refusals, sampling laws and what players can earn."""

from __future__ import annotations

import math
from typing import Protocol

import pytest
import torch
from matplotlib.figure import Figure
from sampling import assert_share, assert_uniform
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Binomial

from hyperrl import keys
from hyperrl.envs import make_env
from hyperrl.envs.base import MetaEnv
from hyperrl.envs.registration import landmarks
from hyperrl.envs.t_maze import ENVS, TMaze

LEFT, RIGHT, UP, DOWN = range(4)
FREE = {"force_right": False, "force_final_decision": False}
IDS = [entry.id for entry in ENVS]
NOISY_IDS = [name for name in IDS if name.startswith("T-LN") and "LD" not in name]


def steps(env: TMaze, *actions: int) -> TensorDict:
    """What `next` holds after each action, taken by all environments, `[B, T]`."""
    action = torch.tensor(actions).expand(env.num_envs, -1)
    return torch.stack([env.step(TensorDict({keys.ACTION: a}, env.batch_size))[keys.NEXT] for a in action.T], 1)


def rewards(env: TMaze, *actions: int) -> list[float]:
    """Rewards of environment 0."""
    return [round(reward, 6) for reward in steps(env, *actions)[keys.REWARD][0, :, 0].tolist()]


def check(observation: Tensor) -> Tensor:
    return observation[..., 3]


class TestRules:
    """Moves, rewards and ends (spec 6.4)."""

    def test_timeout_pays_only_its_own_reward_in_an_extra_step(self) -> None:
        options = {"maze_length": 3, "timeout": 4, "timeout_reward": -7.0, "persistent_reward": 0.5, "pos_enc": True}
        env = TMaze(1, 2, **options, **FREE)
        env.reset()
        after = steps(env, *[UP] * 10)
        assert after[keys.REWARD].flatten().tolist() == [0.5, 0.5, 0.5, 0.5, -7.0] * 2
        assert after[keys.EPISODE_DONE].flatten().nonzero().flatten().tolist() == [4, 9]
        assert after[keys.DONE].flatten().nonzero().flatten().tolist() == [9]
        assert torch.equal(after[keys.TERMINATED], after[keys.DONE])
        # The last step does not count; the one before shows the next episode's start.
        assert after[keys.OBSERVATION][0, :, 4].tolist() == [1, 2, 3, 4, 0, 1, 2, 3, 4, 4]

    def test_timeout_at_the_last_cell_comes_before_the_decision(self) -> None:
        env = TMaze(1, 1, maze_length=2, indicator_pos=0, timeout=3, timeout_reward=-7.0, fixed_task=[UP], **FREE)
        env.reset()
        after = steps(env, RIGHT, LEFT, RIGHT, UP)
        assert after[keys.REWARD].flatten().tolist() == [0, 0, 0, -7]
        assert after[keys.DONE].flatten().tolist() == [False, False, False, True]

    @pytest.mark.parametrize("forced", [False, True])
    def test_left_at_the_last_cell_leads_back_unless_it_decides(self, forced: bool) -> None:
        env = TMaze(
            1, 1, maze_length=3, allow_left=True, force_right=False, force_final_decision=forced, fixed_task=[UP]
        )
        env.reset()
        after = steps(env, LEFT, RIGHT, RIGHT, LEFT)
        assert after[keys.REWARD].flatten().tolist() == [0, 0, 0, 4 if forced else 0]
        assert after[keys.DONE][0, -1].item() == forced
        assert after[keys.OBSERVATION][0, :, 0].tolist() == [1, 0, 0, 0]
        assert after[keys.OBSERVATION][0, :, 2].tolist() == [0, 0, 1, forced]

    def test_nothing_leads_back_without_allow_left(self) -> None:
        env = TMaze(1, 1, maze_length=4, force_right=False)
        env.reset()
        steps(env, RIGHT, LEFT, UP, DOWN)
        assert env.coordinates().tolist() == [[1, 0]]

    @pytest.mark.parametrize("per_step_reset", [False, True])
    def test_only_the_echo_of_the_check_leads_forward(self, per_step_reset: bool) -> None:
        env = TMaze(1, 1, maze_length=3, intermediate_checks=True, per_step_reset=per_step_reset, **FREE)
        env.inject("checks", [UP, DOWN, DOWN])
        if per_step_reset:
            env.inject("check", UP, UP, DOWN, DOWN, DOWN)
        env.reset()
        after = steps(env, DOWN, RIGHT, UP, UP, DOWN)
        assert after[keys.REWARD].flatten().tolist() == pytest.approx([0, 0, 0.1, 0, 0.1])
        assert check(after[keys.OBSERVATION]).tolist() == [[1, 1, -1, -1, -1]]
        assert env.coordinates().tolist() == [[2, 0]]

    def test_a_corridor_of_one_cell_is_its_first_cell(self) -> None:
        env = TMaze(1, 2, maze_length=1, indicator_pos=0, final_intermediate_indicator=False, fixed_task=[DOWN])
        assert env.reset()[keys.OBSERVATION].tolist() == [[1, -1, 0, 0, 0]]
        after = steps(env, RIGHT, LEFT)
        assert after[keys.REWARD].flatten().tolist() == [4, -3]
        assert after[keys.DONE].flatten().tolist() == [False, True]

    @pytest.mark.parametrize(
        ("option", "right"),
        [
            ({}, {(UP,): UP, (DOWN,): DOWN}),
            ({"flipped_indicator_pos": 3}, {(UP, DOWN): UP, (DOWN, UP): DOWN}),
            (
                {"correlated_indicator_pos": 3},
                {(UP, UP): DOWN, (UP, DOWN): UP, (DOWN, UP): DOWN, (DOWN, DOWN): DOWN},
            ),
            (
                {"agreement_indicator_pos": 3},
                {(UP, UP): DOWN, (UP, DOWN): UP, (DOWN, UP): UP, (DOWN, DOWN): DOWN},
            ),
        ],
    )
    def test_right_decision_and_what_is_shown(self, option: dict[str, int], right: dict[tuple[int, ...], int]) -> None:
        env = TMaze(2, 1, maze_length=5, publish=["task", "task_id"], **option)
        for task, turn in right.items():
            env.inject("task", task)
            td = env.reset()
            assert td[keys.TASK].tolist() == [list(task)] * 2
            assert td[keys.TASK_ID].tolist() == [sum((d == UP) << i for i, d in enumerate(task))] * 2
            seen = torch.cat((td[keys.OBSERVATION][0, 1:2], steps(env, *[UP] * 4)[keys.OBSERVATION][0, :, 1]))
            shown = dict(zip((1, 3), task, strict=False))
            assert seen.tolist() == [{UP: 1, DOWN: -1, None: 0}[shown.get(cell)] for cell in range(5)]
            assert rewards(env, turn) == [4]
            env.inject("task", task)
            env.reset()
            assert rewards(env, *[UP] * 4, UP + DOWN - turn) == [0, 0, 0, 0, -3]

    def test_the_next_episode_is_shown_and_checks_survive_no_end(self) -> None:
        env = TMaze(1, 2, maze_length=2, indicator_pos=0, per_step_reset=False, fixed_task=[UP])
        env.inject("checks", [UP, UP], [DOWN, DOWN])
        assert env.reset()[keys.OBSERVATION].tolist() == [[1, 1, 0, 1, 0]]
        after = steps(env, UP, UP, UP, UP)[keys.OBSERVATION][0]
        assert after.tolist() == [[0, 0, 1, 1, 0], [1, 1, 0, -1, 1], [0, 0, 1, -1, 0], [0, 0, 1, -1, 1]]


class TestSizes:
    """Layouts (spec 2.3 and 6.2)."""

    @pytest.mark.parametrize(
        ("env_id", "obs_dim", "task_dim", "num_tasks"),
        [
            ("T-LN-v0", 4, 1, 2),
            ("T-LN-P1-v0", 4, 1, 2),
            ("T-LN-P1-LDp7p5-v0", 4, 1, 2),
            ("T-LN-P1-A50-v0", 4, 2, 4),
            ("T-LN-P1-A50-pos-v0", 5, 2, 4),
            ("T-LN-P1-A50-posw-v0", 6, 2, 4),
            ("T-LS-P1-v0", 4, 1, 2),
        ],
    )
    def test_ids(self, env_id: str, obs_dim: int, task_dim: int, num_tasks: int) -> None:
        env = make_env(env_id, 1)
        assert (env.obs_dim, env.task_dim, env.num_tasks) == (obs_dim + 1, task_dim, num_tasks)
        assert (env.episodes_per_task, env.episode_length, env.horizon, env.num_actions) == (4, 151, 604, 4)

    def test_all_ids_are_tested(self) -> None:
        assert len(IDS) == 7

    def test_defaults_are_those_of_the_plain_id(self) -> None:
        plain, default = make_env("T-LN-P1-v0", 3, seed=1), TMaze(3, seed=1)
        generator = torch.Generator().manual_seed(0)
        plain.reset(), default.reset()
        for _ in range(120):
            action = torch.randint(4, (3,), generator=generator)
            one, other = (env.step(TensorDict({keys.ACTION: action}, [3]))[keys.NEXT] for env in (plain, default))
            assert (one == other).all()

    @pytest.mark.parametrize(
        ("options", "low", "high"),
        [
            ({"intermediate_indicators": False}, [0, -1, 0], [1, 1, 1]),
            ({"check_up": 5, "check_down": -2, "pos_enc": True}, [0, -1, 0, -2, 0], [1, 1, 1, 5, 150]),
            ({"check_up": 5, "check_down": 2}, [0, -1, 0, 0], [1, 1, 1, 5]),
            ({"pos_enc": True, "wave_encoding_len": 3}, [0, -1, 0, -1, -1, -1, -1], [1] * 7),
        ],
    )
    def test_bounds(self, options: dict[str, object], low: list[int], high: list[int]) -> None:
        space = TMaze(1, 1, **options).observation_spec[keys.OBSERVATION].space
        assert space.low.tolist() == [low]
        assert space.high.tolist() == [high]

    def test_flipped_indicators_have_two_of_four_ids(self) -> None:
        """Quirk T9."""
        options = {"flipped_indicator_pos": 3, "publish": ["task_id"]}
        env = TMaze(4096, seed=2, **options)
        assert env.num_tasks == 4
        assert_uniform(env.reset()[keys.TASK_ID], [1, 2])
        train, test = (
            TMaze(64, task_split=split, **options).reset()[keys.TASK_ID].unique().tolist()
            for split in ("train", "test")
        )
        assert sorted(train + test) == [1, 2]

    def test_the_first_direction_tells_a_flipped_task(self) -> None:
        env = TMaze(2, flipped_indicator_pos=3, publish=["task"], fixed_task=[DOWN])
        assert env.reset()[keys.TASK].tolist() == [[DOWN, UP]] * 2
        env.inject("task", [[UP], [DOWN]])
        assert env.reset()[keys.TASK].tolist() == [[UP, DOWN], [DOWN, UP]]


class TestRefusals:
    """Every refusal is one line and names the argument."""

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"timeout": None}, "`timeout` is None: expected an integer"),
            ({"timeout": 0}, "`timeout` is 0: expected an integer"),
            ({"maze_length": 0}, "`maze_length` is 0"),
            ({"maze_length_upper_bound": 2.5}, "`maze_length_upper_bound` is 2.5: expected an integer"),
            ({"maze_length_upper_bound": 99}, "`maze_length_upper_bound` is 99: expected at least .* 100"),
            ({"indicator_pos": 100}, "`indicator_pos` is 100: expected a cell from 0 to 99"),
            ({"indicator_pos": None}, "`indicator_pos` is None: expected a cell"),
            ({"indicator_pos": True}, "`indicator_pos` is True: expected a cell"),
            ({"indicator_pos": 0, "flipped_indicator_pos": 5}, "`indicator_pos` is 0: expected a cell from 1 to 98"),
            ({"agreement_indicator_pos": 99}, "`agreement_indicator_pos` is 99: expected a cell from 1 to 98"),
            ({"agreement_indicator_pos": 0}, "`agreement_indicator_pos` is 0: expected a cell from 1 to 98"),
            ({"correlated_indicator_pos": 1}, "`correlated_indicator_pos` is 1: expected another cell"),
            (
                {"correlated_indicator_pos": 4, "agreement_indicator_pos": 5},
                "`correlated_indicator_pos` and `agreement_indicator_pos` exclude each other",
            ),
            (
                {"latent_dist": (0.7, 0.5), "flipped_indicator_pos": 5},
                "`latent_dist` and `flipped_indicator_pos` exclude each other",
            ),
            ({"latent_dist": 0.7}, "`latent_dist` is 0.7: expected two probabilities"),
            ({"latent_dist": (0.7, 1.5)}, r"`latent_dist` is \(0.7, 1.5\): expected two probabilities"),
            ({"latent_dist": (0.7,)}, r"`latent_dist` is \(0.7,\): expected two probabilities"),
            (
                {"latent_dist": (0.7, 0.5), "reset_intermediate_indicators": False},
                "`latent_dist` is .*: expected .*`reset_intermediate_indicators` to be true",
            ),
            (
                {"latent_dist": (0.7, 0.5), "intermediate_indicators": False},
                "`latent_dist` is .*: expected `intermediate_indicators`",
            ),
            ({"allow_left": True}, "`force_right` and `allow_left` exclude each other"),
            ({"intermediate_checks": True}, "`force_right` and `intermediate_checks` exclude each other"),
            (
                {"intermediate_checks": True, "intermediate_indicators": False, "force_right": False},
                "`intermediate_checks` is True: expected `intermediate_indicators`",
            ),
            ({"wave_encoding_len": 2}, "`wave_encoding_len` is 2: expected `pos_enc` to be true"),
            ({"wave_encoding_len": 0, "pos_enc": True}, "`wave_encoding_len` is 0: expected an integer"),
            ({"allow_left": 1}, "`allow_left` is 1: expected true or false"),
            ({"success_reward": math.nan}, "`success_reward` is nan: expected a finite number"),
            ({"check_up": "up"}, "`check_up` is 'up': expected a finite number"),
            ({"fixed_task": [0]}, r"`fixed_task` is \[0\]: .*expected one of \[\[3\], \[2\]\]"),
            ({"fixed_task": [UP, UP], "flipped_indicator_pos": 5}, r"`fixed_task` is \[2, 2\]: .*expected one of"),
            ({"fixed_task": [UP], "agreement_indicator_pos": 5}, r"`fixed_task` is \[2\]: .*expected \(2,\)"),
        ],
    )
    def test_arguments(self, options: dict[str, object], words: str) -> None:
        with pytest.raises(ValueError, match=words) as error:
            TMaze(2, **options)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            ("task", [UP, DOWN], r"injected task has shape \(2,\): expected \(1,\) or \(3, 1\)"),
            ("task", [4], r"injected task is \[4\]: expected one of"),
            ("maze_length", 4, "injected maze_length is 4: expected whole numbers from 5 to 8"),
            ("maze_length", 5.5, "injected maze_length is 5.5: expected whole numbers"),
            ("check", 0, "injected check is 0: expected whole numbers from 2 to 3"),
            ("checks", [UP] * 5, r"injected checks has shape \(5,\): expected \(8,\) or \(3, 8\)"),
            ("check", [UP, 0, 1], "injected check is 0: expected"),
            ("task", [[UP], [DOWN], [5]], r"injected task is \[5\]: expected one of"),
            ("checks", [UP] * 7 + [0], "injected checks is .*: expected whole numbers from 2 to 3"),
        ],
    )
    def test_injections(self, name: str, value: object, words: str) -> None:
        env = TMaze(3, maze_length=5, maze_length_upper_bound=8)
        with pytest.raises(ValueError, match=words) as error:
            env.inject(name, value)
        assert "\n" not in str(error.value)

    def test_only_what_is_drawn_can_be_injected(self) -> None:
        assert TMaze(1).injectable == ("task", "checks", "check")
        assert TMaze(1, per_step_reset=False).injectable == ("task", "checks")
        assert TMaze(1, reset_intermediate_indicators=False).injectable == ("task", "checks")
        assert TMaze(1, intermediate_indicators=False).injectable == ("task",)
        assert TMaze(1, maze_length_upper_bound=100).injectable == ("task", "maze_length", "checks", "check")


class TestDraws:
    """Sampling laws."""

    @pytest.mark.parametrize("env_id", IDS)
    def test_tasks_are_uniform(self, env_id: str) -> None:
        env = make_env(env_id, 8192, seed=1, publish=["task_id"])
        assert_uniform(env.reset()[keys.TASK_ID], range(env.num_tasks or 0))

    @pytest.mark.parametrize(("task", "latent_dist"), [(UP, None), (DOWN, None), (UP, (0.7, 0.4)), (DOWN, (0.7, 0.4))])
    @pytest.mark.parametrize("per_step_reset", [False, True])
    def test_checks(self, task: int, latent_dist: tuple[float, float] | None, per_step_reset: bool) -> None:
        env = TMaze(
            200, 2, maze_length=20, latent_dist=latent_dist, per_step_reset=per_step_reset, fixed_task=[task], seed=5
        )
        p = 0.5 if latent_dist is None else latent_dist[task == DOWN]
        start = env.reset()[keys.OBSERVATION]
        seen = check(torch.cat((start.unsqueeze(1), steps(env, *[UP] * 39)[keys.OBSERVATION]), 1)) == 1
        assert_share(seen, p)
        for cells in (slice(0, 20), slice(20, 40)):  # both episodes, as pairs of cells that do not overlap
            first, second = seen[:, cells].unflatten(1, (-1, 2)).unbind(-1)
            assert_share(first & second, p**2)
        assert_share(seen[:, :20] == seen[:, 20:], p**2 + (1 - p) ** 2)  # the next episode draws anew

    def test_waiting_draws_only_with_per_step_reset(self) -> None:
        for per_step_reset in (False, True):
            env = TMaze(500, 1, maze_length=5, per_step_reset=per_step_reset, **FREE, seed=1)
            start = check(env.reset()[keys.OBSERVATION])
            same = check(steps(env, UP)[keys.OBSERVATION][:, 0]) == start
            if per_step_reset:
                assert_share(same, 0.5)
            else:
                assert same.all()

    def test_latent_indicator_is_never_shown(self) -> None:
        env = TMaze(8, 1, maze_length=10, latent_dist=(0.7, 0.5))
        start = env.reset()[keys.OBSERVATION]
        assert not start[:, 1].any()
        assert not steps(env, *[UP] * 10)[keys.OBSERVATION][..., 1].any()

    def test_fixed_checks_are_one_pattern_for_all(self) -> None:
        def pattern(env: TMaze) -> Tensor:
            return check(
                torch.cat((env.reset()[keys.OBSERVATION][:, None], steps(env, *[UP] * 79)[keys.OBSERVATION]), 1)
            )

        options = {"maze_length": 40, "reset_intermediate_indicators": False}
        env = TMaze(3, 2, seed=4, **options)
        shown = pattern(env)  # two episodes
        assert (shown == shown[0, :40].repeat(2)).all()
        assert_share(shown[0, :40] == 1, 0.5)
        env.set_seed(5)
        assert torch.equal(pattern(env), shown)  # on other tasks
        assert torch.equal(pattern(TMaze(2, 2, seed=9, **options)), shown[:2])

    def test_an_injected_fixed_pattern_stays(self) -> None:
        env = TMaze(2, 1, maze_length=3, reset_intermediate_indicators=False)
        env.inject("checks", [[UP, DOWN, UP], [DOWN, DOWN, UP]])
        for _ in range(2):
            start = check(env.reset()[keys.OBSERVATION])
            after = check(steps(env, UP, UP)[keys.OBSERVATION])
            assert torch.cat((start[:, None], after), 1).tolist() == [[1, -1, 1], [-1, -1, 1]]

    def test_maze_lengths_are_uniform_and_belong_to_the_task(self) -> None:
        env = TMaze(2000, 2, maze_length=3, maze_length_upper_bound=7, seed=3)
        lengths = []
        for _ in range(2):  # a new maze may be shorter than the old one (quirk T5)
            env.reset()
            after = steps(env, *[UP] * 14)
            ends = after[keys.EPISODE_DONE].squeeze(-1).cumsum(1)
            first, second = (torch.argmax((ends == n).int(), 1) + 1 for n in (1, 2))
            assert torch.equal(second, 2 * first)
            assert torch.equal(after[keys.DONE].squeeze(-1).int().argmax(1) + 1, second)
            assert_uniform(first, range(3, 8))
            lengths.append(first)
        assert_share(lengths[0] == lengths[1], 0.2)

    def test_a_partial_reset_keeps_the_other_lengths(self) -> None:
        env = TMaze(2, 1, maze_length=3, maze_length_upper_bound=7)
        env.inject("maze_length", [3, 4], [7, 7])
        td = env.reset()
        td = steps(env, UP)[:, 0].exclude(keys.REWARD)
        env.reset(td.set("_reset", torch.tensor([[True], [False]])))
        last = steps(env, *[UP] * 6)[keys.OBSERVATION][..., 2]
        assert last.int().argmax(1).tolist() == [5, 1]


class Player(Protocol):
    """Acts on what it sees."""

    def __call__(self, observation: Tensor, reward: Tensor, episode_done: Tensor) -> Tensor:
        """Observation `[B, O]`, reward and end of the episode `[B]` of the last step; returns actions `[B]`."""


def play(env: MetaEnv, player: Player) -> Tensor:
    """Returns `[B, K]` of the episodes of one task. Nobody, in any row, earns more than who knows the task."""
    td = env.reset()
    reward, ended = torch.zeros(env.num_envs), torch.zeros(env.num_envs, dtype=torch.bool)
    earned = torch.zeros(env.num_envs, env.episodes_per_task + 1)
    episode = torch.zeros(env.num_envs, dtype=torch.int64)
    while (episode < env.episodes_per_task).any():
        td = env.step(td.set(keys.ACTION, player(td[keys.OBSERVATION], reward, ended)))[keys.NEXT]
        reward, ended = td[keys.REWARD][:, 0], td[keys.EPISODE_DONE][:, 0]
        earned.scatter_add_(1, episode.unsqueeze(-1), reward.unsqueeze(-1))
        episode = (episode + ended).clamp(max=env.episodes_per_task)
    return earned[:, :-1]


def played(env_id: str, player: Player, **options: object) -> Tensor:
    earned = play(make_env(env_id, **options), player)
    assert (earned.sum(1) <= landmarks(env_id)["task_known"] + 1e-4).all()
    return earned


def direction(up: Tensor) -> Tensor:
    return torch.where(up, UP, DOWN)


class IndicatorReader:
    """Echoes every check, and decides by the product of the indicators that this episode has shown."""

    def __init__(self, up_if: int = 1) -> None:
        self.up_if = up_if
        self.product = torch.ones(())

    def __call__(self, observation: Tensor, reward: Tensor, episode_done: Tensor) -> Tensor:
        start, indicator, at_end = observation[:, :3].T
        self.product = torch.where(start == 1, 1.0, self.product) * torch.where(indicator == 0, 1.0, indicator)
        return direction(torch.where(at_end == 1, self.product == self.up_if, check(observation) == 1))


class RewardReader:
    """Guesses in episode 1, and then does what has been right."""

    def __init__(self) -> None:
        self.choice: Tensor | None = None

    def __call__(self, observation: Tensor, reward: Tensor, episode_done: Tensor) -> Tensor:
        if self.choice is None:
            self.choice = torch.randint(UP, DOWN + 1, reward.shape, generator=torch.Generator().manual_seed(0))
        self.choice = torch.where(episode_done & (reward < 0), UP + DOWN - self.choice, self.choice)
        return self.choice


class RandomPlayer:
    """Acts uniformly at random."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, observation: Tensor, reward: Tensor, episode_done: Tensor) -> Tensor:
        return torch.randint(4, reward.shape, generator=self.generator)


class CheckCounter:
    """Decides by the likelihood of this episode's checks; if told to remember, by the rewards of earlier episodes."""

    def __init__(self, remember: bool) -> None:
        self.remember = remember
        self.ups = self.known = torch.zeros(())
        self.choice = torch.zeros((), dtype=torch.int64)

    def __call__(self, observation: Tensor, reward: Tensor, episode_done: Tensor) -> Tensor:
        right = torch.where(reward > 0, self.choice, UP + DOWN - self.choice)
        self.known = torch.where(episode_done, right, self.known)
        up = (check(observation) == 1).int()
        self.ups = torch.where(observation[:, 0] == 1, 0, self.ups) + up
        self.choice = direction(self.ups >= UPS_NEEDED)
        if self.remember:
            self.choice = torch.where(self.known > 0, self.known, self.choice).long()
        return self.choice


CELLS, P_UP, P_DOWN = 100, 0.7, 0.5
EVIDENCE = math.log(P_UP / P_DOWN), math.log((1 - P_UP) / (1 - P_DOWN))  # for up, of a check that is up, or down
UPS_NEEDED = math.ceil(-CELLS * EVIDENCE[1] / (EVIDENCE[0] - EVIDENCE[1]))


def check_errors() -> dict[int, float]:
    """Probability, by task, that the number of ups among all checks speaks for the other one."""
    count = torch.arange(CELLS + 1.0)
    up, down = (Binomial(CELLS, torch.tensor(p, dtype=torch.float64)).log_prob(count).exp() for p in (P_UP, P_DOWN))
    return {UP: float(up[:UPS_NEEDED].sum()), DOWN: float(down[UPS_NEEDED:].sum())}


class TestPlayers:
    """Optimal and other returns (`spec/results.md` section 2): computed, played, and the landmarks of the ids."""

    @pytest.mark.parametrize("env_id", NOISY_IDS)
    def test_who_remembers_the_indicators_is_always_right(self, env_id: str) -> None:
        earned = played(env_id, IndicatorReader(up_if=-1 if "A50" in env_id else 1), num_envs=64, seed=1)
        assert (earned == 4).all()
        known = landmarks(env_id)
        assert [known[name] for name in ("within_episode_memory", "bayes_optimal", "task_known")] == [16.0] * 3

    @pytest.mark.parametrize("env_id", [*NOISY_IDS, "T-LN-P1-LDp7p5-v0"])
    def test_who_remembers_rewards_only_guesses_once(self, env_id: str) -> None:
        earned = played(env_id, RewardReader(), num_envs=1024, seed=2)
        assert_share(earned[:, 0] > 0, 0.5)  # on average 0.5 + 3 * 4 = 12.5
        assert set(earned[:, 0].tolist()) == {4, -3}
        assert (earned[:, 1:] == 4).all()

    @pytest.mark.parametrize("env_id", [*NOISY_IDS, "T-LN-P1-LDp7p5-v0"])
    def test_chance(self, env_id: str) -> None:
        earned = played(env_id, RandomPlayer(), num_envs=512, seed=3)
        assert_share(earned > 0, 0.5)
        assert set(earned.flatten().tolist()) == {4, -3}
        assert landmarks(env_id)["random"] == 4 * (0.5 * 4 - 0.5 * 3)

    def test_who_echoes_the_checks_and_remembers_earns_most_of_t_ls(self) -> None:
        earned = played("T-LS-P1-v0", IndicatorReader(), num_envs=64, seed=1)
        torch.testing.assert_close(earned, torch.full((64, 4), 13.9), rtol=0, atol=1e-4)
        assert landmarks("T-LS-P1-v0") == {"bayes_optimal": 55.6, "task_known": 55.6}
        assert played("T-LS-P1-v0", RandomPlayer(), num_envs=256).max() < 13.9

    def test_latent_landmarks(self) -> None:
        error = sum(check_errors().values()) / 2
        best = 4 - 7 * error
        known = landmarks("T-LN-P1-LDp7p5-v0")
        assert round(best, 4) == 3.8649
        assert known["within_episode_memory"] == round(4 * best, 4)
        assert known["bayes_optimal"] == round(best + 3 * 4, 4)

    def test_bayes_player_of_the_latent_variant(self) -> None:
        earned, up = self._play_latent(remember=True)
        assert (earned[:, 1:] == 4).all()
        assert_share(earned[up, 0] < 0, check_errors()[UP])
        assert_share(earned[~up, 0] < 0, check_errors()[DOWN])

    def test_latent_player_who_forgets_between_episodes(self) -> None:
        earned, up = self._play_latent(remember=False)
        assert_share(earned[up] < 0, check_errors()[UP])
        assert_share(earned[~up] < 0, check_errors()[DOWN])

    @staticmethod
    def _play_latent(remember: bool) -> tuple[Tensor, Tensor]:
        tasks = torch.tensor([[UP], [DOWN]]).repeat(2048, 1)
        env = make_env("T-LN-P1-LDp7p5-v0", 4096, seed=7)
        env.inject("task", tasks)
        earned = play(env, CheckCounter(remember))
        assert (earned.sum(1) <= 16).all()
        return earned, tasks[:, 0] == UP


class TestPictures:
    """What `draw_frame` draws."""

    @staticmethod
    def draw(env: TMaze, index: int = 0) -> tuple[dict[tuple[str, str], list[float]], str, list[str]]:
        """Cells of the markers by marker and colour, the title, and the labels."""
        axes = Figure().add_subplot()
        env.draw_frame(axes, index)
        markers: dict[tuple[str, str], list[float]] = {}
        for line in axes.get_lines():
            markers.setdefault((str(line.get_marker()), str(line.get_color())), []).extend(line.get_xdata())
        return markers, axes.get_title(), [text.get_text() for text in axes.texts]

    def test_agent_indicators_and_check(self) -> None:
        env = TMaze(2, 3, maze_length=8, agreement_indicator_pos=5, fixed_task=[UP, DOWN], record_path=True)
        env.inject("check", *[[DOWN, UP]] * 3)
        env.reset()
        steps(env, UP, UP, UP)
        markers, title, labels = self.draw(env)
        assert markers["o", "tab:blue"] == [3]
        assert markers["None", "tab:blue"] == [0, 1, 2, 3]
        assert markers["^", "tab:green"] == [1]
        assert markers["v", "tab:red"] == [5, 3]
        assert labels == ["indicator", "indicator", "check"]
        assert title == "episode 1 of 3, step 3 of 151"
        assert self.draw(env, 1)[0]["^", "tab:green"] == [1, 3]

    def test_hidden_indicators_and_cells_without_check(self) -> None:
        env = TMaze(1, 1, maze_length=2, latent_dist=(0.7, 0.5), final_intermediate_indicator=False)
        env.reset()
        assert self.draw(env)[2] == ["check"]
        steps(env, UP)
        assert self.draw(env)[2] == []

    @pytest.mark.parametrize("task", [UP, DOWN])
    def test_the_right_turn_is_green(self, task: int) -> None:
        env = TMaze(1, 1, fixed_task=[task])
        env.reset()
        axes = Figure().add_subplot()
        env.draw_frame(axes, 0)
        goal = axes.patches[-1]
        assert goal.get_facecolor()[1] > goal.get_facecolor()[0]
        assert (goal.get_y() > 0) == (task == UP)
