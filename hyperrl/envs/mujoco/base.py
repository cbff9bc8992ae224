"""`MujocoMetaEnv`: B simulations of one robot, stepped together by the engine's own threads."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Unpack

import mujoco
import numpy as np
import torch
from mujoco.batch import Batch
from numpy.typing import NDArray
from torch import Tensor

from hyperrl import keys
from hyperrl.envs.base import MetaEnv, Transition
from hyperrl.envs.layout import Layout, MetaEnvOptions, check_positive
from hyperrl.envs.mujoco.models import ROBOTS, load_model
from hyperrl.envs.mujoco.rendering import RobotPictures

_log = logging.getLogger(__name__)
Array = NDArray[np.float64]


class MujocoOptions(MetaEnvOptions, total=False):
    """Options that every robot takes.

    Attributes:
        episode_length: H, the time limit of an episode.
        num_threads: threads of the physics engine; None takes as many as torch has.
    """

    episode_length: int
    num_threads: int | None


class Tasks(NamedTuple):
    """What describes the tasks of a robot.

    Attributes:
        dim: length of the task vector.
        known: all tasks as rows, if there are finitely many; then they have numbers and can be divided.
        belief_dim: length of the belief, or None if there is none.
    """

    dim: int
    known: Sequence[Sequence[float]] | None = None
    belief_dim: int | None = None


class MujocoMetaEnv(RobotPictures, MetaEnv):
    """A robot of `mujoco.batch`, whose task is what it is paid for or how it is built.

    A step is some steps of the engine under constant control, see `ROBOTS`. Actions are not clipped here: the engine
    clamps controls to [-1, 1], while rewards and memory see the raw action (quirk M3). Positions of bodies (`xpos`) and
    contact forces are those at the beginning of the last step of the engine; `qpos` and `qvel` are current (quirk M4).
    The first action of an episode sees the last observation of the episode before it.

    An episode is truncated at its time limit. Where the engine warns (of numbers that are not finite, or of too many
    contacts), the episode is terminated with a reward of 0, and `engine_warnings` counts it.

    The physics runs on the CPU, whatever `device` is. A subclass names its robot and writes `place`, `observation` and
    `reward`, where needed also `fallen`; if it has infinitely many tasks, `sample_tasks` and `possible`, too.

    Args:
        num_envs: B, the number of environments.
        episodes_per_task: K, the number of episodes per task.
        tasks: what describes the tasks.
        episode_length: H, the time limit of an episode.
        num_threads: threads of the physics engine; None takes as many as torch has.
        **options: what all environments take, see `MetaEnvOptions`.

    Raises:
        ValueError: if an argument is out of range.
    """

    robot: ClassVar[str]
    """Name in `ROBOTS`."""

    observation_size: ClassVar[int]
    """Number of elements of an observation, without flag."""

    noise_qpos: ClassVar[float]
    """Half width of the uniform noise on positions at an episode's start."""

    noise_qvel: ClassVar[float] = 0.1
    """Deviation of the normal noise on velocities at an episode's start."""

    def __init__(
        self,
        num_envs: int,
        episodes_per_task: int,
        tasks: Tasks,
        *,
        episode_length: int = 200,
        num_threads: int | None = None,
        **options: Unpack[MetaEnvOptions],
    ) -> None:
        check_positive("episode_length", episode_length)
        if num_threads is not None:
            check_positive("num_threads", num_threads)
        model = load_model(self.robot)
        layout = Layout(
            episode_length,
            [-math.inf] * self.observation_size,
            [math.inf] * self.observation_size,
            action_low=[-1.0] * model.nu,
            action_high=[1.0] * model.nu,
            task_dim=tasks.dim,
            num_tasks=None if tasks.known is None else len(tasks.known),
            belief_dim=tasks.belief_dim,
        )
        super().__init__(num_envs, episodes_per_task, layout, **options)
        known = torch.tensor(tasks.known or [], dtype=torch.float64, device=self.device).view(-1, tasks.dim)
        self._known = known  # no rows, if there are infinitely many
        self._drawn = self.split_tasks(known) if len(known) else known
        self.injectable = (keys.TASK, "qpos", "qvel")
        self.engine_warnings: Counter[str] = Counter()
        self.num_threads = num_threads
        self._substeps = ROBOTS[self.robot].substeps
        self.dt = self._substeps * model.opt.timestep
        _keep_messages_out_of_files()
        self._batch = Batch(model, num_envs, min(num_threads or torch.get_num_threads(), num_envs))
        self._qpos, self._qvel = self._batch.bind("qpos"), self._batch.bind("qvel")
        self._torso = self._batch.bind("xpos")[:, 1]
        self._ctrl, self._warning = self._batch.bind("ctrl"), self._batch.warning
        self._place = self.place().copy()
        self._step_count = np.zeros(num_envs, dtype=np.int64)
        self._task: Array = np.zeros((num_envs, tasks.dim))

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Free what pictures are drawn with; the engine goes with the environment."""
        super().close(raise_if_closed=raise_if_closed)
        self._renderer = None

    def may_contain(self, mask: Tensor) -> bool:
        """Look at `mask` on every device: the host waits for the actions at every step, anyway."""
        return bool(mask.numpy(force=True).any())

    # Written by a subclass ---------------------------------------------------------------------------------------

    def place(self) -> Array:
        """What velocities are measured by, `[B]` or `[B, 2]`, in metres."""
        raise NotImplementedError

    def observation(self) -> NDArray[np.float32]:
        """Observations `[B, O]` of the current state; not a view."""
        raise NotImplementedError

    def reward(self, action: Array, velocity: Array) -> Array:
        """Rewards `[B]` of a step, no view.

        Args:
            action: raw actions `[B, A]`.
            velocity: velocity of `place` in metres per second.
        """
        raise NotImplementedError

    def fallen(self) -> NDArray[np.bool_] | None:
        """Where an episode is over because of the state it has reached, `[B]`; None if it never is."""
        return None

    def sample_tasks(self, n: int) -> Tensor:
        """Draw `n` tasks `[n, task_dim]` float64, uniformly from the known ones of the task split."""
        index = torch.randint(len(self._drawn), (n,), generator=self._generator, device=self.device)
        return self._drawn[index]

    def possible(self, task: Tensor) -> tuple[Tensor, str]:
        """Whether forced tasks `[B, task_dim]` are possible, `[B]`, and what is, in words."""
        return self._is_known(task).any(-1), f"one out of {self._known.tolist()}"

    # The inner episode -------------------------------------------------------------------------------------------

    def reset_task(self, mask: Tensor) -> None:
        """Hand the new tasks to the host."""
        self._take_tasks()

    def reset_state(self, mask: Tensor) -> None:
        """Put the robots into their noisy initial state."""
        rows = np.flatnonzero(mask.numpy(force=True))
        if not len(rows):
            return
        qpos = self.draw("qpos", self._random_qpos).numpy(force=True)
        qvel = self.draw("qvel", self._random_qvel).numpy(force=True)
        self._batch.reset(rows, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        self._qpos[rows], self._qvel[rows] = qpos[rows], qvel[rows]
        self._batch.forward(rows)
        self._place[rows] = self.place()[rows]
        self._step_count[rows] = 0

    def observe(self) -> Tensor:
        """Observations of the current state `[B, O]`."""
        return self._on_device(self.observation())

    def transition(self, action: Tensor) -> Transition:
        """Advance all simulations by one step."""
        self._ctrl[:] = action.numpy(force=True)
        self._batch.step(nstep=self._substeps)
        place = self.place()
        velocity = (place - self._place) / self.dt
        self._place[:] = place
        reward = self.reward(self._ctrl, velocity)
        fallen, failed = self.fallen(), self._failed()
        if failed is not None:
            reward[failed] = 0.0
            fallen = failed if fallen is None else fallen | failed
        self._step_count += 1
        late = self._step_count >= self.episode_length
        over = late if fallen is None else late | fallen
        ends = (self._on_device(end) for end in (over, over & ~late))
        return Transition(self.observe(), self._on_device(reward.astype(np.float32)), *ends)

    def _failed(self) -> NDArray[np.bool_] | None:
        """Where the engine has warned in this step, `[B]`; None if it has not."""
        count = self._warning[..., 1]
        if not count.any():
            return None
        failed = count.any(-1)
        for kind in np.flatnonzero(count.any(0)):
            name = mujoco.mjtWarning(kind).name.removeprefix("mjWARN_")
            if name not in self.engine_warnings:
                index = int(count[:, kind].argmax())
                _log.warning(
                    "MuJoCo warns of %s in environment %d; it ends the episode, further ones, too", name, index
                )
            self.engine_warnings[name] += int((count[:, kind] > 0).sum())
        self._warning[:] = 0
        return failed

    def _random_qpos(self) -> Tensor:
        model = self._batch.model
        noise = self._uniform(-self.noise_qpos, self.noise_qpos, self.num_envs, model.nq)
        return torch.tensor(model.qpos0, device=self.device) + noise

    def _random_qvel(self) -> Tensor:
        shape = self.num_envs, self._batch.model.nv
        return self.noise_qvel * torch.randn(shape, generator=self._generator, device=self.device, dtype=torch.float64)

    def _take_tasks(self) -> None:
        """Keep the tasks where the rewards are computed."""
        self._task = self.state[keys.TASK].numpy(force=True)

    def _on_device(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self.device.type == "cpu" else tensor.to(self.device)

    # State, publications and injections --------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        """Full simulator and generator state, as nested tensors."""
        state = super().get_extra_state()
        if self.state:
            state["simulator"] |= {name: torch.tensor(value) for name, value in self._on_host().items()}
        return state

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue exactly where the state was taken."""
        simulator = dict(state["simulator"])
        if not simulator:
            return super().set_extra_state(state)
        physics = self._on_host()
        given = {name: simulator.pop(name) for name in physics if name in simulator}
        for name, own in physics.items():
            if name not in given or given[name].shape != own.shape:
                found = f"a tensor {tuple(given[name].shape)}" if name in given else "missing"
                raise ValueError(f"state {name!r} is {found}: expected a tensor {own.shape}")
        super().set_extra_state({**state, "simulator": simulator})
        for name, own in physics.items():
            own[:] = given[name].numpy(force=True)
        return self._take_tasks()

    def coordinates(self) -> Tensor:
        """Where the robots' roots are in the plane in which they move `[B, 2]`, in metres, as `qpos` has it."""
        return self._on_device(self._qpos[:, :2].astype(np.float32))

    def publish_task(self) -> Tensor:
        """The task `[B, task_dim]`."""
        return self.state[keys.TASK].to(torch.float32)

    @property
    def publish_task_id(self) -> Callable[[], Tensor]:
        """Returns the numbers of the tasks `[B]`; missing if there are infinitely many."""
        if self.num_tasks is None:
            raise AttributeError("infinitely many tasks have no numbers")
        return self._task_id

    def parse_injection(self, name: str, value: Tensor) -> Tensor:
        """Check a forced task `[task_dim]`, initial position `[nq]` or velocity `[nv]`, one for all or `[B, ...]`."""
        size = {keys.TASK: self._task, "qpos": self._qpos, "qvel": self._qvel}[name].shape[1]
        rows = self.rows_of(name, value.to(torch.float64), (size,))
        self.check_rows(name, rows, rows.isfinite().all(-1), "finite numbers")
        if name != keys.TASK:
            return rows
        self.check_rows(name, rows, *self.possible(rows))
        # What is published, and lists of numbers, are float32.
        return rows if self.num_tasks is None else self._known[self._numbers(rows)]

    def _task_id(self) -> Tensor:
        return self._numbers(self.state[keys.TASK])

    def _numbers(self, task: Tensor) -> Tensor:
        """Which known tasks `[B, task_dim]` are `[B]`."""
        return self._is_known(task).to(torch.int64).argmax(-1)

    def _is_known(self, task: Tensor) -> Tensor:
        """Whether each of `task` `[B, task_dim]` is each of the known ones, up to float32 `[B, N]`."""
        return (task.to(torch.float32).unsqueeze(1) == self._known.to(torch.float32)).all(-1)

    def _uniform(self, low: float, high: float, *shape: int) -> Tensor:
        unit = torch.rand(shape, generator=self._generator, device=self.device, dtype=torch.float64)
        return low + (high - low) * unit

    def _on_host(self) -> dict[str, NDArray[Any]]:
        """What a simulation is, besides `state`; views."""
        return {"physics": self._batch.state, "place": self._place, "step": self._step_count}


def _keep_messages_out_of_files() -> None:
    """Stop the engine from writing `MUJOCO_LOG.TXT` into the working directory; `engine_warnings` counts instead."""
    config = mujoco.MjLogConfig.get()
    config.logto_console = config.logto_file = False
    config.set()
