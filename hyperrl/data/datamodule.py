"""The data side of a run: environments, collection, and evaluation on fresh tasks."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningDataModule
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from hyperrl import keys
from hyperrl.data.rollouts import Learner, RolloutStream, evaluate
from hyperrl.data.trajectory_buffer import TrajectoryBuffer
from hyperrl.distributed import gather_over_ranks, sum_over_ranks
from hyperrl.envs import MetaEnv, landmarks, make_env
from hyperrl.errors import ConfigError
from hyperrl.seeding import derive_seed, run_seed

_log = logging.getLogger(__name__)


class MetaDataModule(LightningDataModule):
    """Owns the environments and the collector; its state is in the checkpoint, so that a run resumes exactly.

    Args:
        env: environment id, such as GridNavi-v0; `hyperrl list envs` shows all.
        env_options: options of the environment that differ from the id's.
        episodes_per_task: episodes K per task; null takes the environment's own.
        num_envs: parallel environments (tasks seen at once) of this process.
        steps_per_rollout: steps T of each environment between two updates.
        frames: environment steps to train for, over all environments.
        rollouts_per_epoch: rollouts between two validations (and checkpoints).
        val_tasks: fresh tasks of each validation, per process.
        test_tasks: fresh tasks of a test, per process.
        eval_episodes_per_task: episodes per task in validation and test; null takes those of training.
        eval_actions: deterministic (the policy's mode) or sampled actions in validation and test.
        held_out: fraction of the tasks that only the test sees; 0 tests on fresh draws of all tasks. A benchmark that
            has test tasks of its own (Meta-World) uses these, unless env_options.task_split says otherwise.
        publish: what environments publish besides the observation; what the model needs is added.
    """

    def __init__(
        self,
        env: str = "GridNavi-v0",
        env_options: dict[str, Any] | None = None,
        episodes_per_task: int | None = None,
        num_envs: int = 16,
        steps_per_rollout: int = 60,
        frames: int = 4_000_000,
        rollouts_per_epoch: int = 50,
        val_tasks: int = 128,
        test_tasks: int = 512,
        eval_episodes_per_task: int | None = None,
        eval_actions: Literal["deterministic", "sampled"] = "deterministic",
        held_out: float = 0.0,
        publish: list[str] | None = None,
    ) -> None:
        super().__init__()
        counts = {
            "num_envs": num_envs,
            "steps_per_rollout": steps_per_rollout,
            "frames": frames,
            "rollouts_per_epoch": rollouts_per_epoch,
            "val_tasks": val_tasks,
            "test_tasks": test_tasks,
        }
        for name, value in counts.items():
            if value < 1:
                raise ConfigError(f"data.{name} is {value}; expected at least 1")
        if eval_actions not in ("deterministic", "sampled"):
            raise ConfigError(f"data.eval_actions is {eval_actions}; expected deterministic or sampled")
        if not 0 <= held_out < 1:
            raise ConfigError(f"data.held_out is {held_out}; expected a number from 0 to 1, 1 excluded")
        self.env_id, self.num_envs, self.steps_per_rollout = env, num_envs, steps_per_rollout
        self.frames, self.rollouts_per_epoch = frames, rollouts_per_epoch
        self.num_tasks = {"val": val_tasks, "test": test_tasks}
        self.held_out, self.publish = held_out, tuple(publish or ())
        self.eval_sampled = eval_actions == "sampled"
        given = env_options or {}
        for name in ("seed", "device", "publish"):
            if name in given:
                raise ConfigError(f"data.env_options.{name} is {given[name]}; expected to be left to the run")
        self.splits = self._splits(given)
        self.options = options = self._options(given, episodes_per_task)
        episodes = episodes_per_task if eval_episodes_per_task is None else eval_episodes_per_task
        self.eval_options = self._options(given, episodes)
        example, evaluation = self._example(options), self._example(self.eval_options)
        if evaluation.obs_dim != example.obs_dim:
            raise ConfigError(
                f"data.episodes_per_task is {example.episodes_per_task} and data.eval_episodes_per_task is "
                f"{evaluation.episodes_per_task}; expected both or neither to be 1, as several episodes have a flag"
            )
        # Reported wherever it is known; a Gymnasium environment might not know it.
        if hasattr(evaluation, f"publish_{keys.SUCCESS}") and getattr(evaluation, "reports_success", True):
            self.eval_options["publish"] = tuple(dict.fromkeys((*self.publish, keys.SUCCESS)))
        longest = max(example.horizon, evaluation.horizon)
        self.env_info = dataclasses.replace(example.env_info, horizon=longest)
        # What is known of an environment holds for all its tasks and its own number of episodes.
        own = not given and not held_out and evaluation.episodes_per_task == self._example({}).episodes_per_task
        self.landmarks = landmarks(env) if own else {}
        self.stream: RolloutStream | None = None
        self.trajectories: TrajectoryBuffer | None = None
        self._pending: dict[str, Any] | None = None
        self._metrics: dict[str, float] = {}

    def _example(self, options: dict[str, Any]) -> MetaEnv:
        """An environment of this kind, to look at."""
        try:
            return make_env(self.env_id, 1, **options)
        except ValueError as error:
            raise ConfigError(f"data.env: {error}") from error

    def _splits(self, options: dict[str, Any]) -> bool:
        """Whether training and test have tasks of their own: so many are held out, or a benchmark says which."""
        benchmark = self._example(options).benchmark_split
        if benchmark and self.held_out:
            raise ConfigError(f"data.held_out is {self.held_out}; expected 0, as {self.env_id} has its own test tasks")
        return self.held_out > 0 or (benchmark and "task_split" not in options)

    def _options(self, options: dict[str, Any], episodes_per_task: int | None) -> dict[str, Any]:
        """Options of the environment's constructor, as far as they differ from the id's."""
        split: dict[str, Any] = {"test_fraction": self.held_out} if self.held_out else {}
        if self.splits:
            split["task_split"] = "train"
        episodes = {} if episodes_per_task is None else {"episodes_per_task": episodes_per_task}
        return {**options, **split, **episodes, **({"publish": self.publish} if self.publish else {})}

    @property
    def rollout_metrics(self) -> dict[str, float]:
        """Metrics of the last collected rollouts of all ranks; times are of this one."""
        return self._metrics

    @property
    def _learner(self) -> Learner:
        """The LightningModule, as far as data needs it."""
        assert self.trainer is not None
        return cast(Learner, self.trainer.lightning_module)

    @contextlib.contextmanager
    def _acting_precision(self) -> Iterator[None]:
        """The trainer's precision, because Lightning iterates loaders outside of it.

        Weights do not change while acting, so autocast may keep their casts, which Lightning's context forbids, instead
        of casting millions of weights at every step. Leaving the context drops them.
        """
        assert self.trainer is not None
        with self.trainer.precision_plugin.forward_context():
            caching = torch.is_autocast_cache_enabled()
            torch.set_autocast_cache_enabled(True)
            try:
                yield
            finally:
                torch.set_autocast_cache_enabled(caching)

    def _make_env(self, purpose: str, num_envs: int, options: dict[str, Any], index: int = 0) -> MetaEnv:
        assert self.trainer is not None
        seed = derive_seed(run_seed(), purpose, self.trainer.global_rank, index)
        return make_env(self.env_id, num_envs, seed=seed, device=self.trainer.strategy.root_device, **options)

    # Training

    def train_dataloader(self) -> RolloutLoader:
        """A loader of rollouts; the collector behind it is built once and goes on from epoch to epoch."""
        assert self.trainer is not None
        if self.stream is None:
            # By the frames, so that a resumed run that cannot go on with its tasks does not see the first ones again.
            frames = self._learner.frames
            env = self._make_env("train", self.num_envs, self.options, frames)
            seed = derive_seed(run_seed(), "actions", self.trainer.global_rank, frames)
            self.stream = RolloutStream(env, self._learner.actor, self.steps_per_rollout, seed)
            self.trajectories = self._make_buffer(env.horizon)
            if self._pending is not None:
                self._continue(self._pending)
                self._pending = None
        return RolloutLoader(self)

    def _make_buffer(self, horizon: int) -> TrajectoryBuffer | None:
        """Where finished trajectories are kept, if the learner learns from them."""
        assert self.trainer is not None
        settings = self._learner.trajectory_settings
        if settings is None:
            return None
        seed = derive_seed(run_seed(), "trajectories", self.trainer.global_rank)
        return TrajectoryBuffer(horizon=horizon, seed=seed, **settings)

    def _continue(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint's stream and trajectories; with new tasks, if the memory is another one."""
        assert self.stream is not None
        try:
            self.stream.load_state_dict(state["stream"])
        except ValueError as error:
            _log.warning("%s: all environments start with new tasks", error)
        if self.trajectories is None or state["trajectories"] is None:
            return
        try:
            self.trajectories.load_state_dict(state["trajectories"])
        except ValueError as error:
            _log.warning("%s: no trajectories are taken over", error)

    def teardown(self, stage: str) -> None:
        """Ends the stream with its training: another run on the same data has another policy."""
        if stage == "fit":
            if self.stream is not None:
                self.stream.env.close(raise_if_closed=False)
            self.stream = self.trajectories = None
            self._metrics = {}

    def collect(self) -> TensorDictBase:
        """Collects one rollout with the current parameters, under the trainer's precision; keeps its trajectories."""
        assert self.trainer is not None
        assert self.stream is not None
        with self._acting_precision():
            rollout = self.stream.collect()
        self._metrics = self._over_ranks(self.stream.metrics, rollout[keys.NEXT, keys.DONE].sum())
        if self.trajectories is not None:
            self.trajectories.add(rollout)
        return rollout

    def _over_ranks(self, metrics: dict[str, float], ended: Tensor) -> dict[str, float]:
        """Averages the returns of this rank's ``ended`` tasks ``[]`` with those of all others."""
        assert self.trainer is not None
        assert self.stream is not None
        if self.trainer.world_size == 1:
            return metrics
        episodes = range(1, self.stream.env.episodes_per_task + 1)
        names = ["train/return", *(f"train/return_episode_{k}" for k in episodes)]
        own = torch.tensor([1.0, *(metrics.get(name, 0.0) for name in names)], dtype=torch.float64)
        number, *sums = sum_over_ranks(own.to(ended.device) * ended).tolist()
        returns = {name: total / number for name, total in zip(names, sums, strict=True)} if number else {}
        return {**metrics, **returns}

    # Evaluation

    def val_dataloader(self) -> EvaluationLoader:
        """One batch: the returns on fresh tasks."""
        return EvaluationLoader(self, "val")

    def test_dataloader(self) -> EvaluationLoader:
        """One batch: the returns on other fresh tasks; on those that training never saw if some are held out."""
        return EvaluationLoader(self, "test")

    def evaluate(self, stage: str) -> TensorDict:
        """Plays fresh tasks with the current parameters, seeded by the stage and the frames trained so far."""
        assert self.trainer is not None
        options = {**self.eval_options, **({"task_split": "test"} if stage == "test" and self.splits else {})}
        env = self._make_env(stage, self.num_tasks[stage], options, self._learner.frames)
        settings = self._learner.trajectory_settings if stage == "val" else None
        seed = derive_seed(run_seed(), f"{stage} latents", self.trainer.global_rank, self._learner.frames)
        generator = torch.Generator(env.device).manual_seed(seed)
        with self._acting_precision():
            extra = None if settings is None else settings["extra"]
            try:
                return evaluate(env, self._learner.actor(generator), extra, self.eval_sampled)
            finally:
                env.close(raise_if_closed=False)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The states of all ranks' rollout streams, and which environments they are about."""
        if self.stream is None:
            return {}
        kept = None if self.trajectories is None else self.trajectories.state_dict()
        own = {"stream": self.stream.state_dict(), "trajectories": kept}
        return {"streams": gather_over_ranks(own), **self._source}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state for the collector, which exists only once training starts.

        Where a resumed run has other environments, they start anew.
        """
        source = {key: value for key, value in state_dict.items() if key != "streams"}
        streams = state_dict.get("streams", [])
        if source == self._source and len(streams) == (self.trainer.world_size if self.trainer else 1):
            self._pending = streams[self.trainer.global_rank if self.trainer else 0]
        elif source and self.trainer and self.trainer.training and self.trainer.is_global_zero:
            _log.warning(
                "environments or ranks differ from the checkpoint's: all of them start with new tasks, and without the "
                "trajectories of earlier ones"
            )

    @property
    def _source(self) -> dict[str, Any]:
        """What the stream's state fits to."""
        return {"env": self.env_id, "options": self.options, "num_envs": self.num_envs}


class RolloutLoader:
    """One epoch of rollouts. It has a length because Lightning prefetches from loaders without one.

    Args:
        data: the data module.
    """

    def __init__(self, data: MetaDataModule) -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.rollouts_per_epoch

    def __iter__(self) -> Iterator[TensorDictBase]:
        for _ in range(len(self)):
            yield self.data.collect()


class EvaluationLoader:
    """A single batch with the returns of one evaluation.

    Args:
        data: the data module.
        stage: ``val`` or ``test``.
    """

    def __init__(self, data: MetaDataModule, stage: str) -> None:
        self.data, self.stage = data, stage

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[TensorDict]:
        yield self.data.evaluate(self.stage)
