"""Golden trajectories of environments: replay a recorded one in ours, with its random quantities injected.

A trajectory is played in row 0 of a batch of two; row 1 plays another task, so that a leak between environments shows.
Every array of a file is either compared or consumed; one that is neither fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import yaml
from collection import HERE
from support import Golden
from tensordict import TensorDict
from torch import Tensor

from hyperrl import keys
from hyperrl.envs import MetaEnv, make_env
from hyperrl.envs.base import Transition

ATOL = 1e-6

Arrays = dict[str, np.ndarray]
# Recorded names of what is published; beside them, state_id and task_id where they are published.
_SHOWN = {"obs": keys.OBSERVATION, "task_vec": keys.TASK, "belief": keys.BELIEF}
_IDS = {"state_id": keys.STATE_ID, "task_id": keys.TASK_ID}


def build(golden: Golden, family: type[MetaEnv], options: Mapping[str, Any], publish: tuple[str, ...]) -> MetaEnv:
    """The environment of a file, twice: a registered one from our table alone, which thereby is compared, too.

    Args:
        golden: the file.
        family: our class.
        options: its arguments, used for ids that are not registered.
        publish: what to publish.
    """
    meta = golden.meta
    common = {"episodes_per_task": meta["K"] if meta["level"] == "bamdp" else 1, "publish": publish}
    env = make_env(meta["env_id"], 2, **common) if meta["registered"] else family(2, **common, **options)
    assert isinstance(env, family)
    assert env.shows_next_episode == (meta["env_type"] == "Maze")
    return env


def replay(env: MetaEnv, actions: Tensor, other: Tensor) -> Arrays:
    """Play recorded actions ``[T, ...]`` in row 0 and others in row 1.

    Returns:
        What ours gives in row 0, under the names of the recorded arrays (`golden/envs/README.md`), and the ids that
        are published.
    """
    terminal = _TerminalObservation(env)
    frames, steps = [_frame(env, env.reset())], []
    for action in torch.stack((actions, other), 1):
        episode = int(env.state["episode"][0])
        td = env.step(TensorDict({keys.ACTION: action.to(env.action_spec.dtype)}, [env.num_envs]))[keys.NEXT]
        frames.append(_frame(env, td))
        steps.append(_step(env, td, episode, terminal.value))
    stacked = {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}
    return stacked | {name: np.stack([step[name] for step in steps]) for name in steps[0]}


def compare(ours: Mapping[str, np.ndarray], golden: Golden, expected: Mapping[str, np.ndarray] | None = None) -> None:
    """Assert that every array of the file that was not read yet equals ours.

    Args:
        ours: our arrays by the recorded names.
        golden: the file.
        expected: what is expected in the place of recorded arrays, where ours differ on purpose.
    """
    for name in golden.unread:
        assert name in ours, f"array {name!r} is neither compared nor consumed"
        target = (expected or {}).get(name, golden[name].numpy())
        assert ours[name].shape == target.shape, name
        np.testing.assert_allclose(ours[name], target, rtol=0, atol=ATOL, err_msg=name)


def excluded(kind: str) -> list[str]:
    """The conditions under which `exclusions.yaml` changes what is expected of files of a kind, in their order."""
    return [
        rule["condition"] for rule in yaml.safe_load((HERE / "exclusions.yaml").read_text()) if rule["kind"] == kind
    ]


class _TerminalObservation:
    """Row 0 of what the last inner step ended with, which "Maze" environments do not show at an inner end."""

    def __init__(self, env: MetaEnv) -> None:
        self.value = np.empty(0)
        transition = env.transition

        def spy(action: Tensor) -> Transition:
            result = transition(action)
            self.value = result.observation[0].numpy()
            return result

        env.transition = spy  # type: ignore[method-assign]


def _frame(env: MetaEnv, td: TensorDict) -> Arrays:
    there = (keys.OBSERVATION, *env.publish)
    shown = {name: td[key][0].numpy().astype(np.float64) for name, key in _SHOWN.items() if key in there}
    return shown | {name: td[key][0].numpy() for name, key in _IDS.items() if key in there}


def _step(env: MetaEnv, td: TensorDict, episode: int, terminal: np.ndarray) -> Arrays:
    done, episode_done = bool(td[keys.DONE][0]), bool(td[keys.EPISODE_DONE][0])
    start = end = np.full(env.obs_dim, np.nan)
    if episode_done and not done:  # the next episode has begun within this step
        if env.shows_next_episode:
            start, end = td[keys.OBSERVATION][0].numpy(), np.append(terminal, 1.0)
        else:
            start = np.append(env.observe()[0].numpy(), 0.0)
    return {
        "reward": td[keys.REWARD][0, 0].numpy(),
        "done": np.array(done),
        "done_mdp": np.array(episode_done),
        "truncated": td[keys.TRUNCATED][0, 0].numpy(),
        "episode": np.array(episode),
        "start_state": start,
        "term_state": end,
    }
