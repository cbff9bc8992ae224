"""``hyperrl export``: a trained agent as a bundle, with a program of one step that needs nothing but PyTorch."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from tensordict import TensorDictBase
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_map

from hyperrl import __version__, keys
from hyperrl.data.rollouts import ActingPolicy
from hyperrl.envs import MetaEnv
from hyperrl.errors import ConfigError
from hyperrl.experiments.agents import CONFIG, WEIGHTS, TrainedAgent, load_agent
from hyperrl.experiments.behaviour.playing import steps
from hyperrl.experiments.one_step import OneStep

PROGRAM, README = "step.pt2", "README.md"
TOLERANCE = 1e-4
_TASKS = 3  # not 1, for which a tracer would specialise


class Difference(NamedTuple):
    """How far a program is from the agent that it was made of, at most.

    Attributes:
        action: of an action; of a discrete one, how much its logit lies below the largest.
        memory: of an entry of the memory.
        steps: over how many steps.
    """

    action: float
    memory: float
    steps: int

    def __str__(self) -> str:
        return f"largest difference over {self.steps} steps: {self.action:.2g} (action), {self.memory:.2g} (memory)"


def export(checkpoint: str, output: str = "bundle", seed: int = 0, compact: bool = False) -> Difference:
    """Writes a trained agent as a bundle: weights, configuration, and one step of acting as a program.

    The program is compared with the agent over a meta-episode of fresh tasks; if they differ, nothing is left behind.

    Args:
        checkpoint: checkpoint of a training, or another bundle.
        output: directory of the bundle; it is made if it is missing.
        seed: seed of the tasks of the comparison.
        compact: parameters rounded to bf16 and no program, to share an agent in a quarter of the room or less; how far
            it then is from the original is only said.

    Returns:
        How far the program, or the rounded agent, is from the agent.

    Raises:
        ConfigError: the checkpoint cannot be read, the agent cannot be exported, or its program acts in another way.
    """
    agent = load_agent(checkpoint)
    directory = Path(output)
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"--output {output} is a file; expected a directory")
    write = _write_compact if compact else _write
    difference = write(agent, directory, seed)
    Console().print(f"bundle      {directory}\n{difference}", markup=False, highlight=False, soft_wrap=True)
    return difference


def _write(agent: TrainedAgent, directory: Path, seed: int) -> Difference:
    """Writes all of a bundle, if the program acts as the agent does."""
    file = io.BytesIO()
    torch.export.save(export_step(agent), file)
    program = torch.export.load(file)  # what is read again, not what was written
    difference = compare(program.module(), agent, seed)
    if not (difference.action <= TOLERANCE and difference.memory <= TOLERANCE):  # NaN is not
        raise ConfigError(f"checkpoint {agent.source}: the program acts in another way; {difference}")
    _write_agent(agent, directory, agent.learner.state_dict(), _readme(agent, difference))
    (directory / PROGRAM).write_bytes(file.getvalue())
    return difference


def _write_compact(agent: TrainedAgent, directory: Path, seed: int) -> Difference:
    """Writes a bundle of parameters in bf16; running statistics stay as they are."""
    rounded = copy.deepcopy(agent)
    small = {name: parameter.bfloat16() for name, parameter in agent.learner.named_parameters()}
    rounded.learner.load_state_dict(small, strict=False)
    difference = compare(rounded.step, agent, seed)
    _write_agent(agent, directory, {**agent.learner.state_dict(), **small}, _compact_readme(agent, difference))
    return difference


def _write_agent(agent: TrainedAgent, directory: Path, weights: dict[str, Tensor], readme: str) -> None:
    """Writes what `load_agent` reads, and what a reader does."""
    directory.mkdir(parents=True, exist_ok=True)
    torch.save(weights, directory / WEIGHTS)
    (directory / CONFIG).write_text(agent.config, encoding="utf-8")
    (directory / README).write_text(readme, encoding="utf-8")


def export_step(agent: TrainedAgent) -> ExportedProgram:
    """The step of an agent as a program for any number of tasks at once.

    Raises:
        ConfigError: a part of the agent cannot be traced.
    """
    step = copy.deepcopy(agent.step).eval()
    # Which products are shared among equal observations depends on the data; a program has one way.
    step.agent.policy._sees_state_alone = False
    example = _example(agent.step)
    dims = tree_map(lambda _: {0: Dim("batch")}, example)
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(step, (), example, dynamic_shapes=dims)
    except Exception as error:  # whatever a part of the model raises when it is traced
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"{agent.source} cannot be exported ({agent.name}): {reason}") from error


@torch.no_grad()
def compare(step: Callable[..., tuple[Tensor, Tensor]], agent: TrainedAgent, seed: int = 0) -> Difference:
    """Runs a step beside the agent, over a meta-episode, on several tasks at once and on the first of them alone.

    Args:
        step: takes what `OneStep` takes, by name.
        agent: the original, which acts.
        seed: seed of the tasks.
    """
    env = agent.make_env(_TASKS, seed=seed)
    try:
        rollout, memory = _play(env, agent.learner.actor(torch.Generator().manual_seed(seed)))
    finally:
        env.close(raise_if_closed=False)
    both = [_compare(step, agent, rollout[:rows], memory[:rows]) for rows in (_TASKS, 1)]
    action, memory = torch.tensor([each[:2] for each in both]).amax(0).tolist()  # NaN, if there is one
    return Difference(action, memory, rollout.shape[1])


def _play(env: MetaEnv, actor: ActingPolicy) -> tuple[TensorDictBase, Tensor]:
    """A meta-episode of the first environment: rollout ``[N, T]`` and what the encoder remembers ``[N, T, S]``."""
    played, memories = [], []
    for step in steps(env, env.reset(), actor):
        played.append(step)
        assert actor.memory is not None
        memories.append(actor.memory)
        if step[keys.NEXT, keys.DONE][0]:
            break
    rollout = torch.stack(played, 1)
    actor.attach_memory(rollout, None)
    return rollout, torch.stack(memories, 1)


def _compare(
    forward: Callable[..., tuple[Tensor, Tensor]], agent: TrainedAgent, rollout: TensorDictBase, memory: Tensor
) -> Difference:
    """A step's differences from a rollout ``[N, T]`` of the agent that remembered ``memory [N, T, S]``."""
    step = agent.step
    latent, _ = agent.learner.agent.encoder.encode(rollout)
    parameters, _ = agent.learner.agent.evaluate(rollout, latent)
    kept, actions, remembered = step.initial_memory(len(rollout)), [], []
    for td in rollout.unbind(1):
        given = {"given": {name: td[name] for name in step.needs}} if step.needs else {}
        kept = kept.where(~td[keys.IS_INIT], 0)
        action, kept = forward(observation=td[keys.OBSERVATION], reward=td[keys.PREV_REWARD], memory=kept, **given)
        actions.append(action)
        remembered.append(step.split(kept).encoder)
        # It goes on with the agent's own action: after another one, observations would be others, too.
        step.split(kept).action.copy_(td[keys.ACTION].view(len(td), -1))
    chosen = torch.stack(actions, 1).flatten(0, 1)
    if keys.LOGITS in parameters:
        logits = parameters[keys.LOGITS]
        differs = logits.amax(-1) - logits.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    else:
        differs = (chosen - parameters[keys.LOC]).abs()
    return Difference(differs.max().item(), _largest(torch.stack(remembered, 1) - memory), rollout.shape[1])


def _largest(difference: Tensor) -> float:
    """The largest absolute value; NaN if there is one; 0 for an empty memory."""
    return difference.abs().max().item() if difference.numel() else 0.0


def _example(step: OneStep) -> dict[str, Any]:
    """Arguments of a step, by name."""
    widths = {keys.OBSERVATION: step.env_info.obs_dim, "reward": 1, "memory": step.memory_dim}
    given = {
        name: torch.zeros(_TASKS, dtype=torch.int64) if width is None else torch.zeros(_TASKS, width)
        for name, width in step.needs.items()
    }
    return {name: torch.zeros(_TASKS, width) for name, width in widths.items()} | ({"given": given} if given else {})


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what PyTorch says of its own tracing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _readme(agent: TrainedAgent, difference: Difference) -> str:
    """What the bundle is, and how it is used."""
    step = agent.step
    named = ", ".join(f'"{name}": {name}' for name in step.needs)
    given = f", given={{{named}}}" if named else ""
    shapes = "".join(f", {name} [N{'' if width is None else f', {width}'}]" for name, width in step.needs.items())
    dims = step.env_info.actions
    action = f"[N] (0 to {dims.num_actions - 1})" if dims.num_actions else f"[N, {dims.dim}]"
    return f"""{_head(agent, "all weights and running statistics, a state dict")}
| {PROGRAM} | one step of acting as a `torch.export` program |
{_with_hyperrl(agent)}
With PyTorch alone:

```py
import torch

step = torch.export.load("{PROGRAM}").module()
memory = torch.zeros(1, {step.memory_dim})
action, memory = step(observation=observation, reward=reward, memory=memory{given})  # once per step
```

Shapes, float32 where nothing else is said: observation [N, {step.env_info.obs_dim}], reward of the last step, unscaled,
[N, 1], memory [N, {step.memory_dim}]{shapes}, action {action}. A task begins with a memory of zeros. Where a task has
several episodes, the memory goes on from one to the next, and the last element of the observation says where one has
just ended.

The program was compared with the agent over a meta-episode; {difference}.
"""


def _compact_readme(agent: TrainedAgent, difference: Difference) -> str:
    """The same of a bundle without a program."""
    return f"""{_head(agent, "weights in bf16 and running statistics, a state dict")}
{_with_hyperrl(agent)}
Rounding the weights changed the agent; over a meta-episode that it did not act in itself, {difference}.
"""


def _head(agent: TrainedAgent, weights: str) -> str:
    """Name and origin, and a table of the files that `load_agent` reads."""
    return f"""# {agent.name} on {agent.data.env_id}

Written by `hyperrl export` {__version__} (PyTorch {torch.__version__}).

| file | |
|---|---|
| {WEIGHTS} | {weights} |
| {CONFIG} | the configuration of the training |"""


def _with_hyperrl(agent: TrainedAgent) -> str:
    """How HyperRL uses the bundle."""
    extra = "".join(f", {name}={name}" for name in agent.step.needs)
    return f"""
With HyperRL:

```py
import hyperrl

agent = hyperrl.load_agent(".")
memory = agent.initial_memory(1)
action, memory = agent.act(observation, reward, memory{extra})  # once per step
```
"""
