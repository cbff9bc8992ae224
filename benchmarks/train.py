"""Trains for real through the command line and reports where the time goes, as one JSON line at the end.

    python benchmarks/train.py --frames 50000 --config experiment/gridnavi_rnn_hn [any `hyperrl fit` override]

Everything a user pays for is included: collection, updates, validation, checkpoints, tracking. The first `--warmup`
rollouts are left out; in the last of them operations are counted, from which `gflops` follows. A model that collects
trajectories before it learns needs a longer warm-up than that.

- `frames_per_second`: after warm-up, over the wall time of training.
- `share_*`: parts of that time: the policy's and the environment's half of collection, PPO's update (with what task
  inference adds to its minibatches), the updates that task inference has of its own, validation, logging (metrics,
  checkpoints, tracking), and the rest.
  On a GPU the environment's half is not told apart: it counts as the policy's.
- `update_ms`: one update with all that belongs to it, in milliseconds.
- `gflops`: matrix products per second, of all the time; `update_gflops`: of the update alone.
- `gemm_ratio`, `update_gemm_ratio`: those against one large matrix product in the same precision and process.

Where observations repeat, the large products are shared (`hyperrl.modules.hypernet.RepeatedInput`) and fewer operations
are done in less time. `--unshared` computes them for every sample, as where observations never repeat.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from common import Report, gemm_gflops, make_parser
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.flop_counter import FlopCounterMode

from hyperrl import cli
from hyperrl.data.datamodule import MetaDataModule
from hyperrl.envs import MetaEnv
from hyperrl.modules.meta_ppo import MetaPPO
from hyperrl.modules.policy import Policy


class Clock:
    """Adds up the time spent in patched methods, and counts operations in the first rollout."""

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup
        self.seconds: dict[str, float] = defaultdict(float)
        self.rollouts = 0
        self.frames = 0
        self.validating = False
        self.flops = {"collect": 0, "update": 0}
        self.start = self.end = time.perf_counter()

    def timed(self, owner: type, method: str, name: str) -> None:
        """Patches ``owner.method`` so that its time counts as ``name``."""
        original: Callable[..., Any] = getattr(owner, method)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if name == "environment" and torch.cuda.is_initialized():
                return original(*args, **kwargs)  # waiting at every step would slow down what is measured
            start = self.now()
            try:
                return original(*args, **kwargs)
            finally:
                # Validation plays, too, but counts as validation only.
                if name == "validation" or not self.validating:
                    self.seconds[name] += self.now() - start

        setattr(owner, method, wrapper)

    def now(self) -> float:
        """The time when all work that was handed to a GPU is done."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextlib.contextmanager
    def counting(self, name: str) -> Iterator[None]:
        """Counts the operations of the last rollout before the clock starts."""
        if self.rollouts != self.warmup - 1:
            yield
            return
        with FlopCounterMode(display=False) as counter:
            yield
        self.flops[name] = counter.get_total_flops()

    def watch(self) -> None:
        """Patches the methods that make up a run; those that count operations go around those that take time."""
        self.timed(MetaPPO, "training_step", "update")
        self.timed(MetaPPO, "infer", "inference")
        self.timed(MetaPPO, "log_metrics", "log")
        self.timed(MetaDataModule, "collect", "collect")
        self.timed(MetaDataModule, "evaluate", "validation")
        self.timed(MetaEnv, "step_and_maybe_reset", "environment")
        self.timed(ModelCheckpoint, "on_train_epoch_end", "checkpoint")
        collect, step, evaluate = MetaDataModule.collect, MetaPPO.training_step, MetaDataModule.evaluate

        def counted_collect(data: MetaDataModule) -> Any:
            with self.counting("collect"):
                return collect(data)

        def counted_step(module: MetaPPO, rollout: Any, batch_idx: int) -> None:
            with self.counting("update"):
                step(module, rollout, batch_idx)
            self._after_rollout(rollout.numel())

        def flagged_evaluate(data: MetaDataModule, stage: str) -> Any:
            self.validating = True
            try:
                return evaluate(data, stage)
            finally:
                self.validating = False

        MetaDataModule.collect = counted_collect  # type: ignore[method-assign]
        MetaDataModule.evaluate = flagged_evaluate  # type: ignore[method-assign]
        MetaPPO.training_step = counted_step  # type: ignore[method-assign]

    def _after_rollout(self, frames: int) -> None:
        self.rollouts += 1
        self.end = self.now()
        if self.rollouts == self.warmup:
            self.seconds.clear()
            self.start = self.end
            self.frames = 0
        elif self.rollouts > self.warmup:
            self.frames += frames

    def report(self) -> dict[str, float]:
        """What the time after warm-up went into."""
        total, seconds = self.end - self.start, self.seconds
        shares = {
            "share_environment": seconds["environment"],
            # The collector's own overhead counts as acting.
            "share_acting": seconds["collect"] - seconds["environment"],
            "share_update": seconds["update"] - seconds["inference"] - seconds["log"],
            "share_inference": seconds["inference"],
            "share_validation": seconds["validation"],
            "share_logging": seconds["log"] + seconds["checkpoint"],
        }
        updates = max(self.rollouts - self.warmup, 1)
        return {
            "frames_per_second": self.frames / total,
            "update_ms": 1000 * (seconds["update"] - seconds["log"]) / updates,
            **{k: v / total for k, v in shares.items()},
        }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--frames", type=int, default=50_000, help="frames to train for, warm-up included")
    parser.add_argument("--warmup", type=int, default=5, help="rollouts to leave out")
    parser.add_argument("--config", action="append", default=[], help="configurations, as for `hyperrl fit`")
    parser.add_argument("--unshared", action="store_true", help="share no products between equal observations")
    args, overrides = parser.parse_known_args()
    cli.quiet_libraries()
    logging.disable(logging.INFO)
    clock = Clock(args.warmup)
    clock.watch()
    if args.unshared:
        Policy._repeated = lambda policy, observation: None  # type: ignore[method-assign]
    named = args.config or ["experiment/gridnavi_rnn_hn"]
    configs = [part for config in named for part in ("--config", config)]
    with tempfile.TemporaryDirectory() as folder:
        store = f"--trainer.logger.init_args.save_dir={folder}"
        done = cli.run(["fit", *configs, f"--data.frames={args.frames}", store, *overrides], test=False)
    precision = str(done.trainer.precision)
    num_envs = done.datamodule.num_envs
    numbers = clock.report()
    rollouts_per_second = numbers["frames_per_second"] / (num_envs * done.datamodule.steps_per_rollout)
    share = numbers["share_update"] + numbers["share_inference"]
    device = done.trainer.strategy.root_device
    gemm = gemm_gflops("bf16" if precision.startswith("bf16") else "fp32", device)
    gflops = sum(clock.flops.values()) * rollouts_per_second / 1e9
    update_gflops = clock.flops["update"] * rollouts_per_second / share / 1e9
    numbers |= {
        "gflops": gflops,
        "update_gflops": update_gflops,
        "gemm_ratio": gflops / gemm,
        "update_gemm_ratio": update_gflops / gemm,
    }
    special = {} if device.type == "cpu" else {"device": str(device)}
    special |= {"unshared": True} if args.unshared else {}
    report = Report("train", frames=args.frames, precision=precision, num_envs=num_envs, overrides=overrides, **special)
    report.add(" + ".join(named), numbers)
    report.finish()


if __name__ == "__main__":
    main()
