"""The same on a real GPU as `test_device.py` on a pretended one.

`make gpu` runs these tests. Elsewhere only their bodies run, on the CPU, so that they do not break unnoticed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_device import BUFFER, CASES, ONCE, ROLLOUT, UPDATE, WORLDS, Case, Learner, agent_for, build, everything
from torch.profiler import ProfilerActivity, profile

from hyperrl import cli, keys
from hyperrl.data.rollouts import RolloutStream
from hyperrl.envs import make_env
from hyperrl.modules.agent import Actor
from hyperrl.modules.meta_ppo import MetaPPO

pytestmark = tiny.QUIET
STEPS = 20


@contextlib.contextmanager
def no_waiting(device: str) -> Iterator[None]:
    """Makes an error of everything that makes the host wait for a GPU."""
    if device == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def let_wait(monkeypatch: pytest.MonkeyPatch, functions: Collection[str]) -> None:
    """Lets functions of the package wait all the same; named as in `test_device.py`."""
    for name in functions:
        module, owner = _located(name)
        attribute = name.rsplit(".", 1)[1]
        function = getattr(owner, attribute)
        # Whoever has imported the function has it under its own name.
        users = [user for key, user in list(sys.modules.items()) if key.startswith("hyperrl.")]
        for holder in (owner, *(user for user in users if owner is module and user is not module)):
            if vars(holder).get(attribute) is function:
                monkeypatch.setattr(holder, attribute, _waiting(function))


def _located(name: str) -> tuple[Any, Any]:
    """The module of a function, and the class or module that holds it."""
    path = name.split(".")[:-1]
    inside: list[str] = []
    while True:
        try:
            module = importlib.import_module(".".join(("hyperrl", *path)))
        except ModuleNotFoundError:
            inside.insert(0, path.pop())
        else:
            return module, functools.reduce(getattr, inside, module)


def _waiting(function: Any) -> Any:
    if isinstance(function, property):
        return property(_waiting(function.fget))

    @functools.wraps(function)
    def waiting(*args: Any, **kwargs: Any) -> Any:
        mode = torch.cuda.get_sync_debug_mode() if torch.cuda.is_available() else 0
        if mode:
            torch.cuda.set_sync_debug_mode("default")
        try:
            return function(*args, **kwargs)
        finally:
            if mode:
                torch.cuda.set_sync_debug_mode(mode)

    return waiting


def on(device: str, case: Case) -> tuple[Learner, RolloutStream]:
    """A learner and its rollouts, of tasks that end in each environment by itself."""
    learner, env = build(case, device)
    learner = learner.to(device)
    return learner, RolloutStream(env, learner.actor, STEPS, 0)


def update(device: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollout and an update wait only where they may."""
    learner, stream = on(device, case)
    rollout = stream.collect()
    learner.with_advantages(rollout)  # libraries are loaded, and memory is taken
    if learner.inference.config.uses_trajectories:
        learner.trajectories.add(rollout)
    let_wait(monkeypatch, {**ROLLOUT, **UPDATE, **ONCE, **BUFFER, **dict.fromkeys(case.waits)})
    with no_waiting(device):
        rollout, latent = learner.with_advantages(stream.collect())
        for index in learner.minibatches(rollout):
            learner.optimize(rollout, index)
        learner.agent.update_statistics(rollout, latent)
        learner.agent.finish_update()
    assert rollout[keys.OBSERVATION].device.type == device


def losses(device: str, case: Case) -> None:
    """The loss and its gradients equal the CPU's."""
    learner, stream = on(device, case)
    reference, _ = build(case, "cpu")
    reference.load_state_dict(learner.state_dict())
    rollout = stream.collect()
    if learner.inference.config.uses_trajectories:
        learner.trajectories.add(rollout)
        reference.trajectories.add(rollout.cpu())
    prepared, _ = learner.with_advantages(rollout)
    expected, _ = reference.with_advantages(rollout.cpu())
    torch.testing.assert_close(prepared.cpu(), expected, rtol=1e-3, atol=1e-4)
    index = next(iter(reference.minibatches(expected)))
    found = []
    for model, batch in ((learner, prepared), (reference, expected)):
        total, _ = model.loss(batch, index)
        total.backward()
        found.append([total.detach().cpu(), *(p.grad.cpu() for p in model.parameters() if p.grad is not None)])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def rollouts(device: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting waits only where it may."""
    env = make_env(name, 4, device=device, publish=everything(name))
    stream = RolloutStream(env, functools.partial(Actor, agent_for(env.env_info).to(device)), STEPS, 0)
    stream.collect()
    let_wait(monkeypatch, ROLLOUT)
    with no_waiting(device):
        rollout = stream.collect()
    assert {value.device.type for value in rollout.values(True, True)} == {device}


def continuation(device: str) -> None:
    """A stream goes on from its state."""
    learner, stream = on(device, Case())
    stream.collect()
    state = stream.state_dict()
    expected = stream.collect()
    fresh = RolloutStream(build(Case(), device)[1], learner.actor, STEPS, 9)
    fresh.load_state_dict(state)
    again = fresh.collect()
    for key in expected.keys(True, True):
        assert torch.equal(again[key], expected[key]), key


def names_of_events(device: str, steps: int) -> list[str]:
    """What the profiler sees of a rollout."""
    env = make_env("GridNavi-v0", 4, device=device)
    stream = RolloutStream(env, functools.partial(Actor, agent_for(env.env_info).to(device)), steps, 0)
    stream.collect()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiler:
        stream.collect()
    return [event.name for event in profiler.events()]


def fit(accelerator: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """A fit and its continuation in the working directory; returns where model and environments were."""
    seen: set[str] = set()

    def note(model: MetaPPO, *_: Any) -> None:
        seen.update((model.device.type, model.trainer.datamodule.stream.env.device.type))  # type: ignore[attr-defined]

    monkeypatch.setattr(MetaPPO, "on_train_batch_end", note)
    common = [
        f"--trainer.accelerator={accelerator}", "--trainer.devices=1", f"--trainer.precision={precision}",
        "--data.num_envs=4", "--data.steps_per_rollout=15", "--data.rollouts_per_epoch=2", "--data.val_tasks=4",
        "--data.test_tasks=4", *tiny.MODEL_ARGS,
    ]  # fmt: skip
    first = cli.run(["fit", "--data.frames=120", *common], test=False)
    assert first.model.frames == 120
    (checkpoint,) = Path().glob("runs/hyperrl/*/checkpoints/last.ckpt")
    second = cli.run(["fit", f"--ckpt_path={checkpoint}", "--data.frames=240", *common], test=False)
    assert second.model.frames == 240
    assert all(abs(value) < float("inf") for value in second.model.rollout_metrics.values())
    return seen


def test_the_bodies_run_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compared with another device here: this is about the code above. For `fit` see `test_resume.py`."""
    for name in ("gru", "after a warm-up", "both losses"):
        update("cpu", CASES[name], monkeypatch)
        losses("cpu", CASES[name])
    rollouts("cpu", "GridNavi-v0", monkeypatch)
    continuation("cpu")
    assert any("aten::" in name for name in names_of_events("cpu", 2))


@pytest.mark.gpu
class TestOnAGPU:
    def test_waiting_is_noticed(self) -> None:
        x = torch.ones(3, device="cuda")
        with no_waiting("cuda"), pytest.raises(RuntimeError, match="synchron"):
            x.sum().item()

    @pytest.mark.parametrize("name", CASES)
    def test_a_rollout_and_an_update_wait_only_where_they_may(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        update("cuda", CASES[name], monkeypatch)

    @pytest.mark.parametrize("name", CASES)
    def test_the_loss_equals_the_cpus(self, name: str) -> None:
        losses("cuda", CASES[name])

    @pytest.mark.parametrize("name", WORLDS)
    def test_collecting_waits_only_where_it_may(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        rollouts("cuda", name, monkeypatch)

    def test_a_robot_computes_on_the_host(self) -> None:
        env = make_env("HalfCheetahDir-v0", 4, device="cuda", episodes_per_task=2, episode_length=3)
        stream = RolloutStream(env, functools.partial(Actor, agent_for(env.env_info).to("cuda")), STEPS, 0)
        rollout = stream.collect()
        assert {value.device.type for value in rollout.values(True, True)} == {"cuda"}
        assert rollout[keys.NEXT, keys.DONE].sum() == 4 * (STEPS // 6)

    def test_a_stream_goes_on_from_its_state(self) -> None:
        continuation("cuda")

    def test_nothing_is_copied_at_a_step(self) -> None:
        """A rollout of twice the length has as many copies between host and device."""
        copies = []
        for steps in (5, 10):
            names = names_of_events("cuda", steps)
            assert any("cuda" in name.lower() for name in names)  # else the trace is empty
            copies.append(sum("Memcpy HtoD" in name or "Memcpy DtoH" in name for name in names))
        assert copies[0] == copies[1]

    @pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
    def test_a_fit_and_its_continuation(self, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert fit("gpu", precision, monkeypatch) == {"cuda"}
