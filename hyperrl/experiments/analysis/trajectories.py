"""Real inputs: what an environment answers to a trained agent, or to random actions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from torch import Tensor

from hyperrl import keys
from hyperrl.data.rollouts import evaluate
from hyperrl.envs import make_env
from hyperrl.errors import ConfigError
from hyperrl.experiments.agents import load_agent
from hyperrl.experiments.analysis.memories import Memory, is_trained
from hyperrl.modules.encoder import Transition


def play(source: str, tasks: int, seed: int) -> TensorDictBase:
    """Plays one meta-episode of some tasks.

    Args:
        source: a checkpoint or bundle, whose agent plays in its environment, or the id of an environment, in which
            actions are random.
        tasks: number of tasks.
        seed: seed of tasks and actions.

    Returns:
        Their trajectories, cut to the length of the shortest, ``[tasks]``; see `hyperrl.keys`.

    Raises:
        ConfigError: there is no such file or environment.
    """
    if is_trained(source):
        agent = load_agent(source)
        env = agent.make_env(tasks, seed=seed)
        actor: Callable[[TensorDictBase], TensorDictBase] = agent.learner.actor(torch.Generator().manual_seed(seed))
    else:
        try:
            env = make_env(source, tasks, seed=seed)
        except ValueError as error:
            raise ConfigError(f"trajectories: {error}; or a checkpoint (.ckpt)") from error
        actor = env.rand_action
    with torch.random.fork_rng(devices=[]):  # where random actions are drawn from
        torch.manual_seed(seed)
        trajectories = evaluate(env, actor, extra=())[keys.TRAJECTORIES]
    length = int(trajectories.pop(keys.LENGTH).min())
    return trajectories.apply(lambda steps: steps[:, :length])


@torch.no_grad()
def embedded(memory: Memory, trajectories: TensorDictBase, steps: int) -> Tensor:
    """The features ``[R, T, D]`` of the first T transitions."""
    return memory.embed(Transition.last(trajectories))[:, :steps]
