"""Two processes learn together what one would learn from all of their rollouts."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny
import torch
from tensordict import TensorDictBase
from torch.utils import _pytree as pytree

import hyperrl
from hyperrl import cli, keys
from hyperrl.data.rollouts import RolloutStream
from hyperrl.envs import make_env

pytestmark = tiny.QUIET


def given_rollouts() -> list[TensorDictBase]:
    """Two rollouts of the environments of both ranks."""
    torch.manual_seed(7)
    source = tiny.data(env=tiny.TOY, num_envs=ranks.RANKS * ranks.ENVS)
    env = make_env(tiny.TOY, source.num_envs, seed=1, **source.options)
    stream = RolloutStream(env, tiny.learner(source).actor, ranks.STEPS, seed=2)
    return [stream.collect().clone() for _ in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have left that ran all scenarios of `ranks` together."""
    folder = tmp_path_factory.mktemp("ddp")
    for name in ("cli", "alone", "more", "apart0", "apart1"):
        (folder / name).mkdir()
    with contextlib.chdir(folder / "alone"), pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        cli.run([*ranks.CLI_ARGS, "--trainer.devices=1"])
    torch.save(given_rollouts(), folder / "rollouts.pt")
    tests, package = Path(__file__).parent, Path(hyperrl.__file__).parents[1]
    paths = os.pathsep.join(filter(None, [str(tests), str(package), os.environ.get("PYTHONPATH")]))
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "PL_", "PYTEST"))}
    env |= {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(tests / "ranks.py"), str(folder)], env={**env, "LOCAL_RANK": str(rank)},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(ranks.RANKS)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return folder


def results(folder: Path, scenario: str) -> list[Any]:
    """What each rank has seen."""
    return [torch.load(folder / f"{scenario}_{rank}.pt", weights_only=False) for rank in range(ranks.RANKS)]


@pytest.mark.parametrize("minibatch", ranks.MINIBATCHES)
def test_two_ranks_learn_what_one_does_from_the_union(folder: Path, minibatch: str) -> None:
    whole = ranks.learn(torch.load(folder / "rollouts.pt", weights_only=False), 1, minibatch)
    assert len(whole["gradients"]) == 2 * 2 * 4  # rollouts, epochs, minibatches
    for rank in results(folder, "union"):
        half = rank[minibatch]
        torch.testing.assert_close(half["gradients"], whole["gradients"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(half["state"], whole["state"], rtol=1e-5, atol=1e-6)


def test_metrics_are_those_of_the_union(folder: Path) -> None:
    """All but those that are no means: the largest change, and the share of variance that is explained."""
    whole = ranks.learn(torch.load(folder / "rollouts.pt", weights_only=False), 1, "env")["metrics"]
    halves = results(folder, "union")
    assert halves[0]["env"]["metrics"] == halves[1]["env"]["metrics"]
    for half, union in zip(halves[0]["env"]["metrics"], whole, strict=True):
        assert half.keys() == union.keys()
        names = [name for name in union if not name.endswith(("max_log_prob_change", "explained_variance"))]
        assert len(names) >= len(union) - 3
        assert [half[name] for name in names] == pytest.approx([union[name] for name in names], rel=1e-5, abs=1e-7)


def test_ranks_see_different_tasks_and_draw_different_actions(folder: Path) -> None:
    first, second = (result["first"] for result in results(folder, "training"))
    tasks = torch.cat([part[keys.TASK] for part in (first, second)])
    assert len(tasks.unique()) == len(tasks) == ranks.RANKS * ranks.ENVS
    for name in (keys.OBSERVATION, keys.ACTION):
        assert first[name].shape == second[name].shape
        assert not torch.equal(first[name], second[name])


def test_validation_is_the_mean_over_the_tasks_of_all_ranks(folder: Path) -> None:
    first, second = results(folder, "training")
    assert len(first["validations"]) == 2
    assert first["validations"] == second["validations"]
    for metrics, *parts in zip(first["validations"], first["returns"], second["returns"], strict=True):
        assert not torch.equal(*parts)
        tasks = torch.cat(parts)
        assert len(tasks) == ranks.RANKS * tiny.DATA["val_tasks"]
        assert metrics["val/return"] == pytest.approx(tasks.sum(1).mean().item(), abs=1e-6)
        assert metrics["val/return_episode_1"] == pytest.approx(tasks[:, 0].mean().item(), abs=1e-6)


def test_ranks_stay_identical(folder: Path) -> None:
    """Parameters, statistics and metrics, to the last bit."""
    first, second = results(folder, "training")
    assert len(first["metrics"]) == ranks.UPDATES
    assert first["metrics"] == second["metrics"]
    assert sum("train/return" in update for update in first["metrics"]) > ranks.UPDATES / 2
    assert {"reward_normalizer.var", "reward_normalizer.mean"} <= first["state"].keys()
    torch.testing.assert_close(first["state"], second["state"], rtol=0, atol=0)


def test_ranks_warm_up_together(folder: Path) -> None:
    one, two = results(folder, "warm_up")
    assert all(torch.equal(value, two["state"][name]) for name, value in one["state"].items())
    start, *after = one["encoders"]
    same = [torch.equal(start, encoder) for encoder in after]
    assert same == [True, True, False, False]  # the encoder waits for the end of the warm-up


def test_collective_operations_do_not_grow_with_the_steps(folder: Path) -> None:
    for rank in results(folder, "counts"):
        assert rank[5] == rank[40]
        # Returns of finished tasks; statistics of rewards, advantages and states, metrics, and 2 x 4 gradients.
        assert rank[5]["collection"] == [{"allreduce": 1}] * 2
        assert [update["allreduce"] for update in rank[5]["update"]] == [4 + 8] * 2


def checkpoint(run: Path) -> dict[str, Any]:
    """The last checkpoint of a run, without what is known to differ: its place, its callbacks' paths and its times."""
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return {name: state[name] for name in ("state_dict", "optimizer_states", "learner", "MetaDataModule")}


def test_resumed_ranks_go_on_as_if_nothing_had_happened(folder: Path) -> None:
    runs = (folder / "cli" / "runs" / "hyperrl").iterdir()
    # The resumed one has fewer checkpoints.
    resumed, whole = map(checkpoint, sorted(runs, key=lambda run: len(list(run.glob("checkpoints/*")))))
    assert len(whole["MetaDataModule"]["streams"]) == ranks.RANKS
    first, second = whole["learner"]["inference"]
    assert not torch.equal(first, second)
    found, expected = (pytree.tree_flatten_with_path(state)[0] for state in (resumed, whole))
    assert [path for path, _ in found] == [path for path, _ in expected]
    for (path, value), (_, other) in zip(found, expected, strict=True):
        same = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
        assert same, pytree.keystr(path)


def test_rank_zero_alone_writes_and_prints(folder: Path) -> None:
    first, second = results(folder, "command_line")
    assert second == {"printed": "", "written": []}
    assert first["printed"].count("Adaptation (test)") == 1
    assert first["printed"].count("Next:") == 1
    names = Counter(Path(path).name for path in first["written"] if "artifacts" not in Path(path).parts)
    once = {name: number for name, number in names.items() if name.startswith(("epoch", "inference_"))}
    assert len(once) == 3 * 3  # a checkpoint, a picture and its numbers for each epoch
    assert set(once.values()) == {1}
    assert len({path for path in first["written"] if path.endswith("metrics.jsonl")}) == 1
    assert names["last.ckpt"] == 3  # written over at the end of each epoch


def test_another_number_of_ranks_goes_on_with_a_warning(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (path,) = folder.glob("cli/runs/hyperrl/*/checkpoints/epoch1-*.ckpt")
    with caplog.at_level("WARNING", logger="hyperrl"):
        resumed = cli.run(
            ["fit", "--ckpt_path", str(path), "--trainer.devices=1", "--trainer.strategy=auto", "--data.frames=280"]
        )
    assert [record.message for record in caplog.records if "ranks differ" in record.message]
    assert resumed.model.frames == 240 + 2 * 4 * 5


def test_two_ranks_go_on_from_what_one_has_left(folder: Path) -> None:
    (path,) = (folder / "alone").glob("runs/hyperrl/*/checkpoints/epoch1-*.ckpt")
    assert torch.load(path, weights_only=False)["learner"]["frames"] == ranks.ALONE
    one, two = results(folder, "more_ranks")
    assert one["frames"] == two["frames"] == ranks.ALONE + ranks.RANKS * ranks.ENVS * 5
    assert one["state"].keys() == two["state"].keys()
    assert all(torch.equal(value, two["state"][name]) for name, value in one["state"].items())
    assert not torch.equal(one["first"][keys.TASK], two["first"][keys.TASK])


def test_machines_without_a_common_directory_end_together(folder: Path) -> None:
    (checkpoint,) = folder.glob("apart0/runs/hyperrl/*/checkpoints/epoch0-*.ckpt")
    for said in results(folder, "apart"):
        assert f"{checkpoint.relative_to(folder / 'apart0')} is not on all machines" in said
