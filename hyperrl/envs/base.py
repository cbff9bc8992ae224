"""`MetaEnv`: a batch of environments whose unit of time is the meta-episode (K episodes on one task).

A family subclasses `MetaEnv` and writes one *inner* episode; the base class plays K of them on one task, so that `done`
is only ever the end of the meta-episode and TorchRL's automatic reset needs no exception.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Composite
from torchrl.envs import EnvBase

from hyperrl import keys
from hyperrl.env_info import EnvInfo
from hyperrl.envs.layout import (
    Layout,
    SpecFactory,
    TaskSplit,
    check_flags,
    check_positive,
    check_seeds,
    is_number,
    parse_device,
)
from hyperrl.envs.rendering import Pictures

_PUBLISHABLE = (keys.TASK, keys.TASK_ID, keys.STATE_ID, keys.BELIEF, keys.SUCCESS)


class Transition(NamedTuple):
    """What an inner step returns, for all B environments at once.

    Attributes:
        observation: observation after the step, without flag, `[B, O]`.
        reward: raw environment units, `[B]`.
        episode_done: whether the inner episode ended, `[B]` bool.
        terminated: where an episode ended, whether that end belongs to the task (so that no value is bootstrapped),
            `[B]` bool.
    """

    observation: Tensor
    reward: Tensor
    episode_done: Tensor
    terminated: Tensor


class _ParsesFixedTask(type(EnvBase)):  # type: ignore[misc]
    """Parses `fixed_task` after all constructors: only then a family's tables tell which tasks are possible."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        env = super().__call__(*args, **kwargs)
        if isinstance(env, MetaEnv) and env.fixed_task is not None:
            env._fixed_task = env._parse_fixed_task(env.fixed_task)
        return env


class MetaEnv(Pictures, EnvBase, metaclass=_ParsesFixedTask):
    """B environments as tensors on one device, each playing K episodes on a task before it gets a new one.

    With K > 1 a flag is appended to the observation, 1 where an inner episode has just ended. At such an end the next
    episode starts within the same step; what is shown is the terminal observation, or the first observation of the
    next episode where `shows_next_episode` is set; the flag is 1 in both cases (`spec/envs-navigation.md` section 10).

    A subclass builds its tables, and writes `sample_tasks`, `reset_state`, `observe` and `transition`, where needed
    also `reset_task`, `parse_injection` and one `publish_<name>` method per supported entry of `publish`. Whatever
    changes over time it keeps in `self.state`, one tensor with leading dimension B per entry, written with `write`.

    After the end of a meta-episode an environment has to be reset; what it returns until then means nothing.

    Args:
        num_envs: B, the number of environments.
        episodes_per_task: K, the number of inner episodes per task.
        layout: sizes and bounds of the family.
        seed: seed of the environment's own generator; nothing global is read or changed.
        device: where the environments live.
        publish: what to publish besides the observation: task, task_id, state_id, belief, success.
        task_split: draw tasks from all tasks, or only from the training or the test tasks.
        test_fraction: share of the tasks that are test tasks (at least one task is on either side).
        split_seed: seed of the rule that divides the tasks.
        fixed_task: the task that every reset plays, in the units of the published task; None draws tasks.
        record_path: keep the path of the current episode for `render_frame`, in families with places in a plane.

    Raises:
        ValueError: if an argument is out of range, a name in `publish` is unknown or unsupported by the family, or
            `fixed_task` is impossible in it.
    """

    shows_next_episode: ClassVar[bool] = False
    """Whether the step that ends an inner episode returns the next episode's first observation ("Maze" type)."""

    single_episode: ClassVar[bool] = False
    """Whether several episodes on one task make no sense, because an episode draws what there is to learn."""

    task_changes: ClassVar[bool] = False
    """Whether the task changes within an episode; it is then constant in no unit of time."""

    benchmark_split: ClassVar[bool] = False
    """Whether a benchmark says which tasks are training and which are test tasks, not `test_fraction`."""

    def __init__(
        self,
        num_envs: int,
        episodes_per_task: int,
        layout: Layout,
        *,
        seed: int = 0,
        device: str | torch.device = "cpu",
        publish: Sequence[str] = (),
        task_split: TaskSplit = "all",
        test_fraction: float = 0.2,
        split_seed: int = 0,
        fixed_task: Sequence[float] | None = None,
        record_path: bool = False,
    ) -> None:
        check_positive("num_envs", num_envs)
        check_positive("episodes_per_task", episodes_per_task)
        if self.single_episode and episodes_per_task != 1:
            raise ValueError(f"`episodes_per_task` is {episodes_per_task}: {type(self).__name__} expects 1")
        check_positive("episode_length", layout.episode_length)
        check_flags(record_path=record_path)
        check_seeds(seed=seed, split_seed=split_seed)
        _check_split(task_split, test_fraction, self.benchmark_split or layout.num_tasks is not None)
        super().__init__(device=parse_device(device), batch_size=(num_envs,))
        self.num_envs = num_envs
        self.episodes_per_task = episodes_per_task
        self.episode_length = layout.episode_length
        self.horizon = layout.episode_length * episodes_per_task
        self.obs_dim = len(layout.observation_low) + (episodes_per_task > 1)
        self.num_actions = layout.num_actions
        self.action_dim = len(layout.action_low) if layout.num_actions is None else 1
        self._action_bounds = tuple(layout.action_low), tuple(layout.action_high)
        self.task_dim = layout.task_dim
        self.num_tasks = layout.num_tasks
        self.num_states = layout.num_states
        self.belief_dim = layout.belief_dim
        self.task_split = task_split
        self.test_fraction = test_fraction
        self.split_seed = int(split_seed)
        self.fixed_task = fixed_task
        self.record_path = record_path
        self.publish = self._check_publish(publish)
        self.injectable: tuple[str, ...] = (keys.TASK,)
        self.state: dict[str, Tensor] = {}
        self._injected: dict[str, deque[Tensor]] = {}
        self._fixed_task: Tensor | None = None
        self._generator = torch.Generator(device=self.device).manual_seed(int(seed))
        self._zero = torch.zeros((), dtype=torch.int64, device=self.device)
        self._make_specs(layout)

    # Written by a subclass ---------------------------------------------------------------------------------------

    def sample_tasks(self, n: int) -> Tensor:
        """Draw `n` tasks, `[n, ...]`, in the representation in which `self.state["task"]` keeps them."""
        raise NotImplementedError

    def reset_task(self, mask: Tensor) -> None:
        """Forget what was gathered about the old task where `mask` `[B]` is set; `self.state["task"]` is new."""

    def reset_state(self, mask: Tensor) -> None:
        """Start a new inner episode on the same task where `mask` `[B]` is set."""
        raise NotImplementedError

    def observe(self) -> Tensor:
        """Return the observation of the current state as shown at an episode's start, without flag, `[B, O]`."""
        raise NotImplementedError

    def transition(self, action: Tensor) -> Transition:
        """Step every inner episode; must not reset anything."""
        raise NotImplementedError

    def parse_injection(self, name: str, value: Tensor) -> Tensor:
        """Turn an injected value into what the draw called `name` returns `[B, ...]`, or raise ValueError."""
        raise NotImplementedError

    # For subclasses ----------------------------------------------------------------------------------------------

    def write(self, name: str, mask: Tensor, value: Tensor) -> None:
        """Set `self.state[name]` to `value` where `mask` `[B]` is set.

        The leading dimension of `value` is B or 1, or it has no dimension at all.
        """
        old = self.state.get(name)
        if old is None:  # before the first reset there is nothing to keep
            self.state[name] = value.expand(self.num_envs, *value.shape[1:]).clone()
        else:
            self.state[name] = torch.where(mask.view(-1, *(1,) * (old.ndim - 1)), value, old)

    def draw(self, name: str, sample: Callable[[], Tensor]) -> Tensor:
        """Return the next injected value of the draw called `name`, or else `sample()`."""
        queue = self._injected.get(name)
        return queue.popleft() if queue else sample()

    def may_contain(self, mask: Tensor) -> bool:
        """Return False only if `mask` is surely empty; looks at it where that does not make the host wait for a device.

        An injected value must not be spent on an empty mask, so there the host waits.
        """
        if mask.device.type == "cpu":
            return bool(mask.numpy().any())  # a few microseconds less than with torch, several times per step
        return not any(self._injected.values()) or bool(mask.any())

    def rows_of(self, name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return an injected value `[*shape]` or `[B, *shape]` as `[B, *shape]`; raise ValueError for another shape."""
        batched = (self.num_envs, *shape)
        if value.shape not in (shape, batched):
            raise ValueError(f"injected {name} has shape {tuple(value.shape)}: expected {shape} or {batched}")
        return value.expand(batched)

    def check_rows(self, name: str, rows: Tensor, possible: Tensor, expected: str) -> None:
        """Raise ValueError about the first of the injected `rows` `[B, ...]` where `possible` `[B]` is not set."""
        if not possible.all():
            raise ValueError(f"injected {name} is {rows[~possible][0].tolist()}: expected {expected}")

    def split_tasks(self, tasks: Tensor) -> Tensor:
        """Return those of a finite set of tasks `[N, ...]` that belong to `task_split`, in their original order.

        Train and test tasks are disjoint and together everything, for equal `test_fraction` and `split_seed`.
        """
        total = tasks.shape[0]
        if self.task_split == "all":
            return tasks
        if total < 2:
            raise ValueError(f"`task_split` is {self.task_split!r}, but {total} task cannot be divided: expected 'all'")
        num_test = min(max(round(self.test_fraction * total), 1), total - 1)
        order = torch.randperm(total, generator=torch.Generator().manual_seed(self.split_seed))
        chosen = order[:num_test] if self.task_split == "test" else order[num_test:]
        return tasks[chosen.sort().values.to(tasks.device)]

    # Public ------------------------------------------------------------------------------------------------------

    @property
    def env_info(self) -> EnvInfo:
        """What a model has to know of this environment."""
        low, high = (None, None) if self.num_actions else self._action_bounds
        sizes = self.task_dim, self.num_tasks or 0, self.num_states or 0, self.belief_dim or 0
        return EnvInfo(self.obs_dim, self.action_dim, self.num_actions, self.horizon, *sizes, low, high)

    def inject(self, name: str, *values: Any) -> None:
        """Queue values that the next draws called `name` return instead of sampling.

        Every draw takes one value: for all environments alike, or with leading dimension B. Of a draw that serves
        only some environments (a partial reset) the values of the others are discarded.

        Args:
            name: which draw, one of `injectable`; `"task"` is drawn once per reset.
            *values: array-likes in the units of the published quantity, for example goal coordinates.

        Raises:
            ValueError: if nothing called `name` is drawn, or a value is impossible in this environment.
        """
        if name not in self.injectable:
            raise ValueError(f"nothing called {name!r} is drawn by {type(self).__name__}: expected {self.injectable}")
        parsed = [self.parse_injection(name, torch.as_tensor(value, device=self.device)) for value in values]
        self._injected.setdefault(name, deque()).extend(parsed)

    def get_extra_state(self) -> dict[str, Any]:
        """Full simulator and generator state, as nested tensors; part of `state_dict()`. Injections are not in it."""
        return {
            "simulator": {name: value.clone() for name, value in self.state.items()},
            "generator": self._generator.get_state(),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue exactly where the state was taken; called by `load_state_dict()`.

        Raises:
            ValueError: if the state belongs to environments of another number or kind, or another kind of device;
                then nothing has changed.
        """
        simulator: dict[str, Tensor] = state["simulator"]
        if simulator:  # else it was taken before the first reset
            self._check_state(simulator)
        try:
            self._generator.set_state(state["generator"].cpu())
        except RuntimeError as error:
            raise ValueError(f"the generator's state is of another device: expected {self.device.type}") from error
        self.state = {name: value.to(self.device, copy=True) for name, value in simulator.items()}

    def to(self, device: str | torch.device) -> MetaEnv:
        """Move the environments. Generator states are not portable, so another device draws another sequence."""
        before = self.device
        super().to(device)
        if self.device != before:
            seed = torch.randint(2**62, (), generator=self._generator, device=before)
            self._generator = torch.Generator(device=self.device).manual_seed(int(seed))
        return self

    # TorchRL -----------------------------------------------------------------------------------------------------

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDict:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        is_init = torch.ones(self.num_envs, 1, dtype=torch.bool, device=self.device) if mask is None else mask.clone()
        is_init = is_init.view(self.num_envs, 1)
        mask = is_init.squeeze(-1)
        self.write(keys.TASK, mask, self.draw(keys.TASK, self._next_tasks))
        self.write("episode", mask, self._zero)
        self.reset_task(mask)
        self.reset_state(mask)
        self._start_path(mask)
        no_flag = torch.zeros_like(mask)
        self.write(keys.OBSERVATION, mask, self._with_flag(self.observe(), no_flag))
        observation = self.state[keys.OBSERVATION]
        blank = observation.new_zeros(self.num_envs, self.action_dim)
        return self._tensordict(
            {
                keys.OBSERVATION: observation.clone(),
                keys.PREV_OBSERVATION: torch.zeros_like(observation),
                keys.PREV_ACTION: blank,
                keys.PREV_REWARD: torch.zeros_like(blank[:, :1]),
                keys.IS_INIT: is_init,
                keys.EPISODE_DONE: no_flag.unsqueeze(-1),
                keys.DONE: torch.zeros_like(is_init),
                keys.TERMINATED: torch.zeros_like(is_init),
                keys.TRUNCATED: torch.zeros_like(is_init),
                **self._publications(),
            }
        )

    def step(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Step all environments, as `EnvBase.step` does, but without its work for cases that are not there."""
        names = tensordict.keys()
        if "_step" in names or keys.NEXT in names:
            return super().step(tensordict)
        return tensordict.set(keys.NEXT, self._step(tensordict))

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        if not self.state:
            raise RuntimeError("call reset() before step()")
        action = tensordict.get(keys.ACTION)
        observation, reward, episode_done, terminated = self.transition(action)
        self._extend_path()
        # What is published belongs to the observation that is returned.
        published = {} if self.shows_next_episode else self._publications()
        if self.may_contain(episode_done):
            observation, done, terminated = self._end_episodes(observation, episode_done, terminated)
            ends = torch.stack((torch.zeros_like(done), done, terminated, done ^ terminated))
        else:
            ends = torch.zeros(4, self.num_envs, dtype=torch.bool, device=self.device)
        is_init, done, terminated, truncated = ends.unsqueeze(-1).unbind()
        if self.shows_next_episode:
            published = self._publications()
        observation = self._with_flag(observation, episode_done)
        previous, self.state[keys.OBSERVATION] = self.state[keys.OBSERVATION], observation
        reward = reward.unsqueeze(-1)
        return self._tensordict(
            {
                # Copies, so that a caller who changes what he was given in place changes nothing in here.
                keys.OBSERVATION: observation.clone(),
                keys.PREV_OBSERVATION: previous,
                keys.PREV_ACTION: action.to(torch.float32, copy=True).view(self.num_envs, self.action_dim),
                keys.PREV_REWARD: reward.clone(),
                keys.IS_INIT: is_init,
                keys.EPISODE_DONE: episode_done.unsqueeze(-1),
                keys.REWARD: reward,
                keys.DONE: done,
                keys.TERMINATED: terminated,
                keys.TRUNCATED: truncated,
                **published,
            }
        )

    def _step_proc_data(self, next_tensordict_out: TensorDictBase) -> TensorDictBase:
        # EnvBase completes missing done entries and shapes here. `_step` leaves nothing to complete, and the test
        # with `check_env_specs` says so; at 1,024 environments this is a fifth of a step.
        return next_tensordict_out

    def maybe_reset(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Reset what is done, as `EnvBase.maybe_reset` does, but on a device without asking it whether anything is.

        There every step computes a reset for all environments, of which those that are done take the result.
        """
        if self.device.type == "cpu":
            return super().maybe_reset(tensordict)
        done = tensordict.get(keys.DONE)
        if not self.may_contain(done):
            return tensordict
        fresh = self._reset(self._tensordict({"_reset": done}))
        return tensordict.update(fresh.where(done.squeeze(-1), tensordict.select(*fresh.keys())))

    def _set_seed(self, seed: int | None) -> None:
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MetaEnv:
        # Tables and state are plain attributes rather than buffers: buffers are read and written through
        # nn.Module's slow path, several times per step.
        super()._apply(fn, recurse)
        for name, value in self.__dict__.items():
            if isinstance(value, Tensor):
                self.__dict__[name] = fn(value)
        self.state = {name: fn(value) for name, value in self.state.items()}
        self._injected = {name: deque(fn(value) for value in queue) for name, queue in self._injected.items()}
        return self

    # Private -----------------------------------------------------------------------------------------------------

    def _check_state(self, state: dict[str, Tensor]) -> None:
        """Raise ValueError unless the names and shapes are those of these environments' state."""
        given, own = (
            {name: f"a tensor {tuple(value.shape)}" for name, value in entries.items()}
            for entries in (state, self.state or self._first_state())
        )
        for name in own | given:
            if given.get(name) != own.get(name):
                raise ValueError(f"state {name!r} is {given.get(name, 'missing')}: expected {own.get(name, 'none')}")

    def _first_state(self) -> dict[str, Tensor]:
        """What the first reset would write; leaves no trace in the state, the generator and the injected values."""
        state, injected, generator = self.state, self._injected, self._generator.get_state()
        self.state, self._injected = {}, {}
        self._reset()
        first = self.state
        self.state, self._injected = state, injected
        self._generator.set_state(generator)
        return first

    def _next_tasks(self) -> Tensor:
        return self.sample_tasks(self.num_envs) if self._fixed_task is None else self._fixed_task

    def _parse_fixed_task(self, task: Sequence[float]) -> Tensor:
        if self.task_split != "all":
            raise ValueError(f"`fixed_task` is {task} and `task_split` is {self.task_split!r}: expected 'all'")
        if not isinstance(task, Sequence) or not all(is_number(value) for value in task):
            raise ValueError(f"`fixed_task` is {task!r}: expected the numbers that describe a task")
        try:
            return self.parse_injection(keys.TASK, torch.as_tensor(task, device=self.device))
        except ValueError as error:
            raise ValueError(f"`fixed_task` is {task}: {error}") from error

    def _end_episodes(
        self, observation: Tensor, episode_done: Tensor, terminated: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Start the next episode of the task where one ended; return observation, done and terminated."""
        episode = self.state["episode"]
        done = episode_done & (episode == self.episodes_per_task - 1)
        if self.episodes_per_task > 1:
            inner = episode_done ^ done
            self.state["episode"] = episode + inner
            if self.may_contain(inner):
                self.reset_state(inner)
                self._start_path(inner)
                if self.shows_next_episode:
                    observation = torch.where(inner.unsqueeze(-1), self.observe(), observation)
        return observation, done, done & terminated

    def _with_flag(self, observation: Tensor, episode_done: Tensor) -> Tensor:
        if self.episodes_per_task == 1:
            return observation
        return torch.cat((observation, episode_done.unsqueeze(-1).to(observation.dtype)), -1)

    def _publications(self) -> dict[str, Tensor]:
        return {name: getattr(self, f"publish_{name}")() for name in self.publish}

    def _tensordict(self, source: dict[str, Tensor]) -> TensorDict:
        # Checking every entry again would be a third of a step with 64 environments; the tests check all of them.
        return TensorDict._new_unsafe(source, batch_size=self.batch_size, device=self.device)

    def _check_publish(self, publish: Sequence[str]) -> tuple[str, ...]:
        if isinstance(publish, str) or not isinstance(publish, Iterable):
            raise ValueError(f"`publish` is {publish!r}: expected a list of names")
        supported = [name for name in _PUBLISHABLE if hasattr(self, f"publish_{name}")]
        for name in publish:
            if name not in supported:
                raise ValueError(
                    f"`publish` holds {name!r}, which {type(self).__name__} does not offer: expected names out of "
                    f"{', '.join(supported) or 'none'}"
                )
        return tuple(dict.fromkeys(publish))

    def _make_specs(self, layout: Layout) -> None:
        specs = SpecFactory(self.num_envs, self.device)
        observations = specs.observations(layout, self.obs_dim, self.action_dim, self.publish)
        self.observation_spec = Composite(observations, shape=self.batch_size, device=self.device)
        self.action_spec = specs.action(layout)
        self.reward_spec = specs.unbounded(1)
        dones = {name: specs.boolean() for name in (keys.DONE, keys.TERMINATED, keys.TRUNCATED)}
        self.done_spec = Composite(dones, shape=self.batch_size, device=self.device)


def _check_split(task_split: str, test_fraction: float, divisible: bool) -> None:
    if task_split not in ("all", "train", "test"):
        raise ValueError(f"`task_split` is {task_split!r}: expected 'all', 'train' or 'test'")
    if not is_number(test_fraction) or not 0.0 < test_fraction < 1.0:
        raise ValueError(f"`test_fraction` is {test_fraction!r}: expected a number between 0 and 1, both excluded")
    if task_split != "all" and not divisible:
        raise ValueError(f"`task_split` is {task_split!r}, but there is no finite set of tasks: expected 'all'")
