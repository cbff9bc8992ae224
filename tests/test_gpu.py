"""The same on a real GPU as `test_device.py` on a pretended one; whatever can also runs on the CPU here.

`make gpu` runs the tests that need a GPU.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_device import ROLLOUT, UPDATE, Case, Learner, agent_for, build
from torch.profiler import ProfilerActivity, profile

from hyperrl import cli, keys
from hyperrl.data.rollouts import RolloutStream
from hyperrl.envs import make_env
from hyperrl.modules.agent import Actor

pytestmark = tiny.QUIET
GPU = pytest.param("cuda", marks=pytest.mark.gpu)
DEVICES = pytest.mark.parametrize("device", ["cpu", GPU])
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
        monkeypatch.setattr(owner, attribute, _waiting(getattr(owner, attribute)))
        if owner is module:  # whoever has imported the function has it under its own name
            user = importlib.import_module("hyperrl.modules.meta_ppo")
            monkeypatch.setattr(user, attribute, getattr(owner, attribute), raising=False)


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


def on(device: str, case: Case = Case()) -> tuple[Learner, RolloutStream]:  # noqa: B008 - a named tuple
    """A learner and its rollouts, of tasks that end in each environment by itself."""
    learner, env = build(case, device)
    learner = learner.to(device)
    return learner, RolloutStream(env, learner.actor, STEPS, 0)


@pytest.mark.parametrize("device", [GPU])  # on the CPU, `test_resume.py` does more
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_fit_and_its_continuation(
    device: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    common = [
        f"--trainer.accelerator={'gpu' if device == 'cuda' else 'cpu'}", "--trainer.devices=1",
        f"--trainer.precision={precision}", "--data.num_envs=4", "--data.steps_per_rollout=15",
        "--data.rollouts_per_epoch=2", "--data.val_tasks=4", "--data.test_tasks=4", *tiny.MODEL_ARGS,
    ]  # fmt: skip
    first = cli.run(["fit", "--data.frames=120", *common], test=False)
    assert first.model.frames == 120
    assert {p.device.type for p in first.model.parameters()} <= {device, "cpu"}
    (checkpoint,) = tmp_path.glob("runs/hyperrl/*/checkpoints/last.ckpt")
    second = cli.run(["fit", f"--ckpt_path={checkpoint}", "--data.frames=240", *common], test=False)
    assert second.model.frames == 240
    assert all(abs(value) < float("inf") for value in second.model.rollout_metrics.values())


@DEVICES
def test_a_rollout_and_an_update_wait_only_where_they_may(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, stream = on(device)
    learner.with_advantages(stream.collect())  # libraries are loaded, and memory is taken
    let_wait(monkeypatch, {**ROLLOUT, **UPDATE})
    with no_waiting(device):
        rollout, latent = learner.with_advantages(stream.collect())
        for index in learner.minibatches(rollout):
            learner.optimize(rollout, index)
        learner.agent.update_statistics(rollout, latent)
        learner.agent.finish_update()
    assert rollout[keys.OBSERVATION].device.type == device


@pytest.mark.gpu
def test_waiting_is_noticed() -> None:
    x = torch.ones(3, device="cuda")
    with no_waiting("cuda"), pytest.raises(RuntimeError, match="synchron"):
        x.sum().item()


@DEVICES
def test_the_loss_equals_the_cpus(device: str) -> None:
    learner, stream = on(device)
    reference, _ = build(Case(), "cpu")
    reference.load_state_dict(learner.state_dict())
    rollout = stream.collect()
    prepared, _ = learner.with_advantages(rollout)
    expected, _ = reference.with_advantages(rollout.cpu())
    torch.testing.assert_close(prepared.cpu(), expected, rtol=1e-3, atol=1e-4)
    index = next(iter(reference.minibatches(expected)))
    losses = {}
    for name, model, batch in (("own", learner, prepared), ("expected", reference, expected)):
        total, _ = model.loss(batch, index)
        total.backward()
        losses[name] = [total.detach().cpu(), *(p.grad.cpu() for p in model.parameters() if p.grad is not None)]
    torch.testing.assert_close(losses["own"], losses["expected"], rtol=1e-3, atol=1e-4)


@DEVICES
def test_a_stream_goes_on_from_its_state(device: str) -> None:
    learner, stream = on(device)
    stream.collect()
    state = stream.state_dict()
    expected = stream.collect()
    fresh = RolloutStream(build(Case(), device)[1], learner.actor, STEPS, 9)
    fresh.load_state_dict(state)
    again = fresh.collect()
    for key in expected.keys(True, True):
        assert torch.equal(again[key], expected[key]), key


@DEVICES
def test_nothing_is_copied_at_a_step(device: str) -> None:
    """A rollout of twice the length has as many copies between host and device."""
    copies = []
    for steps in (5, 10):
        env = make_env("GridNavi-v0", 4, device=device)
        stream = RolloutStream(env, functools.partial(Actor, agent_for(env.env_info).to(device)), steps, 0)
        stream.collect()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
        with profile(activities=activities) as profiler:
            stream.collect()
        names = [event.name for event in profiler.events()]
        copies.append(sum("Memcpy HtoD" in name or "Memcpy DtoH" in name for name in names))
        assert any("aten::" in name for name in names)
    assert copies[0] == copies[1]
