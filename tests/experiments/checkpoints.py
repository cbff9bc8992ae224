"""Checkpoints of tiny agents with random weights, made without training."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from tiny import ENCODER, POLICY, TOY

from hyperrl.experiments import agents

GRID: dict[str, Any] = {"env": "GridNavi-v0", "episodes_per_task": 2, "env_options": {"num_steps": 6}}
# Episodes of 2 to 5 steps, continuous actions.
CONTINUOUS: dict[str, Any] = {"env": TOY, "env_options": {"continuous": True}}
ORACLE: dict[str, Any] = {"use_latent": False, "hypernet_input": "task"}
# Name: data, encoder, policy, inference. Sequences and aggregators by class path, as in configurations.
AGENTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "rnn_hn": (GRID, {}, {}, {}),
    "rnn_hn continuous": (CONTINUOUS, {"action_embedding_dim": 4}, {}, {}),
    "splagger": (GRID, {"split": True, "aggregator": {"class_path": "hyperrl.modules.aggregators.Max"}}, {}, {}),
    "vi_hn": (
        GRID, {}, {"normalize_latent": True},
        {"encoder_loss": "inference", "reward": "bernoulli", "reward_per_state": True},
    ),
    "vi_hn continuous": (CONTINUOUS, {}, {"normalize_latent": True}, {"encoder_loss": "inference"}),
    "pearl": (GRID, {"sample_latent": True}, {"conditioning": "concat"}, {"encoder_loss": "rl_and_kl"}),
    "task oracle": (GRID, {}, {**ORACLE, "use_task": True, "task_embedding_dim": 4}, {}),
    "task id": (GRID, {}, {"use_latent": False, "use_task": True, "conditioning": "per_task"}, {}),
    "belief oracle": (GRID, {}, {"use_latent": False, "use_belief": True, "conditioning": "concat"}, {}),
    "task in training": (GRID, {}, {"task_replaces": "latent", "task_chance": 0.5, "task_embedding_dim": 4}, {}),
}  # fmt: skip


def write_checkpoint(path: Path, name: str = "rnn_hn", **data: Any) -> Path:
    """Writes a checkpoint of one of `AGENTS`, whose weights and statistics all matter; `data` are changes."""
    torch.save(checkpoint(name, json.dumps(data)), path)
    return path


@functools.cache
def checkpoint(name: str, changes: str) -> dict[str, Any]:
    """What the file holds; it takes a tenth of a second."""
    data, encoder, policy, inference = AGENTS[name]
    model = {"encoder": {**ENCODER, **encoder}, "policy": {**POLICY, **policy}, "inference": inference}
    # As the command line adds it to the configuration.
    needed = {"belief oracle": "belief", "task id": "task_id", "vi_hn": "state_id"}
    publish = [needed[name]] if name in needed else ["task"] if name.startswith("task") else []
    config = {"data": {**data, "publish": publish, **json.loads(changes)}, "model": model}
    learner, _ = agents.build(config)
    generator = torch.Generator().manual_seed(0)
    state = learner.state_dict()
    for key, value in state.items():
        if not value.dtype.is_floating_point or key.endswith("count"):
            continue
        value.copy_(0.4 * torch.randn(value.shape, generator=generator))
        if key.endswith("var"):
            value.abs_().add_(0.5)
    return {"config": yaml.safe_dump(config), "state_dict": state, "learner": {"frames": 1234}}
