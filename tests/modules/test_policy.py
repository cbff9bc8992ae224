"""The policy: refused configurations, the law of its actions, and what it conditions on."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Categorical, Normal
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hyperrl import keys
from hyperrl.errors import ConfigError
from hyperrl.modules.agent import Actor, Agent
from hyperrl.modules.distributions import action_distribution
from hyperrl.modules.encoder import EncoderConfig
from hyperrl.modules.policy import ActionSpace, Policy, PolicyConfig

OBS, LATENT = 3, 4
DISCRETE, GAUSSIAN = ActionSpace(1, 5), ActionSpace(2)
SMALL: dict[str, Any] = {"state_embedding_dim": 8, "latent_embedding_dim": 3, "layers": [8, 6]}


def policy_of(actions: ActionSpace = DISCRETE, seed: int = 0, **config: Any) -> Policy:
    torch.manual_seed(seed)
    return Policy(OBS, LATENT, actions, PolicyConfig(**{**SMALL, **config}))


def inputs(number: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, OBS, generator=generator), torch.randn(number, LATENT, generator=generator)


def step_of(number: int, actions: ActionSpace, identical: bool = False) -> TensorDict:
    """Root of a step in the middle of a task."""
    generator = torch.Generator().manual_seed(0)
    shapes = {keys.OBSERVATION: OBS, keys.PREV_OBSERVATION: OBS, keys.PREV_ACTION: actions.dim, keys.PREV_REWARD: 1}
    rows = 1 if identical else number
    entries = {name: torch.randn(rows, width, generator=generator) for name, width in shapes.items()}
    entries = {name: value.expand(number, -1) for name, value in entries.items()}
    entries[keys.IS_INIT] = torch.zeros(number, 1, dtype=torch.bool)
    return TensorDict(entries, [number])


def actor_of(actions: ActionSpace, seed: int = 0) -> Actor:
    torch.manual_seed(3)
    agent = Agent(OBS, actions, EncoderConfig(hidden_dim=8), PolicyConfig(**SMALL))
    for parameter in agent.policy.actor.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # far from the uniform policy that training starts from
    return Actor(agent, torch.Generator().manual_seed(seed))


def parameters_of(actor: Actor, td: TensorDict) -> dict[str, Tensor]:
    with torch.no_grad():
        latent = actor.agent.encoder.act(td.clone())
        return actor.agent.policy.distribution(actor.agent.policy.inputs(td[keys.OBSERVATION], latent))


class TestConfiguration:
    @pytest.mark.parametrize(
        ("config", "words"),
        [
            ({"hypernetwork": True, "use_state": False}, ["model.policy.hypernetwork", "use_state"]),
            ({"layers": []}, ["model.policy.layers is []", "at least one"]),
            ({"layers": [8, 0]}, ["model.policy.layers is [8, 0]", "positive"]),
            ({"init_std": 0.0}, ["model.policy.init_std is 0.0", "positive"]),
            ({"state_embedding_dim": -1}, ["model.policy.state_embedding_dim is -1"]),
            ({"latent_embedding_dim": 0}, ["model.policy.latent_embedding_dim is 0"]),
        ],
    )
    def test_illegal_settings_name_key_and_value(self, config: dict[str, Any], words: list[str]) -> None:
        with pytest.raises(ConfigError) as error:
            PolicyConfig(**config)
        assert all(word in str(error.value) for word in words)

    def test_bounding_actions_without_bounds_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"model\.policy\.bound_actions is true"):
            policy_of(GAUSSIAN, bound_actions=True)

    @pytest.mark.parametrize(
        ("config", "words"),
        [
            ({"hidden_dim": 0}, "model.encoder.hidden_dim is 0; expected at least 1"),
            ({"latent_dim": -2}, "model.encoder.latent_dim is -2; expected at least 1"),
            ({"action_embedding_dim": -1}, "model.encoder.action_embedding_dim is -1; expected 0"),
        ],
    )
    def test_illegal_settings_of_the_encoder_name_key_and_value(self, config: dict[str, int], words: str) -> None:
        with pytest.raises(ConfigError) as error:
            EncoderConfig(**config)
        assert words in str(error.value)


class TestConditioning:
    def test_without_the_state_the_policy_sees_only_the_latent(self) -> None:
        policy = policy_of(hypernetwork=False, use_state=False)
        (observation, latent), (other, _) = inputs(), inputs(seed=1)
        a, b = (policy.distribution(policy.inputs(each, latent))[keys.LOGITS] for each in (observation, other))
        assert torch.equal(a, b)

    @pytest.mark.parametrize("hypernetwork", [True, False])
    @pytest.mark.parametrize("which", [0, 1])
    def test_state_and_latent_both_reach_actor_and_critic(self, hypernetwork: bool, which: int) -> None:
        policy = policy_of(hypernetwork=hypernetwork, hypernet_init="none")
        tensors = [tensor.requires_grad_() for tensor in inputs()]
        both = policy.inputs(*tensors)
        for output in (policy.distribution(both)[keys.LOGITS], policy.value(both)):
            (gradient,) = torch.autograd.grad(output.square().sum(), tensors[which], retain_graph=True)
            assert gradient.any()

    def test_bias_hyperinit_starts_from_one_policy_for_all_latents(self) -> None:
        policy = policy_of()
        observation, latent = inputs()
        same = policy.inputs(observation[:1].expand(6, -1), latent)
        logits, value = policy.distribution(same)[keys.LOGITS], policy.value(same)
        torch.testing.assert_close(logits, logits[:1].expand_as(logits))
        torch.testing.assert_close(value, value[:1].expand_as(value))

    def test_statistics_move_where_they_are_enabled(self) -> None:
        policy = policy_of(normalize_state=True, normalize_latent=False)
        policy.update_statistics(*inputs())
        assert policy.state.norm.count > 5
        assert policy.latent.norm is None
        both = policy_of(normalize_state=False, normalize_latent=True)
        both.update_statistics(*inputs())
        assert both.state.norm is None
        assert both.latent.norm.count > 5

    def test_inputs_are_normalised_before_they_are_embedded(self) -> None:
        policy = policy_of(hypernetwork=False, normalize_state=True)
        observation, latent = inputs(500)
        policy.update_statistics(observation * 10 + 3, latent)
        ours = policy.inputs(observation * 10 + 3, latent).x[:, :8]
        expected = torch.tanh(policy.state.linear((observation - observation.mean(0)) / observation.std(0)))
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


class TestActions:
    @pytest.mark.parametrize("actions", [DISCRETE, GAUSSIAN])
    def test_deterministic_actions_are_the_mode(self, actions: ActionSpace) -> None:
        actor, td = actor_of(actions), step_of(50, actions)
        parameters = parameters_of(actor, td)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            action = actor(td)[keys.ACTION]
        expected = parameters[keys.LOGITS].argmax(-1) if actions.discrete else parameters[keys.LOC]
        assert torch.equal(action, expected)

    @pytest.mark.parametrize("actions", [DISCRETE, GAUSSIAN])
    def test_sampled_actions_depend_on_the_own_generator_alone(self, actions: ActionSpace) -> None:
        def sample(seed: int) -> Tensor:
            torch.rand(1)  # the global generator moves between calls
            with set_exploration_type(ExplorationType.RANDOM):
                return actor_of(actions, seed)(step_of(50, actions))[keys.ACTION]

        assert torch.equal(sample(0), sample(0))
        assert not torch.equal(sample(0), sample(1))

    @pytest.mark.parametrize("actions", [DISCRETE, GAUSSIAN])
    def test_log_probability_belongs_to_the_action(self, actions: ActionSpace) -> None:
        actor, td = actor_of(actions), step_of(50, actions)
        parameters = parameters_of(actor, td)
        with set_exploration_type(ExplorationType.RANDOM):
            actor(td)
        if actions.discrete:
            expected = Categorical(logits=parameters[keys.LOGITS]).log_prob(td[keys.ACTION])
        else:
            expected = Normal(parameters[keys.LOC], parameters[keys.SCALE]).log_prob(td[keys.ACTION]).sum(-1)
        torch.testing.assert_close(td[keys.ACTION_LOG_PROB], expected)

    def test_samples_follow_the_categorical(self) -> None:
        """Chi-square with 4 degrees of freedom, 20,000 draws, level 1e-4."""
        actor, td = actor_of(DISCRETE), step_of(20_000, DISCRETE, identical=True)
        probabilities = parameters_of(actor, td)[keys.LOGITS][0].softmax(-1)
        assert probabilities.max() > 2 * probabilities.min()
        with set_exploration_type(ExplorationType.RANDOM):
            counts = torch.bincount(actor(td)[keys.ACTION], minlength=5)
        expected = probabilities * 20_000
        assert ((counts - expected) ** 2 / expected).sum() < 23.51

    def test_samples_follow_the_gaussian(self) -> None:
        """Chi-square over ten bins of equal probability per dimension, 20,000 draws, level 1e-4."""
        actor, td = actor_of(GAUSSIAN), step_of(20_000, GAUSSIAN, identical=True)
        with torch.no_grad():
            actor.agent.policy.log_std.copy_(torch.tensor([-1.0, 0.5]))
        parameters = parameters_of(actor, td)
        with set_exploration_type(ExplorationType.RANDOM):
            action = actor(td)[keys.ACTION]
        uniform = Normal(parameters[keys.LOC], parameters[keys.SCALE]).cdf(action)
        for dimension in uniform.unbind(-1):
            counts = torch.histc(dimension, 10, 0, 1)
            assert ((counts - 2000) ** 2 / 2000).sum() < 33.72
        assert abs(torch.corrcoef(uniform.T)[0, 1]) < 4 / math.sqrt(20_000)

    def test_gaussian_log_probability_and_entropy_are_sums_over_dimensions(self) -> None:
        loc, scale = torch.randn(7, 3), torch.rand(7, 3) + 0.1
        action = torch.randn(7, 3)
        distribution = action_distribution({keys.LOC: loc, keys.SCALE: scale})
        density = -((action - loc) ** 2) / (2 * scale**2) - scale.log() - math.log(2 * math.pi) / 2
        torch.testing.assert_close(distribution.log_prob(action), density.sum(-1))
        entropy = (0.5 + 0.5 * math.log(2 * math.pi) + scale.log()).sum(-1)
        torch.testing.assert_close(distribution.entropy(), entropy)

    def test_initial_deviation_is_the_configured_one(self) -> None:
        policy = policy_of(GAUSSIAN, init_std=0.3)
        scale = policy.distribution(policy.inputs(*inputs()))[keys.SCALE]
        torch.testing.assert_close(scale, torch.full((6, 2), 0.3))

    def test_bounded_means_stay_in_their_range(self) -> None:
        observation, latent = inputs()
        for low, high in (((-1.0, -1.0), (1.0, 1.0)), ((-2.0, 0.0), (3.0, 0.5))):
            policy = policy_of(ActionSpace(2, None, low, high), bound_actions=True)
            with torch.no_grad():
                policy.actor.layers[-1].weight.mul_(100)
            mean = policy.distribution(policy.inputs(observation, latent))[keys.LOC]
            assert (mean >= torch.tensor(low)).all()
            assert (mean <= torch.tensor(high)).all()
            assert mean.std(0).min() > 0.01

    def test_discrete_policy_starts_nearly_uniform(self) -> None:
        policy = policy_of()
        logits = policy.distribution(policy.inputs(*inputs()))[keys.LOGITS]
        torch.testing.assert_close(logits.softmax(-1), torch.full((6, 5), 0.2), rtol=0.05, atol=0)
