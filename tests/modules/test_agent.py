"""Agents: what acting draws is stored and seen again by learning, the warm-up on the task, agents without memory."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tiny import Toy
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hyperrl import keys
from hyperrl.data.rollouts import RolloutStream, evaluate
from hyperrl.env_info import EnvInfo
from hyperrl.envs import MetaEnv, make_env
from hyperrl.modules.agent import Actor, Agent
from hyperrl.modules.distributions import action_distribution
from hyperrl.modules.encoder import EncoderConfig, TrajectoryEncoder
from hyperrl.modules.policy import Policy, PolicyConfig

TOY, GRID, ENVS = "toy", "GridNavi-v0", 5
GRID_TASKS = make_env(GRID, 1).env_info.num_tasks
INFO = EnvInfo(obs_dim=2, action_dim=1, num_actions=5, horizon=20, task_dim=2, num_tasks=4)
POLICY: dict[str, Any] = {"layers": [8], "state_embedding_dim": 8, "latent_embedding_dim": 4, "task_embedding_dim": 4}
LATENT: dict[str, Any] = {"task_replaces": "latent"}
CONDITION: dict[str, Any] = {"task_replaces": "condition", "hypernet_layers": [4]}
NONE: dict[str, Any] = {"use_latent": False, "use_task": True, "hypernet_input": "task"}
# Name: environment, encoder, policy.
AGENTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "sample, toy": (TOY, {"sample_latent": True}, {}),
    "sample, grid": (GRID, {"sample_latent": True, "relu_latent": True}, {"conditioning": "concat"}),
    "positive latents": (TOY, {"relu_latent": True}, {}),
    "task or latent, toy": (TOY, {}, {**LATENT, "task_chance": 0.5}),
    "task or latent, grid": (GRID, {}, {**LATENT, "task_chance": 0.5, "conditioning": "concat"}),
    "task or sample": (GRID, {"sample_latent": True}, {**LATENT, "task_chance": 0.5, "normalize_latent": True}),
    "one-hot id or condition": (
        GRID, {}, {**CONDITION, "hypernet_layers": [GRID_TASKS], "task_chance": 0.5, "one_hot_without_bias": True}
    ),
    "no memory": (GRID, {}, NONE),
}  # fmt: skip


def agent_of(info: EnvInfo = INFO, encoder: dict[str, Any] | None = None, seed: int = 0, **policy: Any) -> Agent:
    """A small agent of parameters that let everything show."""
    torch.manual_seed(seed)
    agent = Agent(info, EncoderConfig(hidden_dim=12, **encoder or {}), PolicyConfig(**{**POLICY, **policy}))
    for name, parameter in agent.named_parameters():
        if not name.startswith("encoder."):
            torch.nn.init.normal_(parameter, std=0.3)
    return agent


def roots(number: int = 6) -> TensorDict:
    """Roots of steps in the middle of a task."""
    generator = torch.Generator().manual_seed(0)
    widths = {keys.OBSERVATION: 2, keys.PREV_OBSERVATION: 2, keys.PREV_ACTION: 1, keys.PREV_REWARD: 1, keys.TASK: 2}
    entries = {name: torch.randn(number, width, generator=generator) for name, width in widths.items()}
    entries[keys.TASK_ID] = torch.arange(number) % INFO.num_tasks
    return TensorDict({**entries, keys.IS_INIT: torch.zeros(number, 1, dtype=torch.bool)}, [number])


class Told(Toy):
    """A toy that tells the task."""

    def publish_task(self) -> Tensor:
        return self.state[keys.TASK].unsqueeze(-1)


def source_of(env: str, policy: dict[str, Any], number: int = ENVS, seed: int = 3) -> MetaEnv:
    """Environments that publish what the policy needs."""
    publish = PolicyConfig(**{**POLICY, **policy}).publish
    if env == TOY:
        return Told(number, 2, seed=seed, publish=publish)
    return make_env(env, number, seed=seed, episodes_per_task=2, publish=publish)


class Collected:
    """Two rollouts of an agent in a real environment, the second one under way."""

    def __init__(self, env: str, encoder: dict[str, Any], policy: dict[str, Any]) -> None:
        source = source_of(env, policy)
        self.agent = agent_of(source.env_info, encoder, **policy)
        stream = RolloutStream(source, lambda generator: Actor(self.agent, generator), 17, seed=1)
        self.first, self.second = stream.collect(), stream.collect()
        self.keys = {key for key in (keys.LATENT_NOISE, keys.TASK_SHOWN) if key in self.second.keys()}  # noqa: SIM118

    def log_prob(self, rollout: TensorDictBase) -> Tensor:
        """Log-probabilities ``[B, T]`` of the actions, as the learner sees them."""
        parameters, _ = self.agent.evaluate(rollout, self.agent.encoder.encode(rollout)[0])
        return action_distribution(parameters).log_prob(rollout[keys.ACTION].flatten()).view(rollout.shape)


@pytest.fixture(scope="module", params=AGENTS)
def collected(request: pytest.FixtureRequest) -> Collected:
    return Collected(*AGENTS[request.param])


def test_collection_equals_replay(collected: Collected) -> None:
    for rollout in (collected.first, collected.second):
        torch.testing.assert_close(collected.log_prob(rollout), rollout[keys.ACTION_LOG_PROB], rtol=1e-4, atol=1e-5)


def test_what_was_drawn_decides(collected: Collected) -> None:
    """So the test above compares something."""
    for key in collected.keys:
        other = collected.second.clone()
        other[key] = other[key].roll(1, 1)
        changed = ~torch.isclose(collected.log_prob(other), other[keys.ACTION_LOG_PROB], rtol=1e-3)
        assert changed.float().mean() > 0.2, key


def test_what_is_drawn_is_stored_where_something_is_drawn(collected: Collected) -> None:
    agent, rollout = collected.agent, collected.second
    sampled, chosen = agent.encoder.noise_dim > 0, agent.policy.config.task_replaces != "none"
    assert collected.keys == {*[keys.LATENT_NOISE] * sampled, *[keys.TASK_SHOWN] * chosen}
    if sampled:
        noise = rollout[keys.LATENT_NOISE]
        assert noise.shape == (ENVS, 17, agent.encoder.noise_dim)
        assert len(noise.unique()) == noise.numel()
    if chosen:
        shown = rollout[keys.TASK_SHOWN]
        assert shown.shape == (ENVS, 17)
        assert shown.any(0).sum() > 8
        assert not shown.all(1).any()


def test_states_after_a_step_are_valued_with_what_was_drawn_for_it(collected: Collected) -> None:
    rollout, agent = collected.second, collected.agent
    _, latent = agent.encoder.encode(rollout)
    drawn = rollout.select(*collected.keys)
    after = rollout[keys.NEXT].copy().update(drawn)
    values = agent.values(after, latent)
    assert values.shape == (ENVS, 17, 1)
    single = agent.values(after[3, 5:6], latent[3, 5:6])
    torch.testing.assert_close(single, values[3, 5:6])
    if keys.TASK_SHOWN in collected.keys:
        switched = after.clone()
        switched[keys.TASK_SHOWN] = ~switched[keys.TASK_SHOWN]
        assert not torch.isclose(agent.values(switched, latent), values).any()


def test_statistics_are_those_of_what_the_policy_gets() -> None:
    case = Collected(GRID, {"sample_latent": True}, {"normalize_latent": True})
    latent, _ = case.agent.encoder.encode(case.second)
    case.agent.update_statistics(case.second, latent)
    given = case.agent.encoder.for_policy(latent, case.second[keys.LATENT_NOISE])
    norm = case.agent.policy.latent.norm
    torch.testing.assert_close(norm.mean, given.flatten(0, 1).mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.var, given.flatten(0, 1).var(0), rtol=1e-3, atol=1e-4)


# Drawing


def shown_by(agent: Agent, number: int = 6, mode: ExplorationType = ExplorationType.RANDOM, seed: int = 0) -> Tensor:
    with set_exploration_type(mode):
        return Actor(agent, torch.Generator().manual_seed(seed))(roots(number))[keys.TASK_SHOWN]


def test_the_task_is_shown_with_its_chance() -> None:
    """40,000 draws; bounds of four standard deviations."""
    agent = agent_of(**LATENT, task_chance=0.3)
    shown = shown_by(agent, 40_000)
    assert shown.dtype == torch.bool
    assert abs(shown.float().mean().item() - 0.3) < 4 * (0.21 / 40_000) ** 0.5
    torch.rand(1)  # the global generator is not asked
    assert torch.equal(shown_by(agent, 40_000), shown)
    assert not torch.equal(shown_by(agent, 40_000, seed=1), shown)


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_the_task_is_always_shown_during_the_warm_up(chance: float) -> None:
    agent, means = agent_of(**LATENT, task_warmup=2, task_chance=chance), []
    for _ in range(4):
        means.append(shown_by(agent, 1000).float().mean().item())
        agent.finish_update()
    assert means[:2] == [1.0, 1.0]
    assert means[2:] == pytest.approx([chance] * 2, abs=0.1)


def test_warming_up_ends_with_the_last_update_of_the_warm_up() -> None:
    agent, found = agent_of(**CONDITION, task_warmup=2), []
    for _ in range(4):
        found.append(agent.warming_up)
        agent.finish_update()
    assert found == [True, True, False, False]
    assert int(agent.updates) == 4


@pytest.mark.parametrize("policy", [{**LATENT, "task_chance": 1.0}, {**CONDITION, "task_warmup": 9}])
def test_evaluation_never_shows_the_task(policy: dict[str, Any]) -> None:
    agent = agent_of(**policy)
    assert shown_by(agent).all()
    assert not shown_by(agent, mode=ExplorationType.DETERMINISTIC).any()


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_a_certain_choice_takes_no_random_number(chance: float) -> None:
    generator, other = (torch.Generator().manual_seed(4) for _ in range(2))
    with set_exploration_type(ExplorationType.RANDOM):
        Actor(agent_of(**LATENT, task_chance=chance), generator)(roots())
        Actor(agent_of(), other)(roots())
    assert torch.equal(generator.get_state(), other.get_state())


@pytest.mark.parametrize("mode", [ExplorationType.RANDOM, ExplorationType.DETERMINISTIC])
def test_noise_is_standard_normal_and_of_the_own_generator(mode: ExplorationType) -> None:
    """In evaluation, too: a latent is a sample of the posterior there as well. 20,000 draws, four deviations."""

    def drawn(seed: int) -> Tensor:
        torch.rand(1)  # the global generator moves between calls
        with set_exploration_type(mode):
            actor = Actor(agent_of(encoder={"sample_latent": True}), torch.Generator().manual_seed(seed))
            return actor(roots(4000))[keys.LATENT_NOISE]

    noise = drawn(0)
    assert noise.shape == (4000, 5)
    assert torch.equal(noise, drawn(0))
    assert not torch.equal(noise, drawn(1))
    assert abs(noise.mean().item()) < 4 / 20_000**0.5
    assert abs(noise.square().mean().item() - 1) < 4 * (2 / 20_000) ** 0.5


@pytest.mark.parametrize("case", ["sample, grid", "task or latent, grid", "no memory"])
def test_agents_can_be_evaluated(case: str) -> None:
    name, encoder, policy = AGENTS[case]
    env = source_of(name, policy, 7)
    result = evaluate(env, Actor(agent_of(env.env_info, encoder, **policy), torch.Generator()))
    assert result["returns"].shape == (7, 2)


# The hard reset

RESET: dict[str, dict[str, Any]] = {
    "latent": {**LATENT, "task_warmup": 2, "hard_reset": True},
    "condition": {**CONDITION, "task_warmup": 2, "hard_reset": True},
}


def values_of(policy: Policy) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in policy.named_parameters()}


@pytest.mark.parametrize("case", RESET)
def test_after_the_warm_up_the_policy_starts_anew(case: str) -> None:
    agent = agent_of(**RESET[case])
    assert agent.fresh_policy is not None
    trained, fresh = values_of(agent.policy), values_of(agent.fresh_policy)
    keeps = "task.linear." if case == "latent" else ("actor.", "critic.")
    agent.finish_update()
    assert all(torch.equal(value, trained[name]) for name, value in values_of(agent.policy).items())
    agent.finish_update()
    expected = {name: trained[name] if name.startswith(keeps) else fresh[name] for name in fresh}
    found = values_of(agent.policy)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert any(torch.equal(found[name], trained[name]) for name in found)
    assert not all(torch.equal(found[name], trained[name]) for name in found)
    for parameter in agent.policy.parameters():
        torch.nn.init.zeros_(parameter)
    agent.finish_update()  # once is enough
    assert not any(parameter.any() for parameter in agent.policy.parameters())


def test_the_second_policy_is_drawn_by_itself_and_is_not_trained() -> None:
    torch.manual_seed(0)
    agent = Agent(INFO, EncoderConfig(hidden_dim=12), PolicyConfig(**POLICY, **RESET["latent"]))
    torch.manual_seed(0)
    plain = Agent(INFO, EncoderConfig(hidden_dim=12), PolicyConfig(**POLICY, **LATENT))
    assert agent.fresh_policy is not None
    assert not any(parameter.requires_grad for parameter in agent.fresh_policy.parameters())
    assert all(parameter.requires_grad for parameter in agent.policy.parameters())
    first, second, other = (values_of(policy) for policy in (agent.policy, agent.fresh_policy, plain.policy))
    for name, value in first.items():
        assert torch.equal(value, other[name])
        if "weight" in name and value.any():
            assert not torch.equal(value, second[name]) or name.startswith(("actor.", "critic.")), name


def test_a_resumed_agent_resets_to_the_same_values() -> None:
    agent, resumed = agent_of(**RESET["latent"]), agent_of(**RESET["latent"], seed=9)
    agent.finish_update()
    file = io.BytesIO()
    torch.save(agent.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert int(resumed.updates) == 1
    for each in (agent, resumed):
        each.finish_update()
    found, expected = values_of(resumed.policy), values_of(agent.policy)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_updates_are_kept_only_where_they_count() -> None:
    assert "updates" in agent_of(**LATENT).state_dict()
    plain = agent_of()
    assert not any(name.startswith(("updates", "fresh_policy")) for name in plain.state_dict())
    plain.finish_update()
    assert not plain.warming_up


# No memory


def test_an_agent_without_latent_has_no_encoder() -> None:
    agent = agent_of(**NONE)
    assert not isinstance(agent.encoder, TrajectoryEncoder)
    assert list(agent.encoder.parameters()) == []
    assert agent.encoder.state_dict() == {}
    assert agent.encoder.latent_dim == agent.encoder.policy_dim == agent.encoder.state_dim == 0
    assert sum(p.numel() for p in agent.parameters()) == sum(p.numel() for p in agent.policy.parameters())


def test_without_memory_nothing_is_stored_or_remembered() -> None:
    case = Collected(*AGENTS["no memory"])
    encoder = case.agent.encoder
    assert keys.START_MEMORY not in case.second.keys()  # noqa: SIM118 - of a TensorDict
    assert encoder.start_memory(case.second).shape == (ENVS, 0)
    assert [latent.shape for latent in encoder.encode(case.second)] == [(ENVS, 17, 0)] * 2
    assert encoder.encode_trajectories(case.second[0:0].select(keys.OBSERVATION)).shape == (0, 18, 0)
    changed = case.second.clone()
    for name in (keys.PREV_OBSERVATION, keys.PREV_ACTION, keys.PREV_REWARD):
        changed[name] += 1.0
    assert torch.equal(case.log_prob(changed), case.log_prob(case.second))


def test_a_stream_without_memory_can_be_continued() -> None:
    name, encoder, policy = AGENTS["no memory"]
    streams = []
    for seed in (1, 2):
        env = source_of(name, policy, seed=seed)
        agent = agent_of(env.env_info, encoder, **policy)
        streams.append(RolloutStream(env, lambda generator, agent=agent: Actor(agent, generator), 5, seed))
    streams[0].collect()
    streams[1].load_state_dict(streams[0].state_dict())
    ours, expected = (stream.collect() for stream in reversed(streams))
    for key in (keys.OBSERVATION, keys.ACTION, keys.ACTION_LOG_PROB):
        assert torch.equal(ours[key], expected[key])
