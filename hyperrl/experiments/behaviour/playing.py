"""Playing step by step: what videos, recordings and comparisons have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from tensordict import TensorDictBase
from torchrl.envs.utils import ExplorationType, set_exploration_type, step_mdp

from hyperrl import keys
from hyperrl.envs import MetaEnv

Actor = Callable[[TensorDictBase], TensorDictBase]


def steps(env: MetaEnv, start: TensorDictBase, actor: Actor, sampled: bool = False) -> Iterator[TensorDictBase]:
    """Play on and on, and yield each step, before environments whose task has ended get another one.

    Args:
        env: the environments.
        start: what their reset returned `[B]`.
        actor: the acting policy, as for `hyperrl.data.rollouts.evaluate`.
        sampled: whether actions are drawn from the policy, in the place of its mode.

    Yields:
        Steps `[B]` as TorchRL writes them: the root is before the action, `next` after it.
    """
    exploration = ExplorationType.RANDOM if sampled else ExplorationType.DETERMINISTIC
    td = start
    while True:
        with torch.no_grad(), set_exploration_type(exploration):  # not while the caller has the step
            stepped = env.step(actor(td))
        yield stepped
        td = env.maybe_reset(step_mdp(stepped))


def random_actor(env: MetaEnv, seed: int) -> Actor:
    """Uniform actions from a generator of its own."""
    generator = torch.Generator(env.device).manual_seed(seed)

    def act(td: TensorDictBase) -> TensorDictBase:
        if env.num_actions is not None:
            action = torch.randint(env.num_actions, (env.num_envs,), generator=generator, device=env.device)
        else:
            low, high = env.action_spec.space.low, env.action_spec.space.high
            action = low + (high - low) * torch.rand(low.shape, generator=generator, device=env.device)
        return td.set(keys.ACTION, action)

    return act
