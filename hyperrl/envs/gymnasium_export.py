"""Our environments as Gymnasium environments: a Gymnasium episode is a meta-episode, K episodes on one task.

`register_family` enters both classes below into Gymnasium's registry, for `gymnasium.make` and `gymnasium.make_vec`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, Space
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded

from hyperrl import keys
from hyperrl.envs.base import MetaEnv
from hyperrl.envs.registration import build_env, load_class

# Not "episode": that is where Gymnasium's `RecordEpisodeStatistics` and others write the return of an episode.
_EPISODE_INDEX = "episode_index"
_RGB = "rgb_array"


class MetaEpisodeEnv(gymnasium.Env):
    """One environment of a `MetaEnv` class for `gymnasium.make`.

    Observations are float32 `[O]`, with K > 1 with the flag of an episode's end as the last element. `info` holds
    `task` (where the class can publish it), whatever else is in `publish`, `episode_done`, whether an inner episode
    has just ended, and `episode_index`, the number of the episode, from 0, to which the step belongs.

    Args:
        meta_env: the class, or `module:Name`.
        render_mode: `rgb_array` lets `render` return pictures; None draws nothing.
        seed: seed of the generator until a reset is given one; None takes a random one.
        publish: what to put into `info` besides the task, see `MetaEnv`.
        **options: arguments of the class, such as `episodes_per_task`.

    Raises:
        ValueError: if an option is unknown or its value out of range.

    Example:
        >>> env = gymnasium.make("hyperrl.envs:hyperrl/GridNavi-v0", episodes_per_task=2)
        >>> observation, info = env.reset(seed=3, options={"task": [3, 4]})
        >>> observation.tolist(), info["task"].tolist(), info["episode_index"]
        ([0.0, 0.0, 0.0], [3.0, 4.0], 0)
    """

    metadata = {"render_modes": [_RGB], "render_fps": 10}

    def __init__(
        self,
        meta_env: str | type[MetaEnv],
        *,
        render_mode: str | None = None,
        seed: int | None = None,
        publish: Sequence[str] = (),
        **options: Any,
    ) -> None:
        self.render_mode = render_mode
        self.meta_env = _build(meta_env, 1, render_mode, seed, publish, options)
        self.observation_space = _observation_space(self.meta_env)
        self.action_space = _action_space(self.meta_env)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a meta-episode.

        Args:
            seed: seed of the generator; None goes on with it.
            options: `task`, the task to play, in the units of the published task; without it, one is drawn.

        Raises:
            ValueError: if there is another option, or the task is impossible.
        """
        super().reset(seed=seed)
        _prepare(self.meta_env, seed, options)
        td = self.meta_env.reset()
        return _numpy(td[keys.OBSERVATION])[0], _first(_info(self.meta_env, td))

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one step; `terminated` and `truncated` are ends of the meta-episode."""
        td, info = _step(self.meta_env, self.action_space, action)
        reward, terminated, truncated = (td[name].item() for name in (keys.REWARD, keys.TERMINATED, keys.TRUNCATED))
        return _numpy(td[keys.OBSERVATION])[0], reward, terminated, truncated, _first(info)

    def render(self) -> np.ndarray | None:
        """Return a picture `[H, W, 3]` uint8 of the state; None without a render mode."""
        return None if self.render_mode is None else self.meta_env.render_frame(0)

    def close(self) -> None:
        """Close the environment; may be called again."""
        self.meta_env.close()


class MetaEpisodeVectorEnv(VectorEnv):
    """A batch of environments of a `MetaEnv` class for `gymnasium.make_vec`: one native batch, not copies of one.

    An environment whose meta-episode ends starts the next one within the same step (`AutoresetMode.SAME_STEP`): the
    observation and `info` are then those of the reset, and `info["final_obs"]` and `info["final_info"]` hold those of
    the end. Entries of `info` are those of `MetaEpisodeEnv`, `[B, ...]`, each with a mask under `_<name>`.

    Args:
        meta_env: the class, or `module:Name`.
        num_envs: B, the number of environments.
        render_mode: `rgb_array` lets `render` return pictures; None draws nothing.
        seed: seed of the generator until a reset is given one; None takes a random one.
        publish: what to put into `info` besides the task, see `MetaEnv`.
        **options: arguments of the class, such as `episodes_per_task`, or `device`.

    Raises:
        ValueError: if an option is unknown or its value out of range.

    Example:
        >>> envs = gymnasium.make_vec("hyperrl.envs:hyperrl/GridNavi-v0", num_envs=16)
        >>> observation, info = envs.reset(seed=3)
        >>> observation.shape, info["task"].shape
        ((16, 3), (16, 2))
    """

    metadata = {**MetaEpisodeEnv.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self,
        meta_env: str | type[MetaEnv],
        num_envs: int = 1,
        *,
        render_mode: str | None = None,
        seed: int | None = None,
        publish: Sequence[str] = (),
        **options: Any,
    ) -> None:
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.meta_env = _build(meta_env, num_envs, render_mode, seed, publish, options)
        self.single_observation_space = _observation_space(self.meta_env)
        self.single_action_space = _action_space(self.meta_env)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._shown: TensorDictBase | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start meta-episodes.

        Args:
            seed: seed of the generator, one for all environments; None goes on with it.
            options: `task`, the task to play, `[task_dim]` or `[B, task_dim]`, in the units of the published task;
                `reset_mask`, which environments to reset, `[B]` bool; without it, all.

        Raises:
            ValueError: if there is another option, a task is impossible, or `reset_mask` is no such mask.
            RuntimeError: if only some environments are reset and no reset of all came before.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        mask = self._parse_mask(options.pop("reset_mask", np.ones(self.num_envs, dtype=bool)))
        _prepare(self.meta_env, seed, options)
        self._shown = self.meta_env.reset() if mask.all() else self._reset_some(self._shown, mask)
        return _numpy(self._shown[keys.OBSERVATION]), _masked(_info(self.meta_env, self._shown), mask)

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one step everywhere; returns what `MetaEpisodeEnv` returns, with leading dimension B.

        Where a meta-episode ended, observation and `info` are those of the reset (`episode_index` is 0).
        """
        after, info = _step(self.meta_env, self.action_space, actions)
        reward, terminated, truncated, done = (
            _numpy(after[name].squeeze(-1)) for name in (keys.REWARD, keys.TERMINATED, keys.TRUNCATED, keys.DONE)
        )
        self._shown = after.exclude(keys.REWARD)
        last: dict[str, Any] = {}
        if done.any():
            last = _masked({"final_obs": _final(after, done), "final_info": _masked(info, done)}, done)
            self._shown = self._reset_some(self._shown, done)
            index = np.where(done, 0, info[_EPISODE_INDEX])
            info = _info(self.meta_env, self._shown) | {_EPISODE_INDEX: index}
        observation, every = _numpy(self._shown[keys.OBSERVATION]), np.ones(self.num_envs, dtype=bool)
        return observation, reward, terminated, truncated, _masked(info, every) | last

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return a picture `[H, W, 3]` uint8 of every environment; None without a render mode."""
        if self.render_mode is None:
            return None
        return tuple(self.meta_env.render_frame(index) for index in range(self.num_envs))

    def close_extras(self) -> None:
        """Close the environments."""
        self.meta_env.close()

    def _parse_mask(self, mask: Any) -> np.ndarray:
        mask = np.asarray(mask)
        if mask.shape != (self.num_envs,) or mask.dtype != bool:
            found = f"is an array of {mask.dtype} with shape {mask.shape}"
            raise ValueError(f"`reset_mask` {found}: expected bools with shape {(self.num_envs,)}")
        if self._shown is None and not mask.all():
            raise RuntimeError("call reset() of all environments before a reset of some")
        return mask

    def _reset_some(self, shown: TensorDictBase, mask: np.ndarray) -> TensorDictBase:
        rows = torch.as_tensor(mask, device=self.meta_env.device).view(self.num_envs, 1)
        return self.meta_env.reset(shown.set("_reset", rows))


def _build(
    meta_env: str | type[MetaEnv],
    num_envs: int,
    render_mode: str | None,
    seed: int | None,
    publish: Sequence[str],
    options: dict[str, Any],
) -> MetaEnv:
    if render_mode not in (None, _RGB):
        raise ValueError(f"`render_mode` is {render_mode!r}: expected {_RGB!r} or None")
    env_class = load_class(meta_env)
    if hasattr(env_class, f"publish_{keys.TASK}"):
        publish = (keys.TASK, *publish)
    if render_mode is not None:
        options = {"record_path": True, **options}
    env = build_env(env_class, num_envs, seed=seed or 0, publish=publish, **options)
    if seed is None:
        env.set_seed(None)
    return env


def _observation_space(env: MetaEnv) -> Box:
    return _box(env.observation_spec[keys.OBSERVATION])


def _action_space(env: MetaEnv) -> Space[Any]:
    return _box(env.action_spec) if env.num_actions is None else Discrete(env.num_actions)


def _box(spec: Bounded) -> Box:
    """The space of one environment."""
    low, high = _numpy(spec.space.low[0]), _numpy(spec.space.high[0])
    return Box(low, high, dtype=np.float32)


def _prepare(env: MetaEnv, seed: int | None, options: dict[str, Any] | None) -> None:
    """Take over what a reset is given; the task comes last, so that no failed reset leaves one behind."""
    for name in options or {}:
        if name != keys.TASK:
            raise ValueError(f"`options` holds {name!r}: expected {keys.TASK!r}")
    if seed is not None:
        env.set_seed(seed, static_seed=True)
    if options:
        env.inject(keys.TASK, np.asarray(options[keys.TASK], dtype=np.float32))


def _step(env: MetaEnv, space: Space[Any], action: Any) -> tuple[TensorDictBase, dict[str, np.ndarray]]:
    """Step with an action of a space; return what is under `next`, and what belongs into `info`."""
    if not env.state:
        raise RuntimeError("call reset() before step()")
    tensor, episode = _parse_action(env, space, action), _numpy(env.state["episode"])
    after = env.step(TensorDict({keys.ACTION: tensor}, env.batch_size, device=env.device))[keys.NEXT]
    return after, _info(env, after) | {_EPISODE_INDEX: episode}


def _parse_action(env: MetaEnv, space: Space[Any], action: Any) -> Tensor:
    """Check an action; what continuous ones beyond the bounds do is up to the environment (quirk R2)."""
    spec = env.action_spec
    if env.num_actions is None:
        action = np.asarray(action, dtype=np.float32)
        valid, expected = action.shape == space.shape and np.isfinite(action).all(), "finite numbers with the shape"
    else:
        valid, expected = space.contains(action), "an element"
    if not valid:
        raise ValueError(" ".join(f"the action is {action!r}: expected {expected} of {space}".split()))
    return torch.as_tensor(np.asarray(action), dtype=spec.dtype, device=env.device).view(spec.shape)


def _info(env: MetaEnv, td: TensorDictBase) -> dict[str, np.ndarray]:
    """What belongs into `info`, `[B, ...]` each."""
    flags = (keys.EPISODE_DONE, keys.SUCCESS)  # [B, 1] in a TensorDict
    entries = {name: td[name].squeeze(-1) if name in flags else td[name] for name in (keys.EPISODE_DONE, *env.publish)}
    return {name: _numpy(value) for name, value in ({_EPISODE_INDEX: env.state["episode"]} | entries).items()}


def _first(info: dict[str, np.ndarray]) -> dict[str, Any]:
    """`info` of the first environment, with numbers and bools as such."""
    return {name: value[0].item() if value.ndim == 1 else value[0] for name, value in info.items()}


def _masked(info: dict[str, Any], mask: np.ndarray) -> dict[str, Any]:
    """Gymnasium's form of an `info` of many environments: under `_<name>`, for which of them it holds."""
    return info | {f"_{name}": mask.copy() for name in info}


def _final(td: TensorDictBase, done: np.ndarray) -> np.ndarray:
    """Last observations where a meta-episode is done, as Gymnasium has them: objects `[B]`, None elsewhere."""
    final = np.full(len(done), None, dtype=object)
    observation = _numpy(td[keys.OBSERVATION])
    for index in done.nonzero()[0]:
        final[index] = observation[index].copy()
    return final


def _numpy(tensor: Tensor) -> np.ndarray:
    """An array of its own."""
    return tensor.numpy(force=True).copy()
