"""Environments that other software steps on the CPU, one after another, in this process and in workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import numpy as np
import torch
from torch import Tensor

from hyperrl import keys
from hyperrl.envs.base import MetaEnv, Transition
from hyperrl.envs.layout import Layout, MetaEnvOptions
from hyperrl.workers.batch import Batch
from hyperrl.workers.pool import Pool

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class HostMetaEnv(MetaEnv):
    """B environments, each stepped by itself.

    The state holds what an episode starts with and its actions so far: `load_state_dict` plays them again, and so is
    exact for environments that these determine. The numbers are the same for every number of workers.

    A subclass writes `sample_tasks`, and `reset_state` if episodes start with more than a task.

    Args:
        num_envs: B, the number of environments.
        episodes_per_task: K, the number of episodes per task.
        layout: sizes and bounds of the family.
        build: makes some of the environments, in whichever process.
        num_workers: number of processes besides this one among which the environments are divided.
        **options: what all environments take, see `MetaEnvOptions`.
    """

    starts_with: ClassVar[tuple[str, ...]] = (keys.TASK,)
    """What of the state an episode starts with."""

    def __init__(
        self,
        num_envs: int,
        episodes_per_task: int,
        layout: Layout,
        build: Callable[[int], Batch],
        num_workers: int,
        **options: Unpack[MetaEnvOptions],
    ) -> None:
        if not isinstance(num_workers, int) or isinstance(num_workers, bool) or num_workers < 0:
            raise ValueError(f"`num_workers` is {num_workers!r}: expected an integer of at least 0")
        super().__init__(num_envs, episodes_per_task, layout, **options)
        self.num_workers = num_workers
        self._pool = Pool(build, num_envs, num_workers)
        self._shown = np.zeros((num_envs, len(layout.observation_low)), dtype=np.float32)
        shape = (1, self.episode_length, *self.action_spec.shape[1:])
        self._no_actions = torch.zeros(shape, dtype=self.action_spec.dtype, device=self.device)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close the environments of all processes and end the workers."""
        super().close(raise_if_closed=raise_if_closed)
        self._pool.close()

    def may_contain(self, mask: Tensor) -> bool:
        """Look at `mask` on every device: the host needs what is on it at every step, anyway."""
        return bool(mask.numpy(force=True).any())

    # The inner episode -------------------------------------------------------------------------------------------

    def reset_task(self, mask: Tensor) -> None:
        """Forget the success of the last step, which is published after the end of an inner episode."""
        self.write(keys.SUCCESS, mask, torch.zeros_like(mask))

    def reset_state(self, mask: Tensor) -> None:
        """Begin episodes with their tasks."""
        self.write("step", mask, self._zero)
        self.write("actions", mask, self._no_actions)
        for name in ("over", keys.TERMINATED):
            self.write(name, mask, torch.zeros_like(mask))
        self.restart(mask.nonzero().squeeze(-1).numpy(force=True))

    def restart(self, rows: np.ndarray) -> list[np.ndarray]:
        """Begin the current episodes of the environments `rows` `[n]`; return what else is told of them."""
        if not len(rows):
            return []
        start = (self.state[name].numpy(force=True)[rows] for name in self.starts_with)
        self._shown[rows], *told = self._pool.call("reset", rows, *start)
        return told

    def observe(self) -> Tensor:
        """First observations of episodes `[B, O]`."""
        return torch.tensor(self._shown, device=self.device)

    def transition(self, action: Tensor) -> Transition:
        """Step all environments but those that wait for a reset because their last episode is over."""
        state = self.state
        running = ~state["over"]
        rows = running.nonzero().squeeze(-1)
        state["actions"][rows, state["step"][rows]] = action[rows]
        state["step"] = state["step"] + running
        reward = np.zeros(self.num_envs, dtype=np.float32)
        ends = torch.stack((state["over"], state[keys.TERMINATED], state[keys.SUCCESS]), -1).cpu().numpy()
        index = rows.numpy(force=True)
        if len(index):
            taken = action.numpy(force=True)[index]
            self._shown[index], reward[index], ends[index] = self._pool.call("step", index, taken)
        over, terminated, success = torch.tensor(ends, device=self.device).unbind(-1)
        state["over"], state[keys.TERMINATED], state[keys.SUCCESS] = over, terminated, success
        return Transition(self.observe(), torch.tensor(reward, device=self.device), over.clone(), terminated)

    # State and pictures ------------------------------------------------------------------------------------------

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue exactly where the state was taken: the current episodes are played again."""
        super().set_extra_state(state)
        if not self.state:  # taken before the first reset
            return
        self.restart(np.arange(self.num_envs))
        steps, actions = (self.state[name].numpy(force=True) for name in ("step", "actions"))
        rows = steps.nonzero()[0]
        if len(rows):
            (self._shown[rows],) = self._pool.call("replay", rows, steps[rows], actions[rows])

    def draw_frame(self, axes: Axes, index: int) -> None:
        """Show the picture that the environment draws."""
        (pictures,) = self._pool.call("render", np.array([index]))
        axes.imshow(pictures[0])
        axes.set_axis_off()
        axes.set_title(f"{self.task_title(index)}, episode {int(self.state['episode'][index]) + 1}")

    def task_title(self, index: int) -> str:
        """What a picture calls the task of environment `index`."""
        return "task " + ", ".join(f"{value:.4g}" for value in self.publish_task()[index].tolist())

    # What can be published ---------------------------------------------------------------------------------------

    def publish_task(self) -> Tensor:
        """Task `[B, task_dim]`."""
        return self.state[keys.TASK].clone()

    def publish_success(self) -> Tensor:
        """Whether the last step was a success `[B, 1]`; False where the environment does not say."""
        return self.state[keys.SUCCESS].unsqueeze(-1).clone()
