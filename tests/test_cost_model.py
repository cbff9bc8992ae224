"""The cost model says what the code does: torch's counter finds the same operations, autograd keeps the same bytes."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pretended_device import DEVICE, PretendedDevice, moved, pretended
from tensordict import TensorDictBase
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hyperrl import keys
from hyperrl.data.datamodule import MetaDataModule
from hyperrl.data.rollouts import RolloutStream
from hyperrl.envs import make_env
from hyperrl.errors import ConfigError
from hyperrl.modules.aggregators import Max
from hyperrl.modules.encoder import EncoderConfig
from hyperrl.modules.meta_ppo import MetaPPO
from hyperrl.modules.policy import PolicyConfig
from hyperrl.modules.ppo import PPOConfig
from hyperrl.modules.sequence import LSTM, gru_kernel

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import cost_model  # noqa: E402
import model_sizes  # noqa: E402
from common import saved_bytes  # noqa: E402
from cost_model import Efficiency, Machine, Setting, Term  # noqa: E402

__all__ = ["pretended"]  # the fixture

pytestmark = pytest.mark.filterwarnings("ignore:::torchrl")

ENCODER: dict[str, Any] = {"hidden_dim": 24, "state_embedding_dim": 8}
POLICY: dict[str, Any] = {"layers": [64, 8], "state_embedding_dim": 64, "latent_embedding_dim": 5}
SPLAGGER: dict[str, Any] = {"aggregator": Max, "split": True, "full_transitions": True, "action_embedding_dim": 4}
FLAT: dict[str, Any] = {"layers": [16, 16, 8]}
MINIBATCHES = 4
DEFAULTS: dict[str, Any] = {
    "env": "GridNavi-v0",
    "num_envs": 8,
    "steps": 60,
    "shared": False,
    "bf16": False,
    "skip": 0,
    "own_gru": True,
}
CASES: dict[str, dict[str, Any]] = {
    "RNN+HN, own GRU": {},
    "RNN+HN, torch's GRU": {"own_gru": False},
    "RNN+HN, shared products": {"shared": True},
    "RNN+HN, shared products of many rows, bf16": {"num_envs": 256, "shared": True, "bf16": True},
    "RNN+HN, shared products of few acting rows, bf16": {"num_envs": 80, "shared": True, "bf16": True},
    "RNN+HN, shared products of few rows, bf16": {"num_envs": 4, "shared": True, "bf16": True},
    "RNN+HN, first layer contracts": {"policy": FLAT, "shared": True},
    "RNN+HN, hypernetwork with layers of its own": {"policy": {"hypernet_layers": [7, 6]}},
    "RNN+HN, long episodes": {"env_options": {"num_steps": 60}, "steps": 240},
    "RNN+HN, no task begins in the second rollout": {"steps": 20, "skip": 1},
    "RNN+HN, continuous actions, truncated tasks": {"env": "PointEnv-v0", "steps": 30},
    "SplAgger": {"encoder": SPLAGGER},
    "SplAgger, T-Maze": {"encoder": SPLAGGER, "env": "T-LN-P1-v0", "steps": 30},
    "RNN": {"policy": {"conditioning": "concat"}},
    "RNN, layers around the aggregator": {
        "policy": {"conditioning": "concat"},
        "encoder": {**SPLAGGER, "layers_after": [12, 10], "output_layers": [9]},
    },
    "FiLM": {"policy": {"conditioning": "film"}},
}


def make_learner(
    env: str = "GridNavi-v0",
    num_envs: int = 8,
    encoder: dict[str, Any] | None = None,
    policy: dict[str, Any] | None = None,
    **env_options: Any,
) -> MetaPPO:
    torch.manual_seed(0)
    info = make_env(env, 1, **env_options).env_info
    parts = EncoderConfig(**{**ENCODER, **(encoder or {})}), PolicyConfig(**{**POLICY, **(policy or {})})
    return MetaPPO(info, num_envs, 10**6, *parts, PPOConfig(num_minibatches=MINIBATCHES))


def distinct(observation: Tensor) -> int:
    return len(torch.unique(observation.flatten(0, -2), dim=0))


def setting_of(rollout: TensorDictBase, index: Tensor, shared: bool, bf16: bool) -> Setting:
    """How a rollout was made, read off its data."""
    after, observation = rollout[keys.NEXT], rollout[keys.OBSERVATION]
    ends = after[keys.DONE][..., 0].clone()
    ends[:, -1] = True
    begins = rollout[keys.IS_INIT][..., 0]
    assert torch.equal(begins.any(0), begins.all(0))  # so that they cut the time axis, without padding
    setting = Setting(
        *rollout.shape,
        minibatches=MINIBATCHES,
        low_bytes=2 if bf16 else 4,
        resets=int(begins.any(0).sum()),
        cut=int((ends & ~after[keys.TERMINATED][..., 0]).sum()),
    )
    if not shared:
        return setting
    acting = sum(distinct(step) for step in observation.unbind(1)) / rollout.shape[1]
    rows = distinct(observation[index]), distinct(observation)
    return replace(setting, distinct=rows[0], values_distinct=rows[1], acting_distinct=acting)


def library_runs_the_gru(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on other devices."""
    monkeypatch.setattr(gru_kernel, "scan", SimpleNamespace(has_kernels=lambda tensor: False))


def count(function: Any, *args: Any) -> tuple[int, Any]:
    with FlopCounterMode(display=False) as counter:
        result = function(*args)
    return counter.get_total_flops(), result


@pytest.mark.parametrize("case", CASES)
def test_operations_are_those_that_torch_counts(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**DEFAULTS, **CASES[case]}
    if not options["own_gru"]:
        library_runs_the_gru(monkeypatch)
    env_options = options.get("env_options", {})
    learner = make_learner(
        options["env"], options["num_envs"], options.get("encoder"), options.get("policy"), **env_options
    )
    env = make_env(options["env"], options["num_envs"], seed=1, **env_options)
    stream = RolloutStream(env, learner.actor, options["steps"], seed=0)
    learner.agent.policy.few_observations.fill_(options["shared"])
    for _ in range(options["skip"]):
        stream.collect()
    with torch.autocast("cpu", torch.bfloat16, enabled=options["bf16"]):
        acting, rollout = count(stream.collect)
        values, (ready, _) = count(learner.with_advantages, rollout)
        index = next(iter(learner.minibatches(ready)))
        update, _ = count(lambda: learner.loss(ready, index)[0].backward())
    sizes, setting = model_sizes.measure_sizes(learner), setting_of(rollout, index, options["shared"], options["bf16"])
    setting = replace(setting, own_gru=options["own_gru"])
    modelled = [
        cost_model.acting_work(sizes, setting),
        cost_model.values_work(sizes, setting),
        cost_model.minibatch_work(sizes, setting),
    ]
    assert [round(work.total) for work in modelled] == [acting, values, update]
    whole = cost_model.rollout_work(sizes, setting).total
    assert whole == pytest.approx(acting + values + setting.epochs * MINIBATCHES * update)


@pytest.mark.parametrize(
    ("num_envs", "shared", "bf16", "encoder", "own_gru"),
    [
        (8, False, False, {}, True),
        (8, True, True, {}, True),
        (80, False, True, {}, True),
        (80, True, False, {}, True),
        (80, True, False, {}, False),
        (80, False, True, SPLAGGER, True),
    ],
)
def test_kept_bytes_are_those_of_autograd(
    num_envs: int, shared: bool, bf16: bool, encoder: dict[str, Any], own_gru: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the published widths; what the loss keeps besides is a few numbers per step."""
    if not own_gru:
        library_runs_the_gru(monkeypatch)
    widths = {"layers": [256, 128], "state_embedding_dim": 256, "latent_embedding_dim": 25}
    learner = make_learner(num_envs=num_envs, encoder={**encoder, "hidden_dim": 256}, policy=widths, num_steps=3)
    stream = RolloutStream(make_env("GridNavi-v0", num_envs, seed=1, num_steps=3), learner.actor, 12, seed=0)
    learner.agent.policy.few_observations.fill_(shared)
    rollout = stream.collect()
    ready, _ = learner.with_advantages(rollout)
    index = next(iter(learner.minibatches(ready)))

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return learner.loss(ready, index)[0]

    kept = saved_bytes(loss, learner.parameters())
    setting = replace(setting_of(rollout, index, shared, bf16), own_gru=own_gru)
    modelled = cost_model.kept_bytes(model_sizes.measure_sizes(learner), setting)
    assert modelled == pytest.approx(kept, rel=0.05)


def data_of(name: str, num_envs: int, steps: int, **options: Any) -> MetaDataModule:
    return MetaDataModule(name, num_envs=num_envs, frames=10**6, steps_per_rollout=steps, env_options=options)


@pytest.mark.parametrize("own_gru", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_launches_of_short_rollouts_predict_those_of_longer_ones(
    own_gru: bool, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a new learner and with one that has learnt."""
    if not own_gru:
        library_runs_the_gru(monkeypatch)
    learner, data = make_learner(), data_of("GridNavi-v0", 8, 12)
    kernels, _ = model_sizes.count_kernels(learner, data, bf16)
    assert model_sizes.count_kernels(learner, data, bf16)[0] == kernels
    collected, valued, learnt, _ = model_sizes._count_at(learner, data, 8, 12, bf16)
    once = model_sizes._count_at(learner, data, 8, 4, bf16)[0] - 4 * kernels.acting
    assert collected == once + 12 * kernels.acting
    assert valued == kernels.values + 13 * kernels.values_step
    assert learnt == kernels.minibatch + 13 * kernels.minibatch_step
    assert own_gru == (kernels.values_step == kernels.minibatch_step == 0)  # a single one for all steps


@pytest.mark.parametrize(("name", "encoder"), [("GridNavi-v0", {}), ("T-LN-P1-v0", SPLAGGER)])
def test_launches_on_a_device_are_those_of_the_pretended_one(
    pretended: type[PretendedDevice], name: str, encoder: dict[str, Any]
) -> None:
    """Reset of all environments and parallel scans included; more of them than on the CPU."""
    learner, data = make_learner(name, 80, encoder), data_of(name, 80, 12)
    here = model_sizes.count_kernels(learner, data, bf16=False)[0].acting
    with model_sizes.as_on_a_device():
        there = model_sizes.count_kernels(learner, data, bf16=False)[0].acting
    with pretended():
        actor = moved(learner).actor
    collected = []
    for steps in (4, 8):
        with pretended():
            env = make_env(name, 68, seed=0, device=DEVICE)
            stream = RolloutStream(env, actor, steps, seed=0)
        with pretended(), model_sizes._Launches() as counter:
            stream.collect()
        collected.append(counter.number)
    assert here < there == (collected[1] - collected[0]) / 4
    assert here == model_sizes.count_kernels(make_learner(name, 80, encoder), data, bf16=False)[0].acting


def test_sizes_survive_json() -> None:
    sizes = model_sizes.measure_sizes(make_learner())
    assert model_sizes.Sizes.read(json.loads(json.dumps(dataclasses.asdict(sizes)))) == sizes
    assert sizes.parameters == sum(p.numel() for p in make_learner().agent.parameters())


@pytest.mark.parametrize(
    ("encoder", "policy", "message"),
    [
        ({"sequence": LSTM}, {}, "model.encoder.sequence is LSTM; expected a GRU"),
        ({"learn_initial_state": True}, {}, "learned initial state"),
        ({"layers_before": [4]}, {}, "layers in front of the memory"),
        ({}, {"use_latent": False, "conditioning": "concat"}, "model.encoder.sequence is NoMemory"),
    ],
)
def test_what_is_not_modelled_is_refused(encoder: dict[str, Any], policy: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_sizes.measure_sizes(make_learner(encoder=encoder, policy=policy))


# What binds, on machines made to be bound by it

SIZES = model_sizes.measure_sizes(make_learner())
KERNELS = model_sizes.Kernels(acting=50, values=200, values_step=5, minibatch=400, minibatch_step=18)
SETTING = Setting(num_envs=16, steps=60)
BALANCED = Machine("balanced", fp32=1e11, low=1e11, bandwidth=1e10, latency=1e-6)


def floor_of(machine: Machine, setting: Setting = SETTING) -> dict[str, Term]:
    return {term.phase: term for term in cost_model.floor(SIZES, KERNELS, setting, machine)}


@pytest.mark.parametrize(
    ("slow", "resource"),
    [
        ({"fp32": 1e6, "low": 1e6}, "arithmetic"),
        ({"bandwidth": 1e3}, "memory"),
        ({"latency": 1.0}, "launches"),
    ],
)
def test_the_slowest_resource_binds(slow: dict[str, float], resource: str) -> None:
    terms = floor_of(BALANCED._replace(**slow))
    assert all(terms[phase].resource == resource for phase in ("acting", "values", "update"))
    slower = cost_model.frames_per_second(list(terms.values()), SETTING)
    assert slower < cost_model.frames_per_second(list(floor_of(BALANCED).values()), SETTING)


def test_launches_are_those_of_all_steps() -> None:
    terms = floor_of(BALANCED._replace(latency=1.0))
    assert terms["acting"].seconds == 60 * 50
    assert terms["values"].seconds == 200 + 61 * 5
    assert terms["update"].seconds == 2 * 4 * (400 + 61 * 18)
    cudnn = floor_of(BALANCED._replace(latency=1.0, cudnn=True))
    assert cudnn["update"].seconds == 2 * 4 * (400 + 61 * 2 * cost_model.CUDNN_KERNELS)
    more = floor_of(BALANCED._replace(latency=1.0), replace(SETTING, num_envs=4096))
    assert more == terms  # they do not depend on how many environments there are


def test_arithmetic_is_in_two_precisions() -> None:
    work = cost_model.acting_work(SIZES, SETTING)
    slow = floor_of(BALANCED._replace(fp32=1e6, low=2e6))["acting"]
    assert slow.seconds == pytest.approx((work.encoder + work.heads) / 1e6 + work.policy / 2e6)


def test_efficiency_physics_and_link_are_added() -> None:
    def predicted(efficiency: Efficiency = Efficiency(), **changes: Any) -> dict[str, float]:  # noqa: B008 - a tuple
        terms = cost_model.predict(SIZES, KERNELS, SETTING, BALANCED._replace(**changes), efficiency)
        return {term.phase: term.seconds for term in terms}

    best = predicted()
    assert best == {phase: term.seconds for phase, term in floor_of(BALANCED).items()}
    launched = predicted(Efficiency(large=0.5, small=0.1), latency=1.0)
    assert launched["acting"] == pytest.approx(60 * 50 / 0.1)
    assert launched["optimiser"] == pytest.approx(2 * 4 / 0.1)
    moved = predicted(Efficiency(large=0.5, small=0.1), bandwidth=1e3)
    assert moved["acting"] == pytest.approx(2 * predicted(bandwidth=1e3)["acting"])
    assert predicted(host_steps=100.0)["environments"] == SETTING.frames / 100
    linked = predicted(processes=8, link=1e9)["all-reduce"]
    assert linked == pytest.approx(8 * (4 * SIZES.parameters * 2 * 7 / 8 / 1e9 + BALANCED.latency))


def test_a_large_term_binds() -> None:
    def slowest(**changes: Any) -> str:
        machine = BALANCED._replace(**changes)
        return cost_model.binding(cost_model.predict(SIZES, KERNELS, SETTING, machine, Efficiency())).phase

    assert slowest() == "update"
    assert slowest(host_steps=10.0) == "environments"
    assert slowest(processes=64, link=1e3) == "all-reduce"
    assert cost_model.frames_per_second([Term("acting", "launches", 2.0)], SETTING, 8) == 8 * 960 / 2


def test_memory_grows_with_what_it_is_about() -> None:
    wide = replace(SIZES, frame_bytes=100)
    few, many = (cost_model.memory_bytes(wide, Setting(num_envs=n, steps=60)) for n in (1024, 4096))
    model = 16 * SIZES.parameters
    assert (many - model) / (few - model) == pytest.approx(4, rel=0.01)
    assert cost_model.memory_bytes(SIZES, Setting(num_envs=4, steps=1)) == 28 * SIZES.parameters  # the checkpoint
    with_rollout = cost_model.memory_bytes(wide, Setting(num_envs=4096, steps=60))
    assert with_rollout - cost_model.memory_bytes(SIZES, Setting(num_envs=4096, steps=60)) == 2 * 100 * 4096 * 60
