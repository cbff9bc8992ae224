"""One of the two processes of `test_ddp`: ``python ranks.py FOLDER`` with LOCAL_RANK set leaves what it saw there."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import tiny
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer, seed_everything
from tensordict import TensorDictBase
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hyperrl import cli, keys
from hyperrl.callbacks import FrameBudget
from hyperrl.data.datamodule import MetaDataModule, RolloutLoader
from hyperrl.errors import ConfigError
from hyperrl.modules.encoder import EncoderConfig
from hyperrl.modules.meta_ppo import Logged, MetaPPO
from hyperrl.modules.policy import PolicyConfig
from hyperrl.modules.ppo import PPOConfig

RANKS, ENVS, STEPS = 2, 4, 20
UPDATES, WARM_UP = 100, 2
# Where not every parameter has a gradient in every update.
UNUSED = "ddp_find_unused_parameters_true"
MINIBATCHES: tuple[Literal["env", "step"], ...] = ("env", "step")
# All that an encoder that learns to infer the task adds: buffers, decoders, updates and pictures of its own.
CLI_ARGS = (
    "fit", "--seed_everything=3", "--trainer.accelerator=cpu", f"--data.env={tiny.TOY}", "--data.num_envs=4",
    "--data.steps_per_rollout=5", "--data.rollouts_per_epoch=3", "--data.frames=360", "--data.val_tasks=4",
    "--data.test_tasks=4", "--checkpoint.save_top_k=-1", "--model.inference.encoder_loss=inference",
    "--model.inference.batch_trajectories=3", "--model.inference.reward_layers=[8]",
    "--model.inference.state_layers=[8]", *tiny.MODEL_ARGS,
)  # fmt: skip
ALONE = 120  # frames of one rank in the first two epochs
TOGETHER = (f"--trainer.devices={RANKS}", f"--trainer.strategy={UNUSED}")


def trainer(devices: int, *callbacks: Callback, **options: Any) -> Trainer:
    """A silent trainer for so many processes."""
    common: dict[str, Any] = {
        "accelerator": "cpu", "strategy": "ddp" if devices > 1 else "auto", "max_epochs": -1, "logger": False,
        "num_sanity_val_steps": 0, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "callbacks": [FrameBudget(), *callbacks],
    }  # fmt: skip
    return Trainer(devices=devices, **{**common, **options})


# One update of two ranks, and of one rank on the union of their rollouts


class Given(MetaDataModule):
    """Rollouts that were collected before."""

    given: list[TensorDictBase]

    def train_dataloader(self) -> RolloutLoader:
        return RolloutLoader(self)

    def collect(self) -> TensorDictBase:
        return self.given.pop(0)


class Observed(MetaPPO):
    """Keeps the gradients of every optimiser step; cuts its minibatches as the ranks of a union of rollouts do."""

    parts = 1

    def minibatches(self, rollout: TensorDictBase) -> Iterator[Tensor]:
        part = rollout[: len(rollout) // self.parts]
        size = len(part) if self.config.minibatch == "env" else part.numel()
        for index in super().minibatches(part):
            yield torch.cat([index + number * size for number in range(self.parts)])

    def optimize(self, rollout: TensorDictBase, index: Tensor) -> Logged:
        logged = super().optimize(rollout, index)
        gradients = {name: p.grad.clone() for name, p in self.named_parameters() if p.grad is not None}
        self.gradients = [*getattr(self, "gradients", []), gradients]
        return logged


def learn(rollouts: list[TensorDictBase], ranks: int, minibatch: Literal["env", "step"]) -> dict[str, Any]:
    """What one rank computes from its rollouts, out of ``ranks``: gradients, parameters and metrics."""
    seed_everything(7, verbose=False)
    frames = len(rollouts) * RANKS * ENVS * STEPS
    changes = {**tiny.DATA, "env": tiny.TOY, "num_envs": len(rollouts[0]), "frames": frames}
    source, history = Given(**changes), tiny.History()
    source.given = list(rollouts)
    model = Observed(
        source.env_info, source.num_envs, source.frames, EncoderConfig(**tiny.ENCODER), PolicyConfig(**tiny.POLICY),
        PPOConfig(minibatch=minibatch, encoder_eps=1e-5),
    )  # fmt: skip
    model.parts = RANKS // ranks
    trainer(ranks, history, limit_val_batches=0).fit(model, source)
    return {"gradients": model.gradients, "state": model.state_dict(), "metrics": history.untimed()}


def union(folder: Path) -> dict[str, Any]:
    """This rank's half of the given rollouts."""
    rank = dist.get_rank()
    rollouts = torch.load(folder / "rollouts.pt", weights_only=False)
    own = [rollout[rank * ENVS : (rank + 1) * ENVS] for rollout in rollouts]
    return {minibatch: learn(own, RANKS, minibatch) for minibatch in MINIBATCHES}


# A whole training


class Watch(Callback):
    """Keeps the first rollout, and the returns of every validation on this rank."""

    def __init__(self) -> None:
        self.first: dict[str, Tensor] = {}
        self.returns: list[Tensor] = []
        self.validations: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: MetaPPO, batch: TensorDictBase, *args: Any) -> None:
        if not self.first:
            env = trainer.datamodule.stream.env  # type: ignore[attr-defined]
            self.first = {name: batch[name].clone() for name in (keys.OBSERVATION, keys.ACTION)}
            self.first[keys.TASK] = env.state[keys.TASK].clone()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: MetaPPO, outputs: Any, batch: TensorDictBase, *args: Any
    ) -> None:
        self.returns.append(batch["returns"])

    def on_validation_end(self, trainer: Trainer, pl_module: MetaPPO) -> None:
        self.validations.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def training(folder: Path) -> dict[str, Any]:
    """100 updates, from environments of its own."""
    seed_everything(3, verbose=False)
    changes = {**tiny.DATA, "env": tiny.TOY, "steps_per_rollout": 5, "frames": UPDATES * RANKS * ENVS * 5}
    source = MetaDataModule(**changes | {"rollouts_per_epoch": 50})
    model = tiny.learner(source, PPOConfig(epochs=1, num_minibatches=1))
    history, watch = tiny.History(), Watch()
    trainer(RANKS, history, watch).fit(model, source)
    return {
        "state": model.state_dict(), "metrics": history.untimed(), "first": watch.first,
        "returns": watch.returns, "validations": watch.validations,
    }  # fmt: skip


# A warm-up on the true task, in which the encoder waits


class Encoders(Callback):
    """Keeps the encoder's parameters after every update."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: MetaPPO) -> None:
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: MetaPPO, *args: Any) -> None:
        self.kept.append(torch.cat([p.detach().flatten() for p in pl_module.agent.encoder.parameters()]))


def warm_up(folder: Path) -> dict[str, Any]:
    """Two updates in which the task stands in for the latent, a policy that starts anew, and two more updates."""
    seed_everything(3, verbose=False)
    changes = {**tiny.DATA, "env": "GridNavi-v0", "steps_per_rollout": 5, "frames": 4 * RANKS * ENVS * 5}
    source = MetaDataModule(**changes, publish=[keys.TASK])
    policy = {"task_replaces": "latent", "task_embedding_dim": 4, "task_warmup": WARM_UP, "hard_reset": True}
    model, encoders = tiny.learner(source, policy=policy), Encoders()
    trainer(RANKS, encoders, strategy=UNUSED, limit_val_batches=0).fit(model, source)
    return {"state": model.state_dict(), "encoders": encoders.kept}


# Collective operations


class Collectives(TorchDispatchMode):
    """Counts collective operations, DDP's own ones included."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = str(func).split(".")[1].rstrip("_")
            self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


class Counted(MetaDataModule):
    """Counts those of each collection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.counts: list[dict[str, int]] = []

    def collect(self) -> TensorDictBase:
        with Collectives() as collectives:
            rollout = super().collect()
        self.counts.append(collectives.counts)
        return rollout


class Counter(Callback):
    """Counts those of each update."""

    def __init__(self) -> None:
        self.counts: list[dict[str, int]] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.collectives = Collectives()
        self.collectives.__enter__()

    def on_train_batch_end(self, *args: Any) -> None:
        self.collectives.__exit__(None, None, None)
        self.counts.append(self.collectives.counts)


def counts(folder: Path) -> dict[int, dict[str, Any]]:
    """Collective operations of two rollouts each of 5 and of 40 steps."""
    found = {}
    for steps in (5, 40):
        seed_everything(3, verbose=False)
        changes = {**tiny.DATA, "env": tiny.TOY, "steps_per_rollout": steps, "frames": 2 * RANKS * ENVS * steps}
        source, counter = Counted(**changes), Counter()
        trainer(RANKS, counter, limit_val_batches=0).fit(tiny.learner(source), source)
        found[steps] = {"collection": source.counts, "update": counter.counts}
    return found


# The command line


def command_line(folder: Path) -> dict[str, Any]:
    """A whole run and one that goes on from the middle of it; what this rank printed and wrote, in the first one."""
    written: list[str] = []
    sys.addaudithook(lambda event, args: written.extend(files(event, args)))
    os.chdir(folder / "cli")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        cli.run([*CLI_ARGS, *TOGETHER])
    first = list(written)
    dist.barrier()  # until rank 0 has written all
    (checkpoint,) = Path("runs").glob("hyperrl/*/checkpoints/epoch1-*.ckpt")
    cli.run(["fit", "--ckpt_path", str(checkpoint)])
    return {"printed": printed.getvalue(), "written": first}


def more_ranks(folder: Path) -> dict[str, Any]:
    """Two ranks go on from what one has left: a rollout each."""
    (checkpoint,) = (folder / "alone").glob("runs/hyperrl/*/checkpoints/epoch1-*.ckpt")
    os.chdir(folder / "more")
    watch, collect = Watch(), MetaDataModule.collect

    def watched(data: MetaDataModule) -> TensorDictBase:
        rollout = collect(data)
        watch.on_train_batch_start(data.trainer, data.trainer.lightning_module, rollout)
        return rollout

    MetaDataModule.collect = watched
    done = cli.run(["fit", "--ckpt_path", str(checkpoint), *TOGETHER, f"--data.frames={ALONE + RANKS * ENVS * 5}"])
    MetaDataModule.collect = collect
    return {"state": done.model.state_dict(), "frames": done.model.frames, "first": watch.first}


def apart(folder: Path) -> str:
    """A run whose ranks work in directories of their own: how it ends."""
    os.chdir(folder / f"apart{dist.get_rank()}")
    try:
        cli.run([*CLI_ARGS, *TOGETHER, "--data.frames=120"])
    except ConfigError as error:
        return str(error)
    return "nothing was said"


def files(event: str, args: tuple[Any, ...]) -> list[str]:
    """The path that an audit event of Python is about to create or change, below ``runs``; text, or nothing."""
    path = str(args[event == "os.rename"]) if args else ""
    opened = event == "open" and set(str(args[1])) & set("wax+")
    changes = opened or event in ("os.mkdir", "os.rename", "sqlite3.connect")
    return [path] if changes and "runs" in Path(path).parts else []


SCENARIOS: tuple[Callable[[Path], Any], ...] = (union, training, warm_up, counts, command_line, more_ranks, apart)


def main(folder: Path) -> None:
    """Runs all scenarios; the processes find each other through a file."""
    cli.quiet_libraries()
    rank = int(os.environ["LOCAL_RANK"])
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    for scenario in SCENARIOS:
        torch.save(scenario(folder), folder / f"{scenario.__name__}_{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
