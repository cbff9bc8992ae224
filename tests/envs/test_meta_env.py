"""What every environment must do, and what only the base class can be asked."""

from __future__ import annotations

import io
import subprocess
import sys
from collections import deque
from contextlib import nullcontext
from typing import Any

import gymnasium
import numpy as np
import opengl
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, RewardSum, TransformedEnv, check_env_specs

from hyperrl import keys
from hyperrl.envs import MetaEnv, description, env_ids, landmarks, make_env
from hyperrl.envs.base import Transition
from hyperrl.envs.gridworld import GridNavi
from hyperrl.envs.host import HostMetaEnv
from hyperrl.envs.layout import Layout
from hyperrl.envs.mujoco.base import MujocoMetaEnv
from hyperrl.envs.registration import PLAYERS

PUBLISHABLE = (keys.TASK, keys.TASK_ID, keys.STATE_ID, keys.BELIEF, keys.SUCCESS)


# Simulators are slow; their episodes are short here.
SHORT: dict[type[MetaEnv], dict[str, object]] = {
    MujocoMetaEnv: {"episode_length": 12},
    HostMetaEnv: {"episode_length": 8, "num_workers": 0},
}
# ML45 is ML10 with more classes; to find one of its 2,500 tasks by its goal takes half a minute.
TESTED = [name for name in env_ids() if name != "ML45-v0"]


def supported(env: MetaEnv) -> list[str]:
    return [name for name in PUBLISHABLE if hasattr(env, f"publish_{name}")]


def build(env_id: str, num_envs: int = 6, **options: object) -> MetaEnv:
    """Two episodes per task where the family allows it, everything published that can be."""
    return make_env(env_id, num_envs, publish=supported(make_env(env_id, 1)), **{**short(env_id), **options})


def short(env_id: str) -> dict[str, object]:
    """As few episodes per task as show what happens between them, and short ones."""
    example = make_env(env_id, 1)
    steps = next((given for family, given in SHORT.items() if isinstance(example, family)), {})
    return {"episodes_per_task": 1 if example.single_episode else 2, **steps}


def play(env: MetaEnv, steps: int, seed: int = 0, td: TensorDict | None = None) -> TensorDict:
    """Random actions from an own generator, automatic resets, `[B, steps]`; starts with a reset without `td`."""
    generator = torch.Generator().manual_seed(seed)
    td = env.reset() if td is None else td
    rows = []
    for _ in range(steps):
        td[keys.ACTION] = random_action(env, generator)
        row, td = env.step_and_maybe_reset(td)
        rows.append(row)
    return torch.stack(rows, 1)


def random_action(env: MetaEnv, generator: torch.Generator) -> Tensor:
    if env.num_actions is not None:
        return torch.randint(env.num_actions, (env.num_envs,), generator=generator)
    low, high = env.action_spec.space.low, env.action_spec.space.high
    return low + (high - low) * torch.rand(low.shape, generator=generator)


def assert_equal(a: TensorDict, b: TensorDict) -> None:
    assert set(a.keys(True, True)) == set(b.keys(True, True))
    for key in a.keys(True, True):
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0, msg=lambda text, key=key: f"{key}: {text}")


def tensors_in(value: object) -> list[Tensor]:
    """All tensors that an object of ours holds, in containers and objects of ours, too."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for entry in value.values() for tensor in tensors_in(entry)]
    if isinstance(value, (list, tuple, set, deque)):
        return [tensor for entry in value for tensor in tensors_in(entry)]
    ours = type(value).__module__ == __name__ or type(value).__module__.startswith("hyperrl.")
    return tensors_in(vars(value)) if ours and hasattr(value, "__dict__") else []


class NoWaiting(TorchDispatchMode):
    """Refuses operations for which the host waits for a GPU: those whose result or its shape it has to know.

    It knows less than `pretended_device`, with which `test_device.py` plays one environment of each family, but costs
    next to nothing, and so looks at whole episodes of every registered id.
    """

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default", "lift_fresh", "_to_copy")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = str(func), kwargs or {}
        waits = any(word in name for word in self.WAITS) and ("_to_copy" not in name or kwargs.get("device"))
        if name.startswith(("aten.index.", "aten.index_put")):
            waits = any(index is not None and index.dtype == torch.bool for index in args[1])
        assert not waits, f"the host waits for {name}"
        return func(*args, **kwargs)


# Options under which other things are drawn than under any id's own.
OTHER_DRAWS: list[tuple[str, dict[str, object]]] = [
    ("T-LN-P1-v0", {"reset_intermediate_indicators": False}),
    ("T-LN-P1-v0", {"maze_length_upper_bound": 120}),
    ("PlanningGame-3x3-v0", {"random_respawn": True}),
]


@pytest.mark.parametrize(("env_id", "options"), [*((env_id, {}) for env_id in TESTED), *OTHER_DRAWS])
class TestSeeds:
    """The seed determines everything."""

    def test_same_seed_same_rollout(self, env_id: str, options: dict[str, object]) -> None:
        one, two, other = (build(env_id, seed=seed, **options) for seed in (3, 3, 4))
        steps = one.horizon + 5
        expected = play(one, steps)
        assert_equal(play(two, steps), expected)
        assert not (play(other, steps) == expected).all()
        for again in (one, other):  # whatever was drawn before
            again.set_seed(3)
            assert_equal(play(again, steps), expected)


@pytest.mark.parametrize("env_id", TESTED)
class TestEveryEnv:
    """The contract of `MetaEnv`, for all registered ids: a new family is covered by its table."""

    def test_specs_agree_with_the_data(self, env_id: str) -> None:
        for options in ({}, {"episodes_per_task": 1}):
            check_env_specs(build(env_id, **options), break_when_any_done="both")

    def test_contract_entries_are_at_the_root_and_in_next(self, env_id: str) -> None:
        env = build(env_id)
        td = play(env, 2)
        always = {keys.OBSERVATION, keys.PREV_OBSERVATION, keys.PREV_ACTION, keys.PREV_REWARD, keys.IS_INIT}
        always |= {keys.EPISODE_DONE, keys.DONE, keys.TERMINATED, keys.TRUNCATED, *env.publish}
        assert always | {keys.ACTION, keys.NEXT} == set(td.keys())
        assert always | {keys.REWARD} == set(td[keys.NEXT].keys())
        assert td[keys.OBSERVATION].shape == (6, 2, env.obs_dim)
        assert td[keys.PREV_ACTION].shape == (6, 2, env.action_dim)

    def test_nothing_optional_is_published_unasked(self, env_id: str) -> None:
        assert not set(PUBLISHABLE) & set(make_env(env_id, 2).reset().keys())

    def test_global_generator_is_neither_read_nor_changed(self, env_id: str) -> None:
        before = torch.get_rng_state()
        play(build(env_id), 5)
        assert torch.equal(torch.get_rng_state(), before)

    def test_environments_get_distinct_tasks(self, env_id: str) -> None:
        env = build(env_id, num_envs=64)
        assert len(env.reset()[keys.TASK].unique(dim=0)) > 1

    def test_task_is_constant_until_done_and_redrawn_then(self, env_id: str) -> None:
        env = build(env_id, num_envs=32)
        td = play(env, 2 * env.horizon)
        changed = (td[keys.TASK][:, 1:] != td[keys.TASK][:, :-1]).any(-1, keepdim=True)
        done = td[keys.NEXT, keys.DONE][:, :-1]
        assert changed[done].any()
        within = (td[keys.TASK] != td[keys.NEXT, keys.TASK]).any()
        assert within == changed[~done].any() == env.task_changes

    def test_several_episodes_are_refused_where_they_make_no_sense(self, env_id: str) -> None:
        if make_env(env_id, 1).single_episode:
            with pytest.raises(ValueError, match="`episodes_per_task` is 2: .* expects 1"):
                make_env(env_id, 1, episodes_per_task=2)
        else:
            assert make_env(env_id, 1, episodes_per_task=2).episodes_per_task == 2

    def test_done_is_the_end_of_the_last_episode_and_the_flag_of_any(self, env_id: str) -> None:
        env = build(env_id)
        td = play(env, 2 * env.horizon)
        after = td[keys.NEXT]
        assert after[keys.DONE].any()
        if env.episodes_per_task > 1:
            assert torch.equal(after[keys.OBSERVATION][..., -1:], after[keys.EPISODE_DONE].float())
        ends = torch.zeros(env.num_envs, 1)
        for t in range(td.shape[1]):
            ends += after[keys.EPISODE_DONE][:, t]
            assert torch.equal(after[keys.DONE][:, t], ends == env.episodes_per_task)
            ends[after[keys.DONE][:, t]] = 0
        assert torch.equal(after[keys.TERMINATED] ^ after[keys.TRUNCATED], after[keys.DONE])

    def test_one_episode_per_task_has_no_flag(self, env_id: str) -> None:
        env, several = build(env_id, episodes_per_task=1), build(env_id)
        assert several.obs_dim - env.obs_dim == (several.episodes_per_task > 1)
        after = play(env, env.horizon)[keys.NEXT]
        assert torch.equal(after[keys.DONE], after[keys.EPISODE_DONE])

    def test_is_init_marks_exactly_the_first_steps_of_tasks(self, env_id: str) -> None:
        env = build(env_id)
        td = play(env, env.horizon + 5)
        assert td[keys.IS_INIT][:, 0].all()
        assert torch.equal(td[keys.IS_INIT][:, 1:], td[keys.NEXT, keys.DONE][:, :-1])
        assert not td[keys.NEXT, keys.IS_INIT].any()

    def test_last_transition_is_published(self, env_id: str) -> None:
        env = build(env_id)
        td = play(env, env.horizon + 5)
        after = td[keys.NEXT]
        action = td[keys.ACTION].float().view(*td.shape, env.action_dim)
        for start, last in ((td[keys.OBSERVATION], keys.PREV_OBSERVATION), (action, keys.PREV_ACTION)):
            assert torch.equal(after[last], start)
        assert torch.equal(after[keys.PREV_REWARD], after[keys.REWARD])
        for last in (keys.PREV_OBSERVATION, keys.PREV_ACTION, keys.PREV_REWARD):
            assert not td[last][td[keys.IS_INIT].squeeze(-1)].any()

    def test_state_dict_continues_exactly(self, env_id: str) -> None:
        env, fresh = build(env_id, seed=1), build(env_id, seed=2)
        td = play(env, env.episode_length // 2 + 1)[:, -1][keys.NEXT].exclude(keys.REWARD)
        file = io.BytesIO()
        torch.save(env.state_dict(), file)
        steps = env.horizon + 5
        expected = play(env, steps, seed=7, td=td.clone())
        file.seek(0)
        fresh.load_state_dict(torch.load(file, weights_only=True))
        assert_equal(play(fresh, steps, seed=7, td=td.clone()), expected)

    def test_state_dict_is_a_copy(self, env_id: str) -> None:
        env = build(env_id)
        env.reset()
        state = env.state_dict()
        expected = play(env, 3, td=env.fake_tensordict().exclude(keys.NEXT))
        env.load_state_dict(state)
        play(env, 3)
        env.load_state_dict(state)
        assert_equal(play(env, 3, td=env.fake_tensordict().exclude(keys.NEXT)), expected)

    def test_state_has_one_form_and_another_one_is_refused(self, env_id: str) -> None:
        env, fresh = build(env_id), build(env_id, seed=5)
        play(env, 3)
        form = {name: value.shape for name, value in env.state.items()}
        play(env, env.horizon)
        assert {name: value.shape for name, value in env.state.items()} == form
        for stranger in (build(env_id, num_envs=5), make_env("GridNavi-v0", 6, num_cells=9, publish=["belief"])):
            play(stranger, 3)
            for env_ in (env, fresh):
                before = env_.get_extra_state()
                with pytest.raises(ValueError, match=r"state '\w+' is (a tensor|missing).*: expected (a tensor|none)"):
                    env_.load_state_dict(stranger.state_dict())
                after = env_.get_extra_state()
                assert torch.equal(after["generator"], before["generator"])
                assert_equal(*(TensorDict(each["simulator"]) for each in (before, after)))

    def test_every_tensor_moves(self, env_id: str) -> None:
        """As to another device; the CPU shows it by copies."""
        env, undisturbed = (build(env_id, record_path=True) for _ in range(2))
        for each in (env, undisturbed):
            td = play(each, 3)[:, -1][keys.NEXT].exclude(keys.REWARD)
            each.inject("task", td[keys.TASK][0])
        before = tensors_in(env)
        env._apply(torch.clone)
        after = tensors_in(env)
        assert len(after) == len(before) > len(env.state)
        assert not {id(tensor) for tensor in before} & {id(tensor) for tensor in after}
        assert_equal(play(env, env.horizon, td=td.clone()), play(undisturbed, env.horizon, td=td.clone()))

    def test_steps_do_not_wait_for_the_device(self, env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
        env = build(env_id, record_path=True)
        env.reset()
        monkeypatch.setattr(MetaEnv, "may_contain", lambda self, mask: True)  # what a GPU is told
        generator = torch.Generator().manual_seed(0)
        actions = [random_action(env, generator) for _ in range(env.episode_length + 3)]
        on_host = isinstance(env, (HostMetaEnv, MujocoMetaEnv))
        with pytest.raises(AssertionError, match="the host waits") if on_host else nullcontext(), NoWaiting():
            for action in actions:
                env.step(TensorDict({keys.ACTION: action}, [6]))

    def test_fixed_task_is_played_after_every_reset(self, env_id: str) -> None:
        task = build(env_id, seed=1).reset()[keys.TASK][0]
        env = build(env_id, fixed_task=task.tolist())
        td = play(env, env.horizon + 5)
        assert td[keys.NEXT, keys.DONE].any()
        shown = td[keys.TASK][td[keys.IS_INIT].squeeze(-1)] if env.task_changes else td[keys.TASK]
        assert (shown == task).all()

    def test_partial_reset_touches_nothing_else(self, env_id: str) -> None:
        env, undisturbed = build(env_id), build(env_id)
        steps = min(4, env.episode_length - 2)
        for each in (env, undisturbed):
            td = play(each, steps)[:, -1][keys.NEXT].exclude(keys.REWARD)
        mask = torch.tensor([True, False, False, True, False, False])
        disturbed = env.reset(td.clone().set("_reset", mask.unsqueeze(-1)))
        assert disturbed[keys.IS_INIT].squeeze(-1).equal(mask)
        assert_equal(disturbed[~mask], td[~mask])
        assert not disturbed[keys.PREV_ACTION][mask].any()
        for each in (env, undisturbed):
            each.set_seed(9)  # the reset has drawn from the generator, which a family may draw from at every step
        a, b = play(env, 1, td=disturbed), play(undisturbed, 1, td=td)
        assert_equal(a[~mask], b[~mask])

    def test_tensors_handed_out_are_not_shared_with_the_simulator(self, env_id: str) -> None:
        env, undisturbed = build(env_id, num_envs=2), build(env_id, num_envs=2)
        expected = play(undisturbed, env.horizon + 3)
        assert expected[keys.NEXT, keys.DONE].any()
        generator = torch.Generator().manual_seed(0)
        td = env.reset()
        for t in range(env.horizon + 2):
            td.zero_()
            row, td = env.step_and_maybe_reset(td.set(keys.ACTION, random_action(env, generator)))
            assert_equal(row[keys.NEXT], expected[keys.NEXT][:, t])
            td = td.exclude(keys.ACTION)
            assert_equal(td, expected[:, t + 1].select(*td.keys()))
            row.zero_()

    def test_collector_resets_automatically(self, env_id: str) -> None:
        env = build(env_id)
        steps = env.horizon + 3
        collector = Collector(
            env, frames_per_batch=6 * steps, total_frames=12 * steps, auto_register_policy_transforms=True
        )
        batches = list(collector)
        collector.shutdown()
        td = torch.cat(batches, 1)
        assert td.shape == (6, 2 * steps)
        assert torch.equal(td[keys.IS_INIT][:, 1:], td[keys.NEXT, keys.DONE][:, :-1])
        assert td[keys.NEXT, keys.DONE].any()

    def test_transforms_can_be_put_around(self, env_id: str) -> None:
        env = TransformedEnv(build(env_id), RewardSum())
        td = env.rollout(5, break_when_any_done=False)
        assert td.shape == (6, 5)
        assert env.obs_dim == env.base_env.obs_dim
        env.close()

    def test_task_split_is_disjoint_and_complete(self, env_id: str) -> None:
        env = make_env(env_id, 1)
        if env.benchmark_split:  # the tests of its family know which tasks these are
            return
        if env.num_tasks is None:
            with pytest.raises(ValueError, match="`task_split`"):
                make_env(env_id, 1, task_split="test")
            return
        publish = [keys.TASK_ID]
        options = {"num_envs": 8192, "publish": publish, "test_fraction": 0.25, "split_seed": 5}
        splits = ("all", "train", "test")
        all_, train, test = (
            set(make_env(env_id, task_split=split, **options).reset()[keys.TASK_ID].tolist()) for split in splits
        )
        assert train | test == all_
        assert not train & test
        assert len(test) == max(round(0.25 * len(all_)), 1)

    def test_pictures_show_one_environment(self, env_id: str) -> None:
        env = build(env_id, record_path=True)
        with pytest.raises(RuntimeError, match="reset"):
            env.render_frame(0)
        play(env, min(7, env.episode_length - 1))
        if isinstance(env, MujocoMetaEnv) and not opengl.works():
            with pytest.raises(RuntimeError, match=opengl.MISSING):
                env.render_frame(0)
            return
        before = env.state_dict()
        one, again, other = (env.render_frame(index) for index in (0, 0, 1))
        assert one.shape == (400, 400, 3)
        assert one.dtype == np.uint8
        assert len(np.unique(one.reshape(-1, 3), axis=0)) > 3
        assert np.array_equal(one, again)
        assert not np.array_equal(one, other)
        assert_equal(*(TensorDict(each["_extra_state"]["simulator"], [6]) for each in (before, env.state_dict())))
        with pytest.raises(ValueError, match="`index` is 6: expected a number from 0 to 5"):
            env.render_frame(6)

    def test_unsupported_publication_is_refused(self, env_id: str) -> None:
        for name in {"tusk", *PUBLISHABLE} - set(supported(make_env(env_id, 1))):
            with pytest.raises(ValueError, match=f"`publish` holds '{name}'.*expected names out of"):
                make_env(env_id, 2, publish=[name])

    def test_documentation(self, env_id: str) -> None:
        assert description(env_id)
        assert "\n" not in description(env_id)
        known = landmarks(env_id)
        order = [known[name] for name in PLAYERS if name in known]
        assert order == sorted(order)
        assert len(order) == len(known)


class Countdown(MetaEnv):
    """Episodes of drawn length, "Maze" type: the step that ends one returns the next one's first observation.

    The observation is the number of steps left. Even lengths terminate, odd ones are truncated. The action is paid.
    """

    shows_next_episode = True

    def __init__(self, num_envs: int, episodes_per_task: int = 2, *, scale: float = 1.0, **options: object) -> None:
        layout = Layout(
            episode_length=5,
            observation_low=(0.0,),
            observation_high=(5.0,),
            action_low=(-1.0, -2.0),
            action_high=(1.0, 2.0),
            task_dim=1,
        )
        super().__init__(num_envs, episodes_per_task, layout, **options)
        self.injectable = ("task", "length")
        self.scale = scale

    def sample_tasks(self, n: int) -> Tensor:
        return torch.rand(n, 1, generator=self._generator)

    def reset_state(self, mask: Tensor) -> None:
        def sample() -> Tensor:
            return torch.randint(2, 6, (self.num_envs,), generator=self._generator)

        length = self.draw("length", sample)
        self.write("left", mask, length)
        self.write("odd", mask, length % 2 == 1)

    def observe(self) -> Tensor:
        return self.state["left"].unsqueeze(-1).float()

    def transition(self, action: Tensor) -> Transition:
        self.state["left"] = self.state["left"] - 1
        done = self.state["left"] <= 0
        return Transition(self.observe(), self.scale * action.sum(-1), done, ~self.state["odd"])

    def publish_success(self) -> Tensor:
        return self.state["left"].unsqueeze(-1) == 0

    def parse_injection(self, name: str, value: Tensor) -> Tensor:
        return value.expand(self.num_envs, *value.shape[1:])


class TestPath:
    """The path of the current episode, for pictures."""

    def test_path_is_where_the_agent_has_been_in_this_episode(self) -> None:
        env = GridNavi(3, 2, num_steps=4, record_path=True)
        td = play(env, 6)
        places = torch.cat((torch.zeros(3, 1, 2), td[keys.NEXT, keys.OBSERVATION][:, 4:, :2]), 1)  # 4 steps, 2 steps
        for index in range(3):
            assert torch.equal(env.path(index), places[index])

    def test_path_starts_anew_where_a_reset_is(self) -> None:
        env = GridNavi(2, 1, record_path=True)
        td = play(env, 3)[:, -1][keys.NEXT].exclude(keys.REWARD)
        env.reset(td.set("_reset", torch.tensor([[True], [False]])))
        assert [len(env.path(index)) for index in (0, 1)] == [1, 4]

    def test_path_continues_from_a_state_dict(self) -> None:
        env, fresh = GridNavi(2, 1, record_path=True), GridNavi(2, 1, seed=5, record_path=True)
        play(env, 3)
        fresh.load_state_dict(env.state_dict())
        assert torch.equal(fresh.path(1), env.path(1))

    def test_without_a_record_there_is_only_the_place(self) -> None:
        env = GridNavi(2, 1)
        td = play(env, 3)
        assert "path" not in env.state
        assert torch.equal(env.path(1), td[keys.NEXT, keys.OBSERVATION][1, 2:])

    def test_family_without_picture_says_so(self) -> None:
        env = Countdown(2)
        env.reset()
        with pytest.raises(NotImplementedError, match="Countdown has no picture"):
            env.render_frame(0)


class TestBase:
    """What the base class does beyond what the registered families use."""

    def test_specs_of_continuous_actions(self) -> None:
        env = Countdown(3, publish=["success"])
        check_env_specs(env, break_when_any_done="both")
        assert env.action_spec.shape == (3, 2)
        assert (env.action_dim, env.num_actions, env.obs_dim, env.horizon) == (2, None, 2, 10)

    def test_next_episode_is_shown_at_an_inner_end(self) -> None:
        env = Countdown(2)
        env.inject("length", torch.tensor([2, 3]), torch.tensor([4, 9]), torch.tensor([9, 5]))
        after = play(env, 8)[keys.NEXT]
        assert after[keys.OBSERVATION][0, :6].tolist() == [[1, 0], [4, 1], [3, 0], [2, 0], [1, 0], [0, 1]]
        assert after[keys.OBSERVATION][1].tolist() == [[2, 0], [1, 0], [5, 1], [4, 0], [3, 0], [2, 0], [1, 0], [0, 1]]
        assert after[keys.DONE][..., 0].nonzero()[:2].tolist() == [[0, 5], [1, 7]]

    def test_ends_are_terminated_or_truncated(self) -> None:
        env = Countdown(2, episodes_per_task=1)
        env.inject("length", torch.tensor([2, 3]))
        after = play(env, 3)[keys.NEXT]
        assert after[keys.TERMINATED][0, 1].item()
        assert not after[keys.TRUNCATED][0].any()
        assert after[keys.TRUNCATED][1, 2].item()
        assert not after[keys.TERMINATED][1].any()

    def test_variable_lengths_continue_from_a_state_dict(self) -> None:
        env = Countdown(16, seed=1)
        td = play(env, 7)[:, -1][keys.NEXT].exclude(keys.REWARD)
        state = env.state_dict()
        expected = play(env, 20, td=td.clone())
        fresh = Countdown(16, seed=5)
        fresh.load_state_dict(state)
        assert_equal(play(fresh, 20, td=td.clone()), expected)

    def test_fixed_task_gives_way_to_injected_ones_and_is_no_state(self) -> None:
        fixed, drawn = GridNavi(2, 1, publish=["task"], fixed_task=[3, 4]), GridNavi(2, 1, publish=["task"])
        fixed.inject("task", [2, 2])
        shown = [fixed.reset()[keys.TASK].tolist() for _ in range(3)]
        assert shown == [[[2, 2]] * 2, [[3, 4]] * 2, [[3, 4]] * 2]
        state = fixed.get_extra_state()
        drawn.reset()
        assert state["simulator"].keys() == drawn.get_extra_state()["simulator"].keys()
        drawn.load_state_dict(fixed.state_dict())
        assert drawn.reset()[keys.TASK].tolist() != [[3, 4]] * 2
        assert fixed.reset()[keys.TASK].tolist() == [[3, 4]] * 2

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"fixed_task": [0, 0]}, r"`fixed_task` is \[0, 0\]: .*expected goal cells"),
            ({"fixed_task": [3, 4, 5]}, r"`fixed_task` is \[3, 4, 5\]: .*expected \(2,\)"),
            ({"fixed_task": "corner"}, "`fixed_task` is 'corner': expected the numbers"),
            ({"fixed_task": 3}, "`fixed_task` is 3: expected the numbers"),
            ({"fixed_task": [3, 4], "task_split": "test"}, r"`fixed_task` is \[3, 4\] and `task_split` is 'test'"),
        ],
    )
    def test_impossible_fixed_tasks_are_named(self, options: dict[str, object], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            GridNavi(2, **options)

    def test_another_device_draws_from_a_generator_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        env = GridNavi(2, seed=3)
        env.reset()
        expected = torch.randint(2**62, (), generator=env._generator.clone_state()).item()
        made = []

        def make_generator(device: torch.device) -> torch.Generator:  # there is none of the device "meta"
            made.append(str(device))
            return generator()

        def move(self: MetaEnv, device: str) -> MetaEnv:  # specs cannot move there
            self._device = torch.device(device)
            return nn.Module.to(self, device)

        generator = torch.Generator
        monkeypatch.setattr(torch, "Generator", make_generator)
        monkeypatch.setattr(EnvBase, "to", move)
        assert env.to("meta") is env
        assert made == ["meta"]
        assert env._generator.initial_seed() == expected
        assert {tensor.device.type for tensor in tensors_in(env)} == {"meta"}
        unmoved = GridNavi(2, seed=3)
        own = unmoved._generator
        assert unmoved.to("cpu")._generator is own

    def test_injected_values_are_spent_in_order_and_only_on_resets(self) -> None:
        env = Countdown(2, publish=[])
        env.inject("length", torch.tensor([[4]]).squeeze(0), torch.tensor([2]))
        td = env.reset()
        assert (td[keys.OBSERVATION][:, 0] == 4).all()
        td = play(env, 4, td=td)
        assert (td[keys.NEXT, keys.OBSERVATION][:, -1, 0] == 2).all()

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"num_envs": 0}, "`num_envs` is 0"),
            ({"num_envs": 2.0}, "`num_envs` is 2.0"),
            ({"episodes_per_task": 0}, "`episodes_per_task` is 0"),
            ({"task_split": "validation"}, "`task_split` is 'validation'"),
            ({"task_split": "test"}, "`task_split` is 'test', but there is no finite set"),
            ({"test_fraction": 1.0}, "`test_fraction` is 1.0"),
            ({"seed": 1.5}, "`seed` is 1.5: expected an integer"),
            ({"seed": True}, "`seed` is True: expected an integer"),
            ({"seed": 2**64}, "`seed` is 18446744073709551616: expected an integer"),
            ({"split_seed": "a"}, "`split_seed` is 'a': expected an integer"),
            ({"split_seed": None}, "`split_seed` is None: expected an integer"),
            ({"device": "gpu"}, "`device` is 'gpu': expected one that is present"),
            ({"device": "xla"}, "`device` is 'xla': expected one that is present"),
            ({"device": 1.5}, "`device` is 1.5: expected one that is present"),
            ({"publish": "success"}, "`publish` is 'success': expected a list of names"),
            ({"publish": None}, "`publish` is None: expected a list of names"),
            ({"publish": ["belief"]}, "`publish` holds 'belief', which Countdown does not offer: .* success"),
        ],
    )
    def test_bad_arguments_are_named(self, options: dict[str, object], words: str) -> None:
        with pytest.raises(ValueError, match=words) as error:
            Countdown(**{"num_envs": 2, **options})
        assert "\n" not in str(error.value)

    def test_seeds_may_be_numpy_integers(self) -> None:
        seeds = {"seed": np.int64(3), "split_seed": np.uint8(5)}
        options = {"publish": ["task"], "task_split": "train"}
        one, two = GridNavi(8, **seeds, **options), GridNavi(8, seed=3, split_seed=5, **options)
        assert torch.equal(one.reset()[keys.TASK], two.reset()[keys.TASK])

    def test_unknown_injection_is_named(self) -> None:
        with pytest.raises(ValueError, match="'start'.*expected .*length"):
            Countdown(2).inject("start", 1)

    def test_step_before_reset_is_refused(self) -> None:
        env = Countdown(2)
        with pytest.raises(RuntimeError, match="reset"):
            env.step(TensorDict({keys.ACTION: torch.zeros(2, 2)}, [2]))

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"num_envs": 3}, r"state 'task' is a tensor \(3,\): expected a tensor \(2,\)"),
            ({"record_path": True}, r"state 'path' is a tensor \(2, 16, 2\): expected none"),
            ({"publish": []}, r"state 'candidates' is missing: expected a tensor \(2, 21\)"),
            ({"num_cells": 6}, r"state 'candidates' is a tensor \(2, 32\): expected a tensor \(2, 21\)"),
            ({"episodes_per_task": 1}, r"state 'observation' is a tensor \(2, 2\): expected a tensor \(2, 3\)"),
        ],
    )
    def test_states_of_other_environments_are_refused(self, options: dict[str, object], words: str) -> None:
        other = GridNavi(**{"num_envs": 2, "publish": ["belief"], **options})
        other.reset()
        env, undisturbed = (GridNavi(2, publish=["belief", "task"], seed=4) for _ in range(2))
        for each in (env, undisturbed):
            each.inject("task", [4, 3])
        with pytest.raises(ValueError, match=words):
            env.load_state_dict(other.state_dict())
        assert not env.state
        assert_equal(play(env, env.horizon + 2), play(undisturbed, env.horizon + 2))

    def test_state_of_another_device_is_refused(self) -> None:
        env, other = Countdown(2), Countdown(2)
        env.reset(), other.reset()
        state = other.get_extra_state()
        before = env.get_extra_state()
        with pytest.raises(ValueError, match="generator's state is of another device: expected cpu"):
            env.set_extra_state({**state, "generator": state["generator"][:16]})  # as long as a GPU's
        assert torch.equal(env.state["task"], before["simulator"]["task"])

    def test_state_before_the_first_reset_may_be_taken(self) -> None:
        env, fresh = Countdown(2, seed=1), Countdown(2, seed=2)
        fresh.load_state_dict(env.state_dict())
        assert_equal(play(fresh, 5), play(env, 5))


class TestNames:
    """`make_env` and what else takes an id."""

    def test_short_and_full_names_are_the_same(self) -> None:
        short, full = (make_env(name, 3, seed=1) for name in ("GridNavi-v0", "hyperrl/GridNavi-v0"))
        assert_equal(play(short, 5), play(full, 5))
        assert landmarks("hyperrl/GridNavi-v0") == landmarks("GridNavi-v0")

    def test_ids_of_other_modules(self, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
        source = (
            "import gymnasium\nfrom hyperrl.envs.gridworld import GridNavi\n"
            "class Own(GridNavi): pass\n"
            "gymnasium.register('own/Mine-v0', entry_point='own_module:Own', kwargs={'num_cells': 6})\n"
            "gymnasium.register('Plain-v0', entry_point=lambda: None)\n"
        )
        (tmp_path / "own_module.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        env = make_env("own_module:own/Mine-v0", 2, publish=["belief"])
        assert env.belief_dim == 36
        assert landmarks("own_module:own/Mine-v0") == {}
        with pytest.raises(ValueError, match="not a MetaEnv"):
            make_env("own_module:Plain-v0", 2)

    def test_tables_of_other_modules(self, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
        source = (
            "from hyperrl.envs.registration import EnvEntry, register_family\n"
            "path = 'hyperrl.envs.gridworld:GridNavi'\n"
            "ENVS = (EnvEntry('Listed-v0', path, 'a larger grid', {'num_cells': 6}, {'task_known': 45.0}),)\n"
            "register_family(ENVS, namespace='other')\n"
        )
        (tmp_path / "other_module.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        name = "other_module:other/Listed-v0"
        assert description(name) == "a larger grid"
        assert landmarks(name) == {"task_known": 45.0}
        assert make_env(name, 2).belief_dim == 36
        assert make_env(name, 2, num_cells=7).belief_dim == 49
        assert gymnasium.make(name).observation_space.high[0] == 5
        assert gymnasium.make_vec(name, num_envs=3).observation_space.high.shape == (3, 3)
        assert description("hyperrl.envs:hyperrl/GridNavi-v0") == description("GridNavi-v0")
        assert "Listed-v0" not in env_ids()

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("GridNav-v0", "unknown environment id 'GridNav-v0': the nearest valid name is 'GridNavi-v0'"),
            ("hyperrl/Grid7-15", "nearest valid name is 'Grid7-15-v0'"),
            ("no_such_module:Grid-v0", "names module 'no_such_module'"),
        ],
    )
    def test_unknown_ids_are_named_in_one_line(self, name: str, words: str) -> None:
        for call in (lambda: make_env(name, 2), lambda: landmarks(name), lambda: description(name)):
            with pytest.raises(ValueError, match=words) as error:
                call()
            assert "\n" not in str(error.value)

    def test_unknown_options_are_named_in_one_line(self) -> None:
        with pytest.raises(ValueError, match="option 'num_cell' .* nearest valid name is 'num_cells'") as error:
            make_env("GridNavi-v0", 2, num_cell=5)
        assert "\n" not in str(error.value)
        with pytest.raises(ValueError, match="nearest valid name is 'task_split'"):
            make_env("GridNavi-v0", 2, tasks_split="test")

    def test_options_win_over_the_registered_ones(self) -> None:
        assert make_env("Grid7-15-v0", 2, num_cells=6, episodes_per_task=3).num_tasks == 36

    def test_importing_the_package_registers_the_ids(self) -> None:
        """The module before the colon is all that Gymnasium imports."""
        code = "import gymnasium; print(gymnasium.make('hyperrl.envs:hyperrl/GridNavi-v0').reset()[0])"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[0. 0. 0.]\n"
