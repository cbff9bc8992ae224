"""Trained agents from checkpoints or bundles: state dicts and their configuration, nothing pickled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor

from hyperrl import configuration, keys
from hyperrl.data.datamodule import MetaDataModule
from hyperrl.envs import MetaEnv, make_env
from hyperrl.errors import ConfigError
from hyperrl.experiments.one_step import OneStep
from hyperrl.modules.meta_ppo import MetaPPO

WEIGHTS, CONFIG = "weights.pt", "config.yaml"
_LINKS = ("env_info", "num_envs", "frames")
_TELLING = (keys.TASK, keys.TASK_ID, keys.STATE_ID, keys.BELIEF, keys.SUCCESS)


@dataclass(frozen=True)
class TrainedAgent:
    """A trained agent, which acts with the mode of its policy, and the environment that it was trained in.

    Attributes:
        learner: what was trained, in evaluation mode, on the CPU.
        data: the data of its training, as the configuration has it.
        config: its configuration as YAML.
        source: the checkpoint or bundle.
        frames: environment steps that it was trained for; 0 where nobody knows, as in a bundle.

    Example:
        >>> agent = load_agent("bundle")
        >>> memory = agent.initial_memory(1)
        >>> action, memory = agent.act(observation, reward, memory)
    """

    learner: MetaPPO
    data: MetaDataModule
    config: str
    source: Path
    frames: int = 0

    @property
    def step(self) -> OneStep:
        """One step of acting as a function of tensors."""
        return OneStep(self.learner.agent, self.data.env_info)

    @property
    def name(self) -> str:
        """The name of the model, such as rnn_hn; ``custom`` if it is no shipped one."""
        return configuration.model_name(yaml.safe_load(self.config))

    def initial_memory(self, batch: int = 1) -> Tensor:
        """What the agent remembers at the start of a task, ``[batch, M]``.

        A row of it replaces that of an agent whose task has ended.
        """
        return self.step.initial_memory(batch)

    @torch.no_grad()
    def act(self, observation: Tensor, reward: Tensor, memory: Tensor, **given: Tensor) -> tuple[Tensor, Tensor]:
        """Takes one step of each of N tasks.

        Args:
            observation: what the environment shows ``[N, O]``; with several episodes per task, the flag included.
            reward: of the last step, in raw units ``[N]`` or ``[N, 1]``; at the start of a task it is not looked at.
            memory: what :meth:`initial_memory` or the last call gave ``[N, M]``.
            **given: what else the agent needs, see `OneStep.needs`.

        Returns:
            Action ``[N]``, or ``[N, A]`` if actions are continuous, and memory ``[N, M]``.
        """
        return self.step(observation, reward.view(-1, 1), memory, given)

    def make_env(self, num_envs: int, *, seed: int = 0, stage: str = "test", **options: Any) -> MetaEnv:
        """The environment of validation or test, which publishes all that there is to know.

        Args:
            num_envs: number of environments, each with a task of its own.
            seed: seed of the tasks.
            stage: ``test`` or ``val``, which differ where tasks were held out.
            **options: options of the environment that differ from the configured ones.
        """
        data = self.data
        split = {"task_split": "test"} if stage == "test" and data.splits else {}
        return telling_env(data.env_id, num_envs, seed=seed, **{**data.eval_options, **split, **options})


def load_agent(source: str | Path) -> TrainedAgent:
    """Loads a trained agent.

    Args:
        source: a checkpoint of ``hyperrl fit``, or the directory of a bundle of ``hyperrl export``.

    Raises:
        ConfigError: it is neither.
    """
    path = Path(source)
    if path.is_dir():
        config, weights, frames = *_read_bundle(path), 0
    else:
        checkpoint = configuration.load_checkpoint(str(source))
        config, weights = checkpoint[configuration.CHECKPOINT_CONFIG], checkpoint["state_dict"]
        frames = checkpoint["learner"]["frames"]
    learner, data = build(yaml.safe_load(config))
    configuration.check_fits(str(source), weights, learner.state_dict())
    learner.load_state_dict(weights)
    return TrainedAgent(learner.eval().requires_grad_(False), data, config, path, frames)


def build(config: dict[str, Any]) -> tuple[MetaPPO, MetaDataModule]:
    """Builds the untrained learner of a configuration, and its data.

    Args:
        config: a resolved configuration, as in checkpoints; only ``model`` and ``data`` are looked at.

    Raises:
        ConfigError: the configuration does not fit this version.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(MetaDataModule, "data")
    parser.add_class_arguments(MetaPPO, "model")
    for name in _LINKS:
        parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")
    model = {name: value for name, value in config["model"].items() if name not in _LINKS}
    with torch.random.fork_rng(devices=[]):  # initial weights that are replaced should not shift the caller's draws
        try:
            objects = parser.instantiate_classes(parser.parse_object({"data": config["data"], "model": model}))
        except ArgumentError as error:
            raise ConfigError(configuration.one_line(str(error))) from error
    return objects["model"], objects["data"]


def telling_env(env_id: str, num_envs: int, *, publish: Sequence[str] = (), **options: Any) -> MetaEnv:
    """Builds an environment that publishes all it can, and keeps paths.

    Args:
        env_id: environment id.
        num_envs: number of environments.
        publish: what it has to publish in any case.
        **options: its options.

    Raises:
        ConfigError: an argument is wrong.
    """
    try:
        example = make_env(env_id, 1, **options)
        offered = [name for name in _TELLING if hasattr(example, f"publish_{name}") and _has(example, name)]
        example.close(raise_if_closed=False)
        names = tuple(dict.fromkeys((*publish, *offered)))
        return make_env(env_id, num_envs, publish=names, record_path=True, **options)
    except ValueError as error:
        raise ConfigError(f"data.env: {error}") from error


def _has(env: MetaEnv, name: str) -> bool:
    """Whether there is something behind what an environment could publish."""
    sizes = {keys.TASK_ID: env.num_tasks, keys.STATE_ID: env.num_states, keys.BELIEF: env.belief_dim}
    reported = name != keys.SUCCESS or getattr(env, "reports_success", True)
    return bool(sizes.get(name, True)) and reported


def _read_bundle(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Configuration and weights."""
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise ConfigError(f"{path} has no {name}; expected a directory that `hyperrl export` wrote")
    try:
        weights = torch.load(path / WEIGHTS, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its parsers raise
        raise ConfigError(f"{path / WEIGHTS}: not readable ({type(error).__name__})") from error
    return (path / CONFIG).read_text(encoding="utf-8"), weights
