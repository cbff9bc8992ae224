"""Environments, acting and learning on a device that is not the CPU: nothing may make the host wait for it.

There is no such device here: `pretended_device` stands in for one, and computes. Whatever still waits is named below
with its reason, and happens once per rollout or update, or belongs to task inference.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import tiny
import torch
from pretended_device import DEVICE, Elsewhere, PretendedDevice, moved, pretended
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from hyperrl import keys
from hyperrl.data.rollouts import RolloutStream, evaluate
from hyperrl.data.trajectory_buffer import TrajectoryBuffer
from hyperrl.env_info import EnvInfo
from hyperrl.envs import MetaEnv, make_env
from hyperrl.modules import aggregators, sequence
from hyperrl.modules.agent import Actor, Agent
from hyperrl.modules.encoder import EncoderConfig
from hyperrl.modules.host_mask import known, on_host, queued, tell
from hyperrl.modules.inference_config import InferenceConfig
from hyperrl.modules.meta_ppo import MetaPPO
from hyperrl.modules.policy import PolicyConfig
from hyperrl.modules.ppo import PPOConfig

__all__ = ["pretended"]  # the fixture

ENVS, STEPS = 4, 8
# What may wait, and why it does.
ROLLOUT = {
    "metrics.EpisodeReturns.update": "how many tasks have ended decides the shape of their returns",
    "data.rollouts.RolloutStream._returns": "the mean returns are logged",
}
UPDATE = {
    "modules.host_mask.on_host": "sequences are cut on the host: it fetches the starts of tasks, for all minibatches",
    "modules.meta_ppo.MetaPPO._values": "how many tasks were cut short decides how many values are taken of their ends",
    "modules.agent.Agent.finish_update": "whether the policy has started anew, with `hard_reset`",
    "modules.ppo.generalized_advantages": "TorchRL cuts the rollout at the ends of tasks",
}
ONCE = {"modules.agent.Agent.warming_up": "the number of updates is read once, and counted from there on"}
BUFFER = {"data.trajectory_buffer.TrajectoryBuffer.add": "how many tasks have ended decides how many rows are written"}
INFERENCE = {
    "data.trajectory_buffer.TrajectoryBuffer.sample": "drawn on the host, and cut to the longest",
    "modules.elbo.Elbo.draw": "how many steps are decoded follows from the longest trajectory",
    "modules.elbo.Elbo._sample": "the noise is drawn on the host",
}


class Ragged(tiny.Toy):
    """The toy environment, with its task published."""

    def publish_task(self) -> Tensor:
        return self.state[keys.TASK].unsqueeze(-1)


class Learner(MetaPPO):
    """A learner without a trainer."""

    @functools.cached_property
    def _optimizers(self) -> list[Any]:  # type: ignore[override]
        return self.configure_optimizers()

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward()

    @functools.cached_property
    def trajectories(self) -> TrajectoryBuffer:  # type: ignore[override]
        settings = self.trajectory_settings
        assert settings is not None
        return TrajectoryBuffer(horizon=60, seed=0, **settings)

    @property
    def has_trajectories(self) -> bool:
        return len(self.trajectories) > 0


def everything(env: str) -> list[str]:
    """All that environments of this kind publish."""
    specimen = make_env(env, 1)
    names = (keys.TASK, keys.TASK_ID, keys.STATE_ID, keys.BELIEF, keys.SUCCESS)
    return [name for name in names if hasattr(specimen, f"publish_{name}")]


def agent_for(env_info: EnvInfo) -> Agent:
    torch.manual_seed(2)
    return Agent(env_info, EncoderConfig(**tiny.ENCODER), PolicyConfig(**tiny.POLICY))


class TestThePretendedDevice:
    """It has to notice what it is there for."""

    @pytest.mark.parametrize(
        "wait",
        [
            lambda x: x.sum().item(), lambda x: bool(x.any()), lambda x: x.tolist(), lambda x: x.cpu(),
            lambda x: x.nonzero(), lambda x: x[x > 1], lambda x: x.numpy(force=True), lambda x: x.unique(),
            lambda x: x.masked_select(x > 1), lambda x: torch.equal(x, x), lambda x: x[torch.tensor([0])],
            lambda x: x.index_put_((x > 1,), x[0]), lambda x: x + torch.tensor([1.0, 2.0, 3.0], device=DEVICE),
            lambda x: x + torch.ones(3).to(DEVICE), lambda x: x.copy_(torch.ones(3)), lambda x: int(x.argmax()),
            lambda x: x + torch.ones(3).to(DEVICE, non_blocking=True),
            lambda x: x.long().bincount(), lambda x: x.repeat_interleave(x.long()), lambda x: torch.allclose(x, x),
        ],
    )  # fmt: skip
    def test_notes_what_waits(self, pretended: type[PretendedDevice], wait: Any) -> None:
        with pretended() as device:
            wait(torch.arange(3.0, device=DEVICE))
        assert device.waits
        assert all(place.startswith("the test: ") for place in device.waits)

    def test_computes_and_does_not_mind_what_stays_there(self, pretended: type[PretendedDevice]) -> None:
        with pretended() as device:
            weight = torch.nn.Parameter(torch.full((2, 3), 2.0, device=DEVICE))
            x = torch.arange(3.0, device=DEVICE)
            x[1:] = torch.where(x[1:] > 1, 5.0, x[1:])
            y = (x @ weight.T).masked_fill(torch.zeros(2, dtype=torch.bool, device=DEVICE), 0.0)
            y.sum().backward()
            picked = x[queued(torch.tensor([2, 0]), DEVICE)] * torch.tensor(2.0)
        assert not device.waits
        assert isinstance(y, Elsewhere)
        assert y.device == DEVICE
        assert not y.is_cpu
        assert y.held.tolist() == [12.0, 12.0]
        assert weight.grad.held.tolist() == [[0.0, 1.0, 5.0]] * 2
        assert picked.held.tolist() == [10.0, 0.0]
        assert device.operations > 5

    def test_refuses_tensors_of_two_devices(self, pretended: type[PretendedDevice]) -> None:
        with pretended(), pytest.raises(RuntimeError, match="same device"):
            torch.ones(3, device=DEVICE) + torch.ones(3)

    @pytest.mark.parametrize(("place", "generator"), [("cpu", DEVICE), (DEVICE, "cpu")])
    def test_refuses_a_generator_of_another_device(
        self, pretended: type[PretendedDevice], place: Any, generator: Any
    ) -> None:
        with pretended():
            for drawn in (torch.rand(2, generator=torch.Generator(place), device=place), torch.ones(2, device=place)):
                drawn.normal_(generator=torch.Generator(place))
                with pytest.raises(RuntimeError, match="expected a generator on"):
                    drawn.normal_(generator=torch.Generator(generator))

    def test_names_the_function_that_waits_unless_it_may(self, pretended: type[PretendedDevice]) -> None:
        for allowed in ([], ["metrics.adaptation_metrics"]):
            with pretended(allowed) as device:
                from hyperrl.metrics import adaptation_metrics

                adaptation_metrics(torch.ones(2, 1, device=DEVICE))
            assert device.used == set(allowed)
            assert bool(device.waits) is not bool(allowed)
            assert {place.split(":")[0] for place in device.waits} <= {"metrics.adaptation_metrics"}

    def test_notices_an_environment_and_a_policy_that_wait(self, pretended: type[PretendedDevice]) -> None:
        class Curious(Ragged):
            def transition(self, action: Tensor) -> Any:
                assert action.max() < 3
                return super().transition(action)

        class Hesitant(Actor):
            def _choose(self, parameters: dict[str, Tensor]) -> Tensor:
                assert parameters[keys.LOGITS].isfinite().all()
                return super()._choose(parameters)

        for kind, actor, number in ((Ragged, Actor, 0), (Curious, Actor, STEPS), (Ragged, Hesitant, STEPS)):
            with pretended():
                env = kind(ENVS, device=DEVICE)
                agent = moved(agent_for(env.env_info))
                stream = RolloutStream(env, functools.partial(actor, agent), STEPS, 0)
            with pretended(ROLLOUT) as device:
                stream.collect()
            assert len(device.waits) == number


def test_a_mask_that_was_written_to_is_fetched_anew(pretended: type[PretendedDevice]) -> None:
    with pretended(["modules.host_mask.on_host"]) as device:
        mask = tell(torch.zeros(2, dtype=torch.bool, device=DEVICE), torch.zeros(2, dtype=torch.bool))
        assert on_host(mask).tolist() == [False, False]
        assert not device.used
        mask.logical_not_()
        assert known(mask) is None
        assert on_host(mask).tolist() == [True, True]
        assert known(mask) is on_host(mask)
        assert device.used
    assert device.waits == []


# One of each family whose physics are tensors, and the variants that draw or publish something else.
WORLDS = [
    "GridNavi-v0", "GridNavi-dense-v0", "GridNavi-show_start-v0", "Grid7-20-newr-rands-v0", "Hall-L60H80-rshape-v0",
    "Hall-L60H200-obs-rshape5x-v0", "T-LN-P1-LDp7p5-v0", "T-LN-P1-A50-posw-v0", "T-LS-P1-v0", "MC-LSN-v0", "MC-LSH-v0",
    "PlanningGame-v0", "PlanningGame-3x3-justgoal-v0", "PointEnv-v0", "SparsePointEnv-v0", "Semicircle-v0",
]  # fmt: skip
# What the host asks a robot's device for at every step: its physics are not there.
ROBOT = {
    f"envs.mujoco.base.MujocoMetaEnv.{function}"
    for function in ("may_contain", "reset_task", "reset_state", "observe", "transition")
}


@pytest.mark.parametrize("name", WORLDS)
def test_collecting_never_waits(pretended: type[PretendedDevice], name: str) -> None:
    """On a device the same operations run at every step, ends of tasks or not."""
    with pretended():
        env = make_env(name, ENVS, device=DEVICE, publish=everything(name))
        stream = RolloutStream(env, functools.partial(Actor, moved(agent_for(env.env_info))), 3, 0)
    with pretended(ROLLOUT) as device:
        rollout = stream.collect()
        stream.collect()
    assert device.waits == []
    assert {value.device for value in rollout.values(True, True)} == {DEVICE}


def test_a_robot_waits_for_its_physics_alone(pretended: type[PretendedDevice]) -> None:
    with pretended():
        env = make_env("HalfCheetahDir-v0", ENVS, device=DEVICE, episodes_per_task=2, episode_length=3)
        stream = RolloutStream(env, functools.partial(Actor, moved(agent_for(env.env_info))), STEPS, 0)
        stream.collect()
    with pretended({**ROLLOUT, **dict.fromkeys(ROBOT)}) as device:
        stream.collect()
    assert device.waits == []
    assert device.used == {*ROLLOUT, *ROBOT}


# docs/gpu.md quotes them.
@pytest.mark.parametrize(("name", "operations"), [("GridNavi-v0", 116), ("T-LN-P1-v0", 161)])
def test_operations_of_a_step(pretended: type[PretendedDevice], name: str, operations: int) -> None:
    """Of environment and policy together, the reset of all included: what a GPU would have to start."""
    counts = []
    for steps in (3, 5):
        with pretended():
            env = make_env(name, ENVS, device=DEVICE)
            stream = RolloutStream(env, functools.partial(Actor, moved(agent_for(env.env_info))), steps, 0)
            stream.collect()
        with pretended() as device:
            stream.collect()
        counts.append(device.operations)
    assert (counts[1] - counts[0]) / 2 == operations


def test_evaluating_waits_at_no_step(pretended: type[PretendedDevice]) -> None:
    with pretended():
        env = make_env("GridNavi-v0", ENVS, device=DEVICE, episodes_per_task=1)
        actor = Actor(moved(agent_for(env.env_info)), torch.Generator())
    with pretended({"metrics.EpisodeReturns.update"}) as device:
        result = evaluate(env, actor)
    # After the first reset TorchRL looks whether something is done, once per kind of end; all tasks must have ended.
    assert device.waits == ["data.rollouts.evaluate: aten._local_scalar_dense.default"] * 4
    assert env.horizon > 3
    assert result["returns"].shape == (ENVS, 1)


def shortened(name: str) -> dict[str, Any]:
    """Options for short episodes, where those of a family are long."""
    options = {
        "Hall": "num_steps", "T-": "timeout", "MC-": "timeout", "PlanningGame": "max_episode_steps",
        "PointEnv": "max_episode_steps", "SparsePointEnv": "max_episode_steps", "HalfCheetah": "episode_length",
    }  # fmt: skip
    return next(({option: 12} for family, option in options.items() if name.startswith(family)), {})


# A planning game is one episode. Semicircle draws within a step (on a device at each), and then for the next episode.
SINGLE = ["PlanningGame-v0", "PlanningGame-3x3-justgoal-v0", "Semicircle-v0"]
COMPARED = [
    (name, episodes)
    for name in ("ragged", *WORLDS, "HalfCheetahDir-v0")
    for episodes in ((1,) if name in SINGLE else (1, 2))
]


class TestResets:
    """The reset that is computed at every step changes nothing but what is done."""

    @pytest.mark.parametrize(("kind", "episodes"), COMPARED)
    def test_results_are_those_of_the_cpu(self, pretended: type[PretendedDevice], kind: str, episodes: int) -> None:
        def build(device: Any) -> MetaEnv:
            options: dict[str, Any] = {"episodes_per_task": episodes, "device": device, "seed": 3}
            return Ragged(ENVS, **options) if kind == "ragged" else make_env(kind, ENVS, **shortened(kind), **options)

        def draw_the_same() -> None:
            """A reset draws: at every step there, here only if something is done."""
            there._generator.set_state(here._generator.get_state())

        here = build("cpu")
        with pretended():
            there = build(DEVICE)
            a, b = here.reset(), there.reset()
            ended = 0
            for _ in range(here.horizon + 3):
                assert_same(b.exclude(keys.ACTION), a.exclude(keys.ACTION))
                action = here.action_spec.rand()
                draw_the_same()
                a, b = here.step(a.set(keys.ACTION, action)), there.step(b.set(keys.ACTION, Elsewhere(action)))
                assert_same(b, a)
                draw_the_same()
                a, b = here.maybe_reset(here.step_mdp(a)), there.maybe_reset(there.step_mdp(b))
                ended += int(a[keys.IS_INIT].sum())
        assert ended >= ENVS

    def test_an_injected_task_waits_for_a_reset(self, pretended: type[PretendedDevice]) -> None:
        with pretended():
            env = make_env("GridNavi-v0", 2, device=DEVICE, episodes_per_task=1, publish=[keys.TASK])
            td = env.reset()
            env.inject(keys.TASK, [3.0, 4.0])
            for _ in range(env.horizon):
                before = td[keys.TASK].held
                td = env.step_and_maybe_reset(td.set(keys.ACTION, torch.zeros(2, dtype=torch.int64, device=DEVICE)))[1]
        assert before.tolist() != [[3.0, 4.0]] * 2
        assert td[keys.TASK].held.tolist() == [[3.0, 4.0]] * 2


def assert_same(there: TensorDictBase, here: TensorDictBase) -> None:
    assert set(there.keys(True, True)) == set(here.keys(True, True))
    for key in here.keys(True, True):
        assert torch.equal(there[key].held, here[key]), key


class Case(NamedTuple):
    """Settings that differ from the tiny ones, and what may wait in every minibatch."""

    encoder: dict[str, Any] = {}
    policy: dict[str, Any] = {}
    inference: dict[str, Any] = {}
    ppo: dict[str, Any] = {}
    env: dict[str, Any] = {}
    waits: Sequence[str] = ()


WEIGHTED = functools.partial(aggregators.WeightedAverage, temperature=1.0)
WARM = {"task_replaces": "latent", "task_embedding_dim": 4}
CASES = {
    "gru": Case(),
    "lstm": Case({"sequence": sequence.LSTM}),
    "min-gru": Case({"sequence": sequence.MinGRU}),
    "split, maximum": Case({"split": True, "aggregator": aggregators.Max}),
    "mean of steps": Case({"sequence": sequence.Memoryless, "aggregator": aggregators.Mean}),
    "weighted mean": Case({"sequence": sequence.Memoryless, "aggregator": WEIGHTED}),
    "gaussian": Case({"aggregator": aggregators.Gaussian}),
    "learned start": Case({"aggregator": aggregators.MeanMax, "learn_initial_state": True}),
    "causal transformer": Case({"sequence": sequence.CausalTransformer}),
    "transformer": Case({"sequence": sequence.Transformer}),
    "film": Case(policy={"conditioning": "film", "hypernet_init": "none"}),
    "plain, all normalised": Case(policy={"conditioning": "concat", "normalize_latent": True}),
    "no memory": Case(policy={"use_latent": False, "use_task": True, "hypernet_input": "task"}),
    "continuous, bounded": Case(policy={"bound_actions": True}, env={"continuous": True}),
    "minibatches of steps, rmsprop": Case(ppo={"minibatch": "step", "optimizer": "rmsprop"}),
    "no clipped value": Case(ppo={"clip_value": False, "gae_lambda": 0.0}),
    "warm-up": Case(policy={**WARM, "task_warmup": 5}),
    "after a warm-up": Case(policy={**WARM, "task_warmup": 1, "hard_reset": True}),
    "task at times": Case(policy={**WARM, "task_chance": 0.5}, inference={"task": "embedding"}),
    "sampled latents": Case({"sample_latent": True}),
    "inference": Case({"sample_latent": True}, {}, {"encoder_loss": "inference"}),
    "both losses": Case({}, {}, {"encoder_loss": "both", "subsample_decodes": 3}, waits=list(INFERENCE)),
}  # fmt: skip


def build(case: Case, device: Any) -> tuple[Learner, MetaEnv]:
    torch.manual_seed(4)
    policy = PolicyConfig(**{**tiny.POLICY, **case.policy})
    inference = InferenceConfig(**{"batch_trajectories": 3, **case.inference})
    publish = list(dict.fromkeys((*policy.publish, *inference.publish)))
    env = Ragged(ENVS, device=device, publish=publish, seed=5, **case.env)
    ppo = PPOConfig(**{"num_minibatches": 2, "lr": 0.01, **case.ppo})
    encoder = EncoderConfig(**{**tiny.ENCODER, **case.encoder})
    return Learner(env.env_info, ENVS, 1000, encoder, policy, ppo, inference), env


@pytest.mark.parametrize("name", CASES)
def test_learning_never_waits_and_equals_the_cpus(pretended: type[PretendedDevice], name: str) -> None:
    learn(pretended, CASES[name])


def test_every_permission_is_needed(pretended: type[PretendedDevice]) -> None:
    used = learn(pretended, CASES["both losses"]) | learn(pretended, CASES["after a warm-up"])
    assert used == {*ROLLOUT, *UPDATE, *BUFFER, *INFERENCE}


def test_the_number_of_updates_is_read_once(pretended: type[PretendedDevice]) -> None:
    with pretended():
        learner, _ = build(CASES["warm-up"], DEVICE)
        moved(learner)
    for needed in (set(ONCE), set()):
        with pretended(ONCE) as device:
            assert learner.agent.warming_up
            learner.agent.finish_update()
        assert device.used == needed
        assert device.waits == []


def test_waits_of_the_advantages(pretended: type[PretendedDevice]) -> None:
    """docs/gpu.md quotes their number."""
    with pretended():
        learner, env = build(Case(), DEVICE)
        rollout = RolloutStream(env, moved(learner).actor, STEPS, 0).collect()
    with pretended({*UPDATE} - {"modules.ppo.generalized_advantages"}) as device:
        learner.with_advantages(rollout)
    assert {place.split(":")[0] for place in device.waits} == {"modules.ppo.generalized_advantages"}
    assert len(device.waits) == 5


def learn(pretended: type[PretendedDevice], case: Case) -> set[str]:
    """Collects and learns on the device, and compares with the CPU; returns which permissions were needed."""
    used: set[str] = set()
    reference, _ = build(case, "cpu")
    with pretended():
        learner, env = build(case, DEVICE)
        moved(learner)
        stream = RolloutStream(env, learner.actor, STEPS, 0)
        rollout = stream.collect()
    if learner.inference.config.uses_trajectories:
        reference.trajectories.add(on_cpu(rollout))
        with pretended(BUFFER) as device:
            learner.trajectories.add(rollout)
        assert device.waits == []
        used |= device.used
    with pretended(ROLLOUT) as device:
        rollout = stream.collect()
    assert device.waits == []
    used |= device.used
    with pretended(UPDATE) as device:
        prepared, latent = learner.with_advantages(rollout)
    assert device.waits == []
    used |= device.used
    expected, expected_latent = reference.with_advantages(on_cpu(rollout))
    torch.testing.assert_close(on_cpu(prepared), expected, rtol=1e-4, atol=1e-5)
    indices = list(reference.minibatches(expected))
    with pretended(case.waits) as device:
        total, logged = learner.loss(prepared, indices[0])
        total.backward()
        gradients = {name: p.grad.held for name, p in learner.named_parameters() if p.grad is not None}
        for index in learner.minibatches(prepared):
            learner.optimize(prepared, index)
        learner.agent.update_statistics(prepared, latent)
        frozen = learner.frozen
    assert device.waits == []
    used |= device.used
    expected_total, expected_logged = reference.loss(expected, indices[0])
    expected_total.backward()
    expected_gradients = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    # The same parameters have no gradient, too: Adam would move them.
    assert gradients.keys() == expected_gradients.keys()
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-3, atol=1e-5)
    assert logged.keys() == expected_logged.keys()
    torch.testing.assert_close(
        {name: value.held for name, value in logged.items()}, expected_logged, rtol=1e-4, atol=1e-5
    )
    assert frozen == reference.frozen
    with pretended({**INFERENCE, **UPDATE}) as device:
        if not learner.inference.config.rl_trains_encoder:
            assert len(learner.infer(1)) == 1
        learner.agent.finish_update()
    assert device.waits == []
    return used | device.used


def on_cpu(rollout: TensorDictBase) -> TensorDictBase:
    """A copy on the CPU."""
    entries = {key: value.held.clone() for key, value in rollout.items(True, True)}
    return TensorDict(entries, rollout.batch_size)
