"""The policy: refused configurations, the law of its actions, and what it conditions on."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Categorical, Normal
from torch.nn.functional import leaky_relu
from torchrl.envs.utils import ExplorationType, set_exploration_type

from hyperrl import keys
from hyperrl.env_info import ActionSpace, EnvInfo
from hyperrl.errors import ConfigError
from hyperrl.modules.agent import Actor, Agent
from hyperrl.modules.distributions import action_distribution
from hyperrl.modules.encoder import EncoderConfig
from hyperrl.modules.hypernet import Input
from hyperrl.modules.policy import Policy, PolicyConfig

OBS, LATENT, BELIEF, TASK, TASKS = 3, 4, 5, 2, 7
DISCRETE, GAUSSIAN = ActionSpace(1, 5), ActionSpace(2)
ONE_HOT = {"use_task": True, "task_as_one_hot": True}
SMALL: dict[str, Any] = {"state_embedding_dim": 8, "latent_embedding_dim": 3, "layers": [8, 6]}


def policy_of(actions: ActionSpace = DISCRETE, seed: int = 0, **config: Any) -> Policy:
    torch.manual_seed(seed)
    sizes = {"belief_dim": BELIEF, "task_dim": TASK, "num_tasks": TASKS}
    return Policy(OBS, LATENT, actions, PolicyConfig(**{**SMALL, **config}), **sizes)


def inputs(number: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, OBS, generator=generator), torch.randn(number, LATENT, generator=generator)


def all_inputs(number: int = 6, seed: int = 0) -> tuple[Tensor, ...]:
    """State, latent, belief and task."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(number, width, generator=generator) for width in (OBS, LATENT, BELIEF, TASK))


def perturb(policy: Policy) -> Policy:
    """Parameters far from their initialisation, so that nothing is hidden by zeros."""
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return policy


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
    agent = Agent(
        EnvInfo(OBS, actions.dim, actions.num_actions, horizon=10), EncoderConfig(hidden_dim=8), PolicyConfig(**SMALL)
    )
    for parameter in agent.policy.actor.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # far from the uniform policy that training starts from
    return Actor(agent, torch.Generator().manual_seed(seed))


def parameters_of(actor: Actor, td: TensorDict) -> dict[str, Tensor]:
    with torch.no_grad():
        latent, _ = actor.agent.encoder.act(td.clone(), actor.memory)
        return actor.agent.policy.distribution(actor.agent.policy.inputs(td[keys.OBSERVATION], latent))


class TestConfiguration:
    @pytest.mark.parametrize(
        ("config", "words"),
        [
            ({"conditioning": "hypernetwork", "use_state": False}, ["model.policy.conditioning", "use_state"]),
            ({"layers": []}, ["model.policy.layers is []", "at least one"]),
            ({"layers": [8, 0]}, ["model.policy.layers is [8, 0]", "positive"]),
            ({"init_std": 0.0}, ["model.policy.init_std is 0.0", "positive"]),
            ({"state_embedding_dim": -1}, ["model.policy.state_embedding_dim is -1"]),
            ({"latent_embedding_dim": 0}, ["model.policy.latent_embedding_dim is 0"]),
            ({"task_embedding_dim": 0}, ["model.policy.task_embedding_dim is 0"]),
            ({"belief_embedding_dim": -1}, ["model.policy.belief_embedding_dim is -1"]),
            ({"hypernet_layers": [8, 0]}, ["model.policy.hypernet_layers is [8, 0]", "positive"]),
            ({"hypernet_layers": [8], "hypernet_softmax_temperature": 0.0}, ["hypernet_softmax_temperature is 0.0"]),
        ],
    )
    def test_illegal_settings_name_key_and_value(self, config: dict[str, Any], words: list[str]) -> None:
        with pytest.raises(ConfigError) as error:
            PolicyConfig(**config)
        assert all(word in str(error.value) for word in words)

    @pytest.mark.parametrize(
        ("config", "expected"),
        [
            ({"use_latent": False}, "hypernet_input is latent and use_latent is false"),
            ({"hypernet_input": "task"}, "hypernet_input is task and use_task is false"),
            ({"conditioning": "concat", "use_state": False, "use_latent": False}, "use_state is false"),
            ({"conditioning": "film", "use_state": False}, "conditioning is film and use_state is false"),
            ({"conditioning": "per_task"}, "conditioning is per_task and use_task is false"),
            ({"conditioning": "per_task", **ONE_HOT}, "conditioning is per_task and task_as_one_hot is true"),
            ({"task_as_one_hot": True}, "task_as_one_hot is true and use_task is false"),
            ({"generated_layers": [True]}, "generated_layers is [true] and layers is [256, 128]"),
            ({"generated_layers": [False] * 3}, "generated_layers is [false, false, false] and conditioning"),
            ({"hypernet_softmax_temperature": 1.0}, "hypernet_softmax_temperature is 1.0 and hypernet_layers is []"),
            ({"hypernet_hidden_initializer": "kaiming"}, "hypernet_hidden_initializer is kaiming and hypernet_layers"),
            ({"conditioning": "film", "hypernet_head_bias": False}, "conditioning is film and hypernet_head_bias"),
            ({"conditioning": "film", "hypernet_init": "hfi"}, "conditioning is film and hypernet_init is hfi"),
            ({"conditioning": "film", "adjust_init_gain": True}, "conditioning is film and adjust_init_gain is true"),
            ({"hypernet_head_bias": False}, "hypernet_head_bias is false and hypernet_init is bias_hyperinit"),
            ({"hypernet_init": "none", "adjust_init_gain": True}, "adjust_init_gain is true and hypernet_init is none"),
            ({"conditioning": "concat", "hypernet_init": "hfi"}, "hypernet_init is hfi and conditioning is concat"),
            ({"conditioning": "concat", "hypernet_layers": [8]}, "hypernet_layers is [8] and conditioning is concat"),
            ({"conditioning": "concat", "adjust_init_gain": True}, "adjust_init_gain is true and conditioning"),
        ],
    )
    def test_settings_that_exclude_each_other_are_both_named(self, config: dict[str, Any], expected: str) -> None:
        with pytest.raises(ConfigError) as error:
            PolicyConfig(**config)
        message = str(error.value)
        assert expected in message.replace("model.policy.", "")
        assert message.count("model.policy.") == 2
        assert "; expected " in message
        assert "\n" not in message

    @pytest.mark.parametrize(
        ("config", "used"),
        [
            ({"use_belief": True}, "belief"),
            ({"use_task": True}, "task"),
            ({"use_task": True, "task_as_one_hot": True}, "task"),
            ({"use_task": True, "conditioning": "per_task"}, "task"),
        ],
    )
    def test_inputs_that_nobody_offers_are_refused(self, config: dict[str, Any], used: str) -> None:
        with pytest.raises(ConfigError, match=f"model.policy.use_{used} is true; expected false"):
            Policy(OBS, LATENT, DISCRETE, PolicyConfig(**SMALL | config))

    def test_what_the_environment_has_to_publish(self) -> None:
        assert PolicyConfig().publish == ()
        assert PolicyConfig(use_belief=True, use_task=True).publish == (keys.BELIEF, keys.TASK)
        assert PolicyConfig(**ONE_HOT).publish == (keys.TASK_ID,)
        assert PolicyConfig(conditioning="per_task", use_task=True).publish == (keys.TASK_ID,)

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
        policy = policy_of(conditioning="concat", use_state=False)
        (observation, latent), (other, _) = inputs(), inputs(seed=1)
        a, b = (policy.distribution(policy.inputs(each, latent))[keys.LOGITS] for each in (observation, other))
        assert torch.equal(a, b)

    @pytest.mark.parametrize("conditioning", ["hypernetwork", "concat"])
    @pytest.mark.parametrize("which", [0, 1])
    def test_state_and_latent_both_reach_actor_and_critic(self, conditioning: str, which: int) -> None:
        policy = policy_of(conditioning=conditioning, hypernet_init="none")
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
        policy = policy_of(conditioning="concat", normalize_state=True)
        observation, latent = inputs(500)
        policy.update_statistics(observation * 10 + 3, latent)
        ours = policy.inputs(observation * 10 + 3, latent).x[:, :8]
        expected = torch.tanh(policy.state.linear((observation - observation.mean(0)) / observation.std(0)))
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


class TestInputs:
    EVERYTHING: ClassVar[dict[str, Any]] = {"use_belief": True, "use_task": True, "normalize_state": False,
                                            "normalize_belief": False, "normalize_task": False}  # fmt: skip

    def test_order_of_concatenation(self) -> None:
        policy = policy_of(conditioning="concat", belief_embedding_dim=6, task_embedding_dim=None, **self.EVERYTHING)
        state, latent, belief, task = all_inputs()
        expected = [policy.state(state), policy.latent(latent), torch.tanh(policy.belief.linear(belief)), task]
        assert torch.equal(policy.inputs(state, latent, belief, task).x, torch.cat(expected, 1))

    @pytest.mark.parametrize(("source", "left"), [("latent", ["state", "belief", "task"]),
                                                  ("task", ["state", "latent", "belief"])])  # fmt: skip
    def test_what_generates_is_no_input_of_the_layers(self, source: str, left: list[str]) -> None:
        policy = policy_of(hypernet_input=source, **self.EVERYTHING)
        given = dict(zip(("state", "latent", "belief", "task"), all_inputs(), strict=True))
        found = policy.inputs(*given.values())
        assert torch.equal(found.x, torch.cat([getattr(policy, name)(given[name]) for name in left], 1))
        assert torch.equal(found.condition.embedding, getattr(policy, source)(given[source]))

    @pytest.mark.parametrize("shape", [(6,), (6, 1)])
    def test_task_ids_become_one_hot(self, shape: tuple[int, ...]) -> None:
        policy = policy_of(conditioning="concat", task_embedding_dim=None, normalize_task=False, **ONE_HOT)
        ids = torch.tensor([0, 3, 6, 3, 1, 2])
        found = policy.inputs(*inputs(), task=ids.view(shape)).x[:, -TASKS:]
        assert torch.equal(found, torch.eye(TASKS)[ids])

    def test_inputs_that_are_not_used_may_be_left_out_but_no_others(self) -> None:
        state, latent = inputs()
        latent_only = policy_of(conditioning="concat", use_state=False)
        assert torch.equal(latent_only.inputs(latent=latent).x, latent_only.inputs(state, latent).x)
        with pytest.raises(ValueError, match="`latent`"):
            latent_only.inputs(state)
        with pytest.raises(ValueError, match="`task`"):
            policy_of(conditioning="per_task", use_task=True).inputs(state, latent)

    def test_statistics_of_all_inputs_move(self) -> None:
        policy = policy_of(use_belief=True, use_task=True, normalize_latent=True)
        given = all_inputs(500)
        policy.update_statistics(*(x.unflatten(0, (20, 25)) * 3 + 1 for x in given))
        for name, x in zip(("state", "latent", "belief", "task"), given, strict=True):
            torch.testing.assert_close(getattr(policy, name).norm.mean, (x * 3 + 1).mean(0), rtol=1e-4, atol=1e-4)

    def test_statistics_of_one_hot_tasks(self) -> None:
        policy = policy_of(**ONE_HOT)
        policy.update_statistics(*(x.unflatten(0, (2, 3)) for x in inputs()), task=torch.tensor([[0, 0, 1], [0, 3, 1]]))
        expected = torch.tensor([3, 2, 0, 1, 0, 0, 0]) / 6
        torch.testing.assert_close(policy.task.norm.mean, expected, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize(("activation", "function"), [("relu", torch.relu), ("leaky_relu", leaky_relu)])
    def test_activations(self, activation: str, function: Any) -> None:
        policy = perturb(policy_of(conditioning="concat", activation=activation))
        x = policy.inputs(*inputs())
        first, second, head = policy.critic.layers
        hidden = function(second(Input(function(first(x)))))
        torch.testing.assert_close(policy.value(x), hidden @ head.weight.T + head.bias)
        assert bool((x.x < 0).any()) == (activation == "leaky_relu")


class TestGeneration:
    """What generates, and what is generated."""

    @pytest.mark.parametrize("conditioning", ["hypernetwork", "film"])
    @pytest.mark.parametrize("flags", [[True, True, True], [False, True, False], [False, False, True]])
    def test_flags_say_which_layers_are_generated(self, conditioning: str, flags: list[bool]) -> None:
        policy = policy_of(conditioning=conditioning, generated_layers=flags)
        kinds = ["weight", "bias"] if conditioning == "hypernetwork" else ["scale", "bias"]
        layers = [name for name, flag in zip(("0", "1", "head"), flags, strict=True) if flag]
        expected = {f"{net}/{layer}/{kind}" for net in ("critic", "actor") for layer in layers for kind in kinds}
        assert set(policy.materialise(policy.inputs(*inputs()))) == expected

    def test_a_policy_can_be_run_on_what_was_materialised(self) -> None:
        policy = perturb(policy_of(normalize_state=False, hypernet_layers=[5], hypernet_init="none"))
        found = policy.inputs(*inputs())
        weights = policy.materialise(found)
        x = found.x
        for layer in ("0", "1", "head"):
            x = torch.einsum("noi,ni->no", weights[f"actor/{layer}/weight"], x) + weights[f"actor/{layer}/bias"]
            x = x if layer == "head" else torch.tanh(x)
        torch.testing.assert_close(policy.distribution(found)[keys.LOGITS], x)

    def test_nothing_is_materialised_where_nothing_is_generated(self) -> None:
        policy = policy_of(conditioning="concat")
        assert policy.materialise(policy.inputs(*inputs())) == {}

    def test_generated_parameters_are_critic_first_and_weights_before_biases(self) -> None:
        policy = perturb(policy_of(hypernet_init="none"))
        found = policy.inputs(*inputs())
        parts = policy.materialise(found)
        order = [f"{net}/{layer}/{kind}" for net in ("critic", "actor") for layer in ("0", "1", "head")
                 for kind in ("weight", "bias")]  # fmt: skip
        expected = torch.cat([parts[name].flatten(1) for name in order], 1)
        assert torch.equal(policy.generated_parameters(found.condition), expected)
        assert expected.shape == (6, (8 * 8 + 8 + 6 * 8 + 6) * 2 + 6 + 1 + 5 * 6 + 5)

    def test_generated_parameters_of_film_in_the_published_order(self) -> None:
        policy = perturb(policy_of(conditioning="film"))
        found = policy.inputs(*inputs())
        parts = policy.materialise(found)
        order = [f"{net}/{part}" for net in ("critic", "actor")
                 for part in ("0/bias", "0/scale", "1/bias", "1/scale", "head/scale", "head/bias")]  # fmt: skip
        expected = torch.cat([parts[name] for name in order], 1)
        assert torch.equal(policy.generated_parameters(found.condition), expected)

    @pytest.mark.parametrize("scheme", ["bias_hyperinit", "none"])
    def test_film_starts_as_its_scheme_says(self, scheme: str) -> None:
        policy = policy_of(conditioning="film", hypernet_init=scheme)
        parts = policy.materialise(policy.inputs(*inputs()))
        scales = torch.cat([value for name, value in parts.items() if name.endswith("scale")], 1)
        assert bool((scales == 1).all()) == (scheme == "bias_hyperinit")
        critic = parts["critic/head/bias"]
        assert bool((critic == critic[:1]).all()) == (scheme == "bias_hyperinit")

    @pytest.mark.parametrize("conditioning", ["hypernetwork", "film"])
    @pytest.mark.parametrize("source", ["latent", "task"])
    def test_gradients_reach_what_generates(self, conditioning: str, source: str) -> None:
        policy = perturb(
            policy_of(conditioning=conditioning, hypernet_input=source, use_task=True, hypernet_layers=[5])
        )
        state, latent, _, task = all_inputs()
        given = {"latent": latent.requires_grad_(), "task": task.requires_grad_()}
        found = policy.inputs(state, task=task, latent=latent)
        for output in (policy.distribution(found)[keys.LOGITS], policy.value(found)):
            (gradient,) = torch.autograd.grad(output.square().sum(), given[source], retain_graph=True)
            assert gradient.any()

    def test_hidden_layers_of_the_hypernetwork_have_their_own_initialiser(self) -> None:
        policy = policy_of(hypernet_layers=[64], hypernet_hidden_initializer="orthogonal")
        weight = policy.hypernet.layers[0].weight
        torch.testing.assert_close(weight.T @ weight, torch.eye(3) * (5 / 3) ** 2, rtol=1e-4, atol=1e-4)


class TestPerTask:
    IDS = torch.tensor([2, 0, 2, 6, 1, 0])

    def policy(self, actions: ActionSpace = DISCRETE, **config: Any) -> Policy:
        config = {"conditioning": "per_task", "use_task": True, "normalize_state": False, **config}
        return perturb(policy_of(actions, **config))

    @pytest.mark.parametrize("actions", [DISCRETE, GAUSSIAN])
    def test_a_task_is_served_by_its_own_networks_alone(self, actions: ActionSpace) -> None:
        policy, given = self.policy(actions), inputs()
        found = policy.inputs(*given, task=self.IDS)
        outputs = [*policy.distribution(found).values(), policy.value(found)]
        single = {"conditioning": "concat", "normalize_state": False}
        for task in range(TASKS):
            alone = policy_of(actions, **single)
            for name, parameter in alone.named_parameters():
                own = policy.get_parameter(name).detach()
                parameter.data.copy_(own if name.startswith("latent") else own[task])
            plain = alone.inputs(*given)
            rows = task == self.IDS
            for ours, expected in zip(outputs, [*alone.distribution(plain).values(), alone.value(plain)], strict=True):
                torch.testing.assert_close(ours[rows], expected[rows])

    def test_networks_of_absent_tasks_get_no_gradient(self) -> None:
        policy = self.policy()
        found = policy.inputs(*inputs(), task=self.IDS)
        (policy.value(found).sum() + policy.distribution(found)[keys.LOGITS].square().sum()).backward()
        for layer in (*policy.actor.layers, *policy.critic.layers, policy.state.linear):
            assert [bool(of_task.any()) for of_task in layer.weight.grad] == [True, True, True, *[False] * 3, True]

    def test_without_a_latent_the_task_alone_selects(self) -> None:
        policy = self.policy(use_latent=False)
        state, _ = inputs()
        same = state[:1].expand(6, -1)
        value = policy.value(policy.inputs(same, task=self.IDS))
        assert len(value.unique()) == len(self.IDS.unique())


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
