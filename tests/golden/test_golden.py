"""Replays of what the reference implementation computed (shared golden data): one test per file, by its content."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from aggregator_cases import run_aggregator
from analysis_cases import run_analysis
from buffer_cases import run_vae_buffer
from collection import SHIPPED, collection, golden_directory, pending_rules
from elbo_cases import run_decoder, run_elbo, run_state_gaussian, run_vae_kl
from encoder_cases import run_encoder
from grid_cases import run_grid
from hall_cases import run_hall
from init_cases import run_init
from latent_cases import run_latent_for_policy
from learning_curve_cases import run_learning_curves
from mine_maze_cases import run_mine
from model_cases import run_policy
from planning_game_cases import run_planning_game
from point_robot_cases import run_point_robot
from support import Description, Golden
from t_maze_cases import run_tmaze
from training_cases import (
    run_evaluation_metrics,
    run_ppo_loss,
    run_returns,
    run_reward_normalisation,
    run_rollout_encoding,
    run_running_mean_std,
    run_vecnormalize,
)
from update_cases import run_ppo_update

HANDLERS: dict[str, Callable[[Golden], None]] = {
    "grid": run_grid,
    "hall": run_hall,
    "tmaze": run_tmaze,
    "mine": run_mine,
    "plan": run_planning_game,
    "point": run_point_robot,
    "spoint": run_point_robot,
    "semi": run_point_robot,
    "aggregator": run_aggregator,
    "vecnormalize": run_vecnormalize,
    "policy": run_policy,
    "encoder": run_encoder,
    "init": run_init,
    "init_plain": run_init,
    "running_mean_std": run_running_mean_std,
    "returns": run_returns,
    "ppo_loss": run_ppo_loss,
    "ppo_update": run_ppo_update,
    "reward_normalisation": run_reward_normalisation,
    "evaluation_metrics": run_evaluation_metrics,
    "rollout_encoding": run_rollout_encoding,
    "vae_buffer": run_vae_buffer,
    "latent_for_policy": run_latent_for_policy,
    "decoder": run_decoder,
    "elbo": run_elbo,
    "vae_kl": run_vae_kl,
    "state_gaussian": run_state_gaussian,
    "learning_curves": run_learning_curves,
    "analysis": run_analysis,
}


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_golden(path: Path) -> None:
    file = Description.read(path)
    assert file.kind in HANDLERS, f"kind {file.kind!r} is neither handled nor pending"
    HANDLERS[file.kind](Golden(file))


def test_pending(pytestconfig: pytest.Config) -> None:
    """What is owed is stated exactly: every rule is still needed, and every file is either compared or owed."""
    rules = pending_rules()
    assert all(rule.issue == 7 and rule.reason for rule in rules)
    directory = golden_directory(pytestconfig)
    if not directory.is_dir():
        return
    found = collection(pytestconfig)
    assert {*found.due, *found.pending} == set(directory.rglob("*.npz"))
    kinds = {file.kind for file in found.files}
    for rule in rules:
        stale = rule.kind in kinds and not any(rule.holds(file) for file in found.files)
        assert not (stale and directory.resolve() == SHIPPED.resolve()), f"no file needs the rule {rule}"
