"""Writes the regression vectors that `tests/test_regression.py` checks: python tests/data/generate.py [NAME ...]

Only after a change of behaviour that is meant, and stated in the change log. Nothing here is random: tasks, actions and
parameters are formulas, so the vectors depend on our code alone and not on anybody's random streams.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from hyperrl import keys
from hyperrl.env_info import EnvInfo
from hyperrl.envs import MetaEnv, make_env
from hyperrl.modules.agent import Actor, Agent
from hyperrl.modules.distributions import action_distribution
from hyperrl.modules.encoder import EncoderConfig, Transition
from hyperrl.modules.meta_ppo import MetaPPO
from hyperrl.modules.policy import PolicyConfig
from hyperrl.modules.ppo import PPOConfig

Vectors = dict[str, np.ndarray]

ENVS = 4
STEPS = 40  # ends inside the second task of every environment: a task has 2 episodes of 15 steps
# The actions below reach the first goals of environments 0 and 3.
TASKS = (((1, 2), (3, 2), (4, 4), (2, 1)), ((2, 3), (4, 0), (3, 3), (2, 4)))
GRID = EnvInfo(3, 1, 5, horizon=30)
ENCODER = EncoderConfig(5, 3, 2, 6, 2, full_transitions=True)
POLICY = PolicyConfig(state_embedding_dim=5, latent_embedding_dim=3, normalize_latent=True, layers=[6, 4])
# Not the clip fraction, which rounding can change.
LOGGED = (
    "loss/total",
    "loss/objective",
    "loss/critic",
    "loss/entropy",
    "ppo/kl",
    "grad_norm/policy",
    "grad_norm/encoder",
)
MINIBATCHES = ((0, 2), (1, 3), (3, 0), (2, 1))


def actions(step: int) -> Tensor:
    """Every environment's action `[B]`; the environments differ."""
    row = torch.arange(ENVS)
    return (step * (row + 1) + row + step // 7) % 5


def grid_env() -> MetaEnv:
    """Two episodes per task; the tasks of the first two resets are given."""
    env = make_env("GridNavi-v0", ENVS, episodes_per_task=2, publish=(keys.TASK, keys.BELIEF))
    env.inject(keys.TASK, *(torch.tensor(tasks) for tasks in TASKS))
    return env


def play(act: Callable[[TensorDictBase, int], None]) -> TensorDictBase:
    """A rollout `[B, T]` on the grid; `act` writes the action."""
    env = grid_env()
    td, rows = env.reset(), []
    for step in range(STEPS):
        act(td, step)
        row, td = env.step_and_maybe_reset(td)
        rows.append(row)
    return torch.stack(rows, 1)


def fill(module: nn.Module) -> None:
    """Sets all parameters by a formula."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            wave = torch.sin(0.7 * torch.arange(parameter.numel(), dtype=torch.float64) + number)
            parameter.copy_(0.4 * wave.view_as(parameter))


def wave(*shape: int, phase: float) -> Tensor:
    """A tensor of a shape, by a formula."""
    return torch.cos(0.9 * torch.arange(int(np.prod(shape)), dtype=torch.float64) + phase).view(shape).float()


def grid_navi() -> Vectors:
    """What GridNavi returns for given tasks and actions."""

    def act(td: TensorDictBase, step: int) -> None:
        td[keys.ACTION] = actions(step)

    rollout = play(act)
    after = {f"next_{key}": rollout[keys.NEXT, key] for key in (keys.OBSERVATION, keys.BELIEF, keys.TASK, keys.REWARD)}
    flags = {key: rollout[keys.NEXT, key] for key in (keys.DONE, keys.TERMINATED, keys.EPISODE_DONE)}
    root = {key: rollout[key] for key in (keys.OBSERVATION, keys.IS_INIT, keys.PREV_OBSERVATION, keys.PREV_ACTION)}
    return {name: value.numpy() for name, value in {**root, **flags, **after}.items()}


def agent_forward() -> Vectors:
    """Latents, distribution, values and gradient norms of a recurrent hypernetwork on a sequence with resets."""
    agent = Agent(GRID, ENCODER, POLICY)
    fill(agent)
    agent.policy.update_statistics(wave(9, 3, phase=5), wave(9, 4, phase=6))
    steps = Transition(*(wave(2, 7, width, phase=width) for width in (3, 1, 1, 3)))
    reset = torch.zeros(2, 7, dtype=torch.bool)
    reset[0, 3] = reset[1, 0] = reset[1, 5] = True
    latent = agent.encoder(steps, reset, wave(2, agent.encoder.state_dim, phase=1))
    observations = TensorDict({keys.OBSERVATION: steps.observation}, [2, 7])
    parameters, value = agent.evaluate(observations, latent)
    distribution = action_distribution(parameters)
    log_prob = distribution.log_prob(torch.arange(14) % 5)
    functional = log_prob.sum() + value.square().sum() + distribution.entropy().mean()
    gradients = torch.autograd.grad(functional, list(agent.parameters()))
    found = {"prior": agent.encoder.prior(1), "latent": latent, "value": value, "log_prob": log_prob, **parameters}
    found["gradient_norms"] = torch.stack([gradient.norm() for gradient in gradients])
    return {name: tensor.detach().numpy() for name, tensor in found.items()}


class Update(MetaPPO):
    """One update on a given rollout with given minibatches."""

    rollout: TensorDictBase
    found: dict[str, Tensor]

    def training_step(self, batch: int, batch_idx: int) -> None:
        """The pieces of an update, in their order."""
        rollout, latent = self.with_advantages(self.rollout)
        parts = [self.optimize(rollout, torch.tensor(index)) for index in MINIBATCHES]
        self.agent.update_statistics(rollout, latent)
        self.found = {name: rollout[name] for name in (keys.STATE_VALUE, keys.ADVANTAGE, keys.VALUE_TARGET)}
        for name in LOGGED:
            self.found[name] = torch.stack([part[name] for part in parts])


def ppo_update() -> Vectors:
    """One PPO update on a grid rollout, minibatches of whole environments."""
    ppo = PPOConfig(lr=1e-2, num_minibatches=2, entropy_coeff=0.01)
    learner = Update(GRID, ENVS, ENVS * STEPS, ENCODER, POLICY, ppo)
    fill(learner.agent)

    actor = Actor(learner.agent, torch.Generator())

    @torch.no_grad()
    def act(td: TensorDictBase, step: int) -> None:
        latent, actor.memory = learner.agent.encoder.act(td, actor.memory)
        parameters = learner.agent.policy.distribution(learner.agent.inputs(td, latent))
        td[keys.ACTION] = actions(step)
        td[keys.ACTION_LOG_PROB] = action_distribution(parameters).log_prob(td[keys.ACTION])

    learner.rollout = play(act)
    actor.attach_memory(learner.rollout, None)
    Trainer(accelerator="cpu", devices=1, max_epochs=1, barebones=True).fit(learner, range(1))
    policy = learner.agent.policy
    found = {
        **learner.found,
        "parameters": nn.utils.parameters_to_vector(learner.agent.parameters()),
        "statistics": torch.cat([x.double().flatten() for name, x in policy.named_buffers() if "norm" in name]),
        "reward_statistics": torch.stack(list(learner.reward_normalizer.buffers())),
    }
    return {name: value.detach().numpy() for name, value in found.items()}


SCENARIOS: dict[str, Callable[[], Vectors]] = {
    "grid_navi": grid_navi,
    "agent_forward": agent_forward,
    "ppo_update": ppo_update,
}

if __name__ == "__main__":
    for scenario in sys.argv[1:] or SCENARIOS:
        np.savez_compressed(Path(__file__).parent / f"{scenario}.npz", **SCENARIOS[scenario]())  # type: ignore[arg-type]
