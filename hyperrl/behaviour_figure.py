"""A recorded meta-episode at the end of training: where the agent went, what it believed, and what it expected."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from hyperrl.errors import ConfigError
from hyperrl.seeding import derive_seed, run_seed
from hyperrl.tracking import find_logger

if TYPE_CHECKING:
    from hyperrl.experiments.behaviour.recording import Recording
    from hyperrl.modules.meta_ppo import MetaPPO

_log = logging.getLogger(__name__)


class Source(Protocol):
    """What the figure needs of the LightningDataModule."""

    env_id: str
    frames: int
    eval_options: dict[str, Any]
    landmarks: dict[str, float]


class BehaviourFigure(Callback):
    """Record a meta-episode of a few tasks after some validations, and draw the first of them.

    ``behaviour_<frames>.npz``, ``.png`` and two ``.csv`` are in the run's directory, and artifacts of its run;
    ``hyperrl video`` draws the recording again. Training goes on as it would without: nothing is drawn from its random
    streams. What goes wrong with a picture costs one warning.

    Args:
        every_n_validations: how often; 0 only after the last one, when the frames are spent.
        tasks: tasks that are played; returns are averaged over them.
    """

    def __init__(self, every_n_validations: int = 0, tasks: int = 16) -> None:
        for name, value, least in (("every_n_validations", every_n_validations, 0), ("tasks", tasks, 1)):
            if value < least:
                raise ConfigError(f"BehaviourFigure.{name} is {value}; expected at least {least}")
        self.every_n_validations, self.tasks = every_n_validations, tasks
        self._warned = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record and draw, where it is time to."""
        learner, source = cast("MetaPPO", pl_module), cast(Source, trainer.datamodule)  # type: ignore[attr-defined]
        logger = find_logger(trainer)
        if logger is None or not trainer.is_global_zero or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        # Each epoch ends with a validation, so that a resumed run goes on counting.
        due = self.every_n_validations and (trainer.current_epoch + 1) % self.every_n_validations == 0
        if not due and learner.frames < source.frames:
            return
        path = logger.run_dir / f"behaviour_{learner.frames:010d}.png"
        try:
            for file in self._draw(trainer, learner, source, path):
                logger.log_artifact(file)
        except Exception as error:  # no picture is worth a training; an interrupt is no Exception
            if not self._warned:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                _log.warning("no picture of the behaviour (%s); training goes on", reason)
            self._warned = True

    def _draw(self, trainer: Trainer, learner: MetaPPO, source: Source, path: Path) -> list[Path]:
        """Write the recording, the picture and its numbers; return all of them."""
        from hyperrl.experiments.behaviour.still import draw_still  # most validations do without

        recording = self._record(trainer, learner, source)
        recording.write(path.with_suffix(".npz"))
        draw_still(recording, path)
        return [path, *(path.with_name(path.stem + ending) for ending in (".npz", ".csv", "_returns.csv"))]

    def _record(self, trainer: Trainer, learner: MetaPPO, source: Source) -> Recording:
        """Play tasks of the validation, with its rule of seeds."""
        from hyperrl.experiments.agents import telling_env
        from hyperrl.experiments.behaviour.recorder import record

        seed = derive_seed(run_seed(), "val", trainer.global_rank, learner.frames)
        device = trainer.strategy.root_device
        env = telling_env(source.env_id, self.tasks, seed=seed, device=device, **source.eval_options)
        about = {"env": source.env_id, "options": source.eval_options, "frames": learner.frames, "stage": "val"}
        about |= {"landmarks": source.landmarks}
        try:
            with trainer.precision_plugin.forward_context():
                return record(env, learner, seed=seed, about=about)
        finally:
            env.close(raise_if_closed=False)
