"""What the tests of training share: a toy environment, tiny models, and a fit that takes a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor

from hyperrl import keys
from hyperrl.callbacks import FrameBudget
from hyperrl.data.datamodule import MetaDataModule
from hyperrl.envs.base import MetaEnv, Transition
from hyperrl.envs.layout import Layout
from hyperrl.modules.encoder import EncoderConfig
from hyperrl.modules.inference_config import InferenceConfig
from hyperrl.modules.meta_ppo import MetaPPO
from hyperrl.modules.policy import PolicyConfig
from hyperrl.modules.ppo import PPOConfig

# For `pytestmark`: what Lightning says about tiny runs that are called from Python.
QUIET = pytest.mark.filterwarnings("ignore:::lightning")
# The same tiny model for the command line.
MODEL_ARGS = (
    "--model.encoder.hidden_dim=8",
    "--model.policy.layers=[8]",
    "--model.policy.state_embedding_dim=8",
    "--model.policy.latent_embedding_dim=4",
)
ENCODER: dict[str, Any] = {"hidden_dim": 8}
POLICY: dict[str, Any] = {"layers": [8], "state_embedding_dim": 8, "latent_embedding_dim": 4}
DATA: dict[str, Any] = {
    "num_envs": 4, "steps_per_rollout": 20, "frames": 400, "rollouts_per_epoch": 2, "val_tasks": 8, "test_tasks": 8
}  # fmt: skip


class Toy(MetaEnv):
    """Episodes of 2 to 5 steps, drawn for each: even lengths terminate, odd ones are truncated.

    What an action is worth differs from task to task; the observation is the number of steps left and a random number.

    Args:
        num_envs: number of environments.
        episodes_per_task: episodes per task.
        continuous: two continuous actions instead of three discrete ones.
        **options: what all environments take.
    """

    def __init__(self, num_envs: int, episodes_per_task: int = 2, *, continuous: bool = False, **options: Any) -> None:
        bounds: dict[str, Any] = {"action_low": (-1.0, -1.0), "action_high": (1.0, 1.0)}
        layout = Layout(
            episode_length=5,
            observation_low=(0.0, 0.0),
            observation_high=(5.0, 1.0),
            task_dim=1,
            **(bounds if continuous else {"num_actions": 3}),
        )
        super().__init__(num_envs, episodes_per_task, layout, **options)

    def sample_tasks(self, n: int) -> Tensor:
        return torch.rand(n, generator=self._generator, device=self.device)

    def reset_state(self, mask: Tensor) -> None:
        length = torch.randint(2, 6, (self.num_envs,), generator=self._generator, device=self.device)
        self.write("left", mask, length)
        self.write("odd", mask, length % 2 == 1)

    def observe(self) -> Tensor:
        noise = torch.rand(self.num_envs, generator=self._generator, device=self.device)
        return torch.stack((self.state["left"].float(), noise), -1)

    def transition(self, action: Tensor) -> Transition:
        self.state["left"] = self.state["left"] - 1
        value = action.float().view(self.num_envs, -1).sum(-1)
        done = self.state["left"] <= 0
        return Transition(self.observe(), torch.cos(6 * self.state[keys.TASK] + value), done, ~self.state["odd"])

    def publish_success(self) -> Tensor:
        return self.state["left"].unsqueeze(-1) % 3 == 1


if "Toy-v0" not in gymnasium.registry:
    gymnasium.register("Toy-v0", entry_point="tiny:Toy")

TOY = "tiny:Toy-v0"


def data(**changes: Any) -> MetaDataModule:
    """A data module of four environments."""
    return MetaDataModule(**{**DATA, **changes})


def learner(
    source: MetaDataModule,
    ppo: PPOConfig | None = None,
    policy: dict[str, Any] | None = None,
    encoder: dict[str, Any] | None = None,
    inference: dict[str, Any] | None = None,
) -> MetaPPO:
    """A tiny model that fits the data; what is given differs from the tiny defaults."""
    return MetaPPO(
        source.env_info,
        source.num_envs,
        source.frames,
        EncoderConfig(**{**ENCODER, **(encoder or {})}),
        PolicyConfig(**{**POLICY, **(policy or {})}),
        ppo or PPOConfig(),
        InferenceConfig(**(inference or {})),
    )


class History(Callback):
    """Keeps the metrics of every update."""

    def __init__(self) -> None:
        self.updates: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: MetaPPO, *args: Any) -> None:
        self.updates.append({"frames": pl_module.frames, **pl_module.rollout_metrics})

    def untimed(self) -> list[dict[str, float]]:
        """Without what no seed decides."""
        return [{k: v for k, v in update.items() if not k.startswith("time/")} for update in self.updates]


def trainer(callbacks: Sequence[Callback] = (), precision: Any = "32-true") -> Trainer:
    """A silent trainer that stops at the frame budget and writes nothing."""
    return Trainer(
        accelerator="cpu",
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        max_epochs=-1,
        callbacks=[FrameBudget(), *callbacks],
    )


def fit(
    seed: int = 0,
    ppo: PPOConfig | None = None,
    policy: dict[str, Any] | None = None,
    encoder: dict[str, Any] | None = None,
    inference: dict[str, Any] | None = None,
    precision: Any = "32-true",
    callbacks: Sequence[Callback] = (),
    **changes: Any,
) -> tuple[MetaPPO, History]:
    """Trains a tiny model; `changes` are settings of the data."""
    seed_everything(seed, verbose=False)
    parts = PolicyConfig(**{**POLICY, **(policy or {})}), InferenceConfig(**(inference or {}))
    published = [*changes.pop("publish", ()), *(name for part in parts for name in part.publish)]
    source, history = data(publish=list(dict.fromkeys(published)), **changes), History()
    model = learner(source, ppo, policy, encoder, inference)
    trainer([history, *callbacks], precision).fit(model, source)
    return model, history
