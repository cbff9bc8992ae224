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
from hyperrl.modules.hypernet import Condition, Input, RepeatedInput
from hyperrl.modules.policy import Policy, PolicyConfig
from hyperrl.testing import check_policy

OBS, LATENT, BELIEF, TASK, TASKS = 3, 4, 5, 2, 7
DISCRETE, GAUSSIAN = ActionSpace(1, 5), ActionSpace(2)
ONE_HOT = {"use_task": True, "task_as_one_hot": True}
REPLACE: dict[str, Any] = {"task_replaces": "latent"}
OVERRIDE: dict[str, Any] = {"task_replaces": "condition"}
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
            ({"task_warmup": -1}, ["model.policy.task_warmup is -1", "0 or more"]),
            ({"task_chance": 1.5}, ["model.policy.task_chance is 1.5", "from 0 to 1"]),
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
            ({"task_warmup": 3}, "task_warmup is 3 and task_replaces is none"),
            ({"task_chance": 0.5}, "task_chance is 0.5 and task_replaces is none"),
            ({"hard_reset": True, "task_replaces": "latent"}, "hard_reset is true and task_warmup is 0"),
            ({"one_hot_without_bias": True, **REPLACE}, "one_hot_without_bias is true and task_replaces is latent"),
            ({"use_task": True, **REPLACE}, "task_replaces is latent and use_task is true"),
            ({"use_belief": True, **REPLACE}, "task_replaces is latent and use_belief is true"),
            ({"use_latent": False, **REPLACE}, "task_replaces is latent and use_latent is false"),
            ({"conditioning": "per_task", **REPLACE}, "task_replaces is latent and conditioning is per_task"),
            ({"hypernet_input": "task", **REPLACE}, "task_replaces is latent and hypernet_input is task"),
            ({"use_task": True, **OVERRIDE}, "task_replaces is condition and use_task is true"),
            ({"conditioning": "concat", **OVERRIDE}, "task_replaces is condition and conditioning is concat"),
            ({"task_as_one_hot": True, **OVERRIDE}, "task_replaces is condition and task_as_one_hot is true"),
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
        assert PolicyConfig(**REPLACE).publish == (keys.TASK,)
        assert PolicyConfig(**REPLACE, task_as_one_hot=True).publish == (keys.TASK_ID,)
        assert PolicyConfig(**OVERRIDE, use_belief=True).publish == (keys.BELIEF, keys.TASK_ID)

    @pytest.mark.parametrize(
        ("config", "words"),
        [
            ({"task_embedding_dim": 5, **REPLACE}, ["latent_embedding_dim is 3 (", "task_embedding_dim is 5 ("]),
            ({"task_embedding_dim": None, **REPLACE}, ["latent_embedding_dim is 3 (3 wide)", "is null (2 wide)"]),
            (OVERRIDE, ["task_replaces is condition", "latent_embedding_dim is 3", "expected 7"]),
            ({"hypernet_layers": [7, 5], **OVERRIDE}, ["hypernet_layers is [7, 5]", "5 numbers; expected 7"]),
        ],
    )
    def test_the_task_has_to_be_as_wide_as_what_it_replaces(self, config: dict[str, Any], words: list[str]) -> None:
        with pytest.raises(ConfigError) as error:
            policy_of(**config)
        assert all(word in str(error.value) for word in words)
        assert str(error.value).count("model.policy.") == 2

    @pytest.mark.parametrize("config", [{"task_embedding_dim": 3, **REPLACE}, {"hypernet_layers": [7], **OVERRIDE}])
    def test_a_task_that_nobody_offers_replaces_nothing(self, config: dict[str, Any]) -> None:
        replaces = config["task_replaces"]
        with pytest.raises(
            ConfigError, match=rf"model\.policy\.task_replaces is {replaces}; expected none, as there is"
        ):
            Policy(OBS, LATENT, DISCRETE, PolicyConfig(**SMALL | config))

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

    @pytest.mark.parametrize("actions", [DISCRETE, GAUSSIAN])
    def test_few_distinct_observations_change_no_value_and_no_gradient(self, actions: ActionSpace) -> None:
        policy = perturb(policy_of(actions, normalize_state=False))
        observation, latent = inputs(24)
        observation = observation[torch.arange(24) % 2]
        plain = policy.inputs(observation, latent)
        policy.update_statistics(observation, latent)
        shared = policy.inputs(observation, latent)
        assert [type(each) for each in (plain, shared)] == [Input, RepeatedInput]
        outputs = [torch.cat([*policy.distribution(x).values(), policy.value(x)], 1) for x in (plain, shared)]
        torch.testing.assert_close(*outputs)
        upstream, parameters = torch.randn_like(outputs[0]), list(policy.parameters())
        gradients = [torch.autograd.grad(output, parameters, upstream) for output in outputs]
        torch.testing.assert_close(*gradients)

    @pytest.mark.parametrize(("samples", "distinct", "few"), [(24, 2, True), (24, 3, False), (6, 2, False)])
    def test_observations_are_few_below_a_quarter_of_features_and_samples(
        self, samples: int, distinct: int, few: bool
    ) -> None:
        policy, (observation, latent) = policy_of(), inputs(24)
        rollout = observation[torch.arange(samples) % distinct], latent[:samples]
        policy.update_statistics(*(x.unflatten(0, (2, -1)) for x in rollout))
        assert bool(policy.few_observations) == few
        # One rollout decides for all that acts and learns until the next one, be it a single sample.
        assert isinstance(policy.inputs(observation[:1], latent[:1]), RepeatedInput) == few
        policy.update_statistics(observation, latent)
        assert not policy.few_observations

    def test_products_are_shared_only_where_that_is_right(self) -> None:
        observation, latent = inputs(24)
        policy = policy_of()
        policy.few_observations.fill_(True)
        assert not isinstance(policy.inputs(observation, latent), RepeatedInput)  # more than the 8 features
        assert isinstance(policy.inputs(observation[:8], latent[:8]), RepeatedInput)
        assert policy.value(policy.inputs(observation[:0], latent[:0])).shape == (0, 1)
        assert not isinstance(policy.inputs(observation[:8].requires_grad_(), latent[:8]), RepeatedInput)
        few, belief = observation.detach()[torch.arange(24) % 2], torch.ones(24, BELIEF)
        for config in ({"use_belief": True}, {"conditioning": "concat"}, {"conditioning": "film"}):
            other = policy_of(**config)
            other.update_statistics(few, latent, belief)
            assert not other.few_observations
            assert not isinstance(other.inputs(few, latent, belief), RepeatedInput)

    @pytest.mark.parametrize(("bf16", "rows", "learning", "shared"), [
        (True, 255, False, False), (True, 256, False, True), (True, 255, True, True), (False, 255, False, True),
    ])  # fmt: skip
    def test_a_few_rows_that_act_in_bf16_share_nothing(
        self, bf16: bool, rows: int, learning: bool, shared: bool
    ) -> None:
        policy, (observation, latent) = policy_of(), inputs(2)
        policy.few_observations.fill_(True)
        of_row = torch.arange(rows) % 2
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16), torch.set_grad_enabled(learning):
            given = policy.inputs(observation[of_row], latent[of_row])
        assert isinstance(given, RepeatedInput) == shared

    def test_whether_observations_are_few_is_saved_where_it_matters(self) -> None:
        assert "few_observations" in policy_of().state_dict()
        assert "few_observations" not in policy_of(conditioning="concat").state_dict()

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


class TestTaskInPlaceOfLatent:
    """`task_replaces`: some samples see the task where others see the latent."""

    SHOWN = torch.tensor([True, False, False, True, True, False])
    IDS = torch.tensor([2, 0, 2, 6, 1, 0])
    CASES: ClassVar[dict[str, dict[str, Any]]] = {
        "hypernetwork": {},
        "film": {"conditioning": "film"},
        "concat": {"conditioning": "concat"},
        "hidden layers": {"hypernet_layers": [5], "hypernet_softmax_temperature": 0.5},
    }

    def latent_policy(self, case: str = "hypernetwork", **config: Any) -> Policy:
        own = {"task_embedding_dim": 3, "normalize_state": False, **REPLACE, **self.CASES[case]}
        return perturb(policy_of(**own | config))

    def condition_policy(self, **config: Any) -> Policy:
        return perturb(policy_of(**{"hypernet_layers": [7], "normalize_state": False, **OVERRIDE} | config))

    @staticmethod
    def outputs(policy: Policy, found: Input) -> Tensor:
        return torch.cat([policy.distribution(found)[keys.LOGITS], policy.value(found)], 1)

    @pytest.mark.parametrize("case", CASES)
    def test_each_sample_sees_the_embedding_that_is_chosen_for_it(self, case: str) -> None:
        policy = self.latent_policy(case)
        state, latent, _, task = all_inputs()
        ours = self.outputs(policy, policy.inputs(state, latent, task=task, task_shown=self.SHOWN))
        plain = perturb(policy_of(normalize_state=False, **self.CASES[case]))
        for name, parameter in plain.named_parameters():
            parameter.data.copy_(policy.get_parameter(name))
        from_latent = self.outputs(plain, plain.inputs(state, latent))
        plain.latent = policy.task
        from_task = self.outputs(plain, plain.inputs(state, task))
        torch.testing.assert_close(ours, torch.where(self.SHOWN.unsqueeze(1), from_task, from_latent))
        assert not torch.isclose(from_task, from_latent).all(1).any()

    @pytest.mark.parametrize("shown", [None, torch.zeros(6, dtype=torch.bool)])
    def test_without_a_choice_all_samples_see_the_latent(self, shown: Tensor | None) -> None:
        policy = self.latent_policy()
        state, latent, _, task = all_inputs()
        ours, other = policy.inputs(state, latent, task=task, task_shown=shown), policy.inputs(state, latent)
        assert torch.equal(ours.condition.embedding, policy.embed_latent(latent))
        assert torch.equal(other.condition.embedding, policy.embed_latent(latent))

    @pytest.mark.parametrize("shown", [True, False])
    def test_what_nobody_sees_gets_no_gradient_at_all(self, shown: bool) -> None:
        """Gradients of zero would let Adam go on by momentum."""
        policy = self.latent_policy()
        state, latent, _, task = all_inputs()
        found = policy.inputs(state, latent.requires_grad_(), task=task, task_shown=torch.full([6], shown))
        self.outputs(policy, found).square().sum().backward()
        seen, unseen = (policy.task, policy.latent) if shown else (policy.latent, policy.task)
        assert all(parameter.grad.any() for parameter in seen.parameters())
        assert all(parameter.grad is None for parameter in unseen.parameters())
        assert (latent.grad is None) == shown

    def test_ids_may_be_what_is_embedded(self) -> None:
        policy = self.latent_policy(task_as_one_hot=True)
        found = policy.inputs(*inputs(), task=self.IDS, task_shown=self.SHOWN)
        expected = policy.task(torch.eye(TASKS)[self.IDS])
        assert torch.equal(found.condition.embedding[self.SHOWN], expected[self.SHOWN])
        assert torch.equal(policy.embed_task(self.IDS), expected)

    def test_a_task_that_is_shown_has_to_be_there(self) -> None:
        for policy in (self.latent_policy(), self.condition_policy()):
            with pytest.raises(ValueError, match="`task`"):
                policy.inputs(*inputs(), task_shown=self.SHOWN)

    def test_statistics_of_latents_and_of_tasks_move(self) -> None:
        policy = self.latent_policy(normalize_latent=True, normalize_state=True)
        state, latent, _, task = all_inputs(500)
        policy.update_statistics(state, latent, task=task)
        for name, x in (("state", state), ("latent", latent), ("task", task)):
            torch.testing.assert_close(getattr(policy, name).norm.mean, x.mean(0), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("conditioning", ["hypernetwork", "film"])
    @pytest.mark.parametrize("without_bias", [False, True])
    def test_one_hot_ids_replace_what_feeds_the_heads(self, conditioning: str, without_bias: bool) -> None:
        policy = self.condition_policy(conditioning=conditioning, one_hot_without_bias=without_bias)
        (state, latent), shown = inputs(), self.SHOWN
        found = policy.inputs(state, latent, task=self.IDS, task_shown=shown)
        plain = policy.inputs(state, latent)
        assert torch.equal(found.condition.embedding[shown], torch.eye(TASKS)[self.IDS][shown])
        ours, expected = self.outputs(policy, found), self.outputs(policy, plain)
        torch.testing.assert_close(ours[~shown], expected[~shown])
        assert not torch.isclose(ours[shown], expected[shown]).any()
        for name, value in policy.materialise(found).items():
            expected = policy.materialise(Input(found.x, Condition(found.condition.embedding)))[name]
            if name.endswith("bias") and without_bias:
                expected = torch.where(shown.unsqueeze(1), 0.0, expected)
            assert torch.equal(value, expected)

    def test_one_hot_ids_replace_the_same_under_autocast(self) -> None:
        policy = self.condition_policy(one_hot_without_bias=True)
        for layer in (*policy.actor.layers, *policy.critic.layers):
            torch.nn.init.normal_(layer.bias_head.bias, 5.0)  # far more than rounding
        (state, latent), shown = inputs(), torch.ones(6, dtype=torch.bool)
        results = []
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                results.append(self.outputs(policy, policy.inputs(state, latent, task=self.IDS, task_shown=shown)))
        torch.testing.assert_close(*results, rtol=0.1, atol=0.1)

    def test_everything_may_be_replaced(self) -> None:
        policy, latent = self.condition_policy(), inputs()[1].requires_grad_()
        found = policy.inputs(inputs()[0], latent, task=self.IDS, task_shown=torch.ones(6, dtype=torch.bool))
        self.outputs(policy, found).sum().backward()
        assert latent.grad is None
        assert torch.equal(found.condition.embedding, torch.eye(TASKS)[self.IDS])

    @pytest.mark.parametrize(
        "config",
        [
            *({"task_embedding_dim": 3, **REPLACE, **case} for case in CASES.values()),
            {"task_embedding_dim": 3, "normalize_latent": True, "task_as_one_hot": True, **REPLACE},
            {"hypernet_layers": [7], "use_belief": True, **OVERRIDE},
            {"latent_embedding_dim": 7, "one_hot_without_bias": True, **OVERRIDE},
            {"hypernet_layers": [7], "one_hot_without_bias": True, "conditioning": "film", **OVERRIDE},
        ],
    )
    def test_policies_keep_the_contract(self, config: dict[str, Any]) -> None:
        sizes = {"belief_dim": BELIEF, "task_dim": TASK, "num_tasks": TASKS}
        check_policy(lambda: policy_of(**config), OBS, LATENT, **sizes)

    def test_a_new_start_leaves_the_embedding_of_the_task_and_all_statistics(self) -> None:
        policy, fresh = self.latent_policy(normalize_state=True), policy_of(seed=5, task_embedding_dim=3, **REPLACE)
        policy.update_statistics(*all_inputs(50)[:2], task=all_inputs(50)[3])
        before = {name: value.clone() for name, value in policy.state_dict().items()}
        policy.start_anew(fresh)
        kept = {name for name, value in policy.state_dict().items() if torch.equal(value, before[name])}
        own = {"task.linear.weight", "task.linear.bias"}
        assert kept == own | {name for name, _ in policy.named_buffers()}
        for name in set(before) - kept:
            assert torch.equal(policy.get_parameter(name), fresh.get_parameter(name))

    @pytest.mark.parametrize("conditioning", ["hypernetwork", "film"])
    def test_a_new_start_leaves_the_heads_that_one_hot_ids_have_trained(self, conditioning: str) -> None:
        policy = self.condition_policy(conditioning=conditioning)
        before = {name: value.clone() for name, value in policy.named_parameters()}
        policy.start_anew(self.condition_policy(conditioning=conditioning, seed=5))
        kept = {name for name, value in policy.named_parameters() if torch.equal(value, before[name])}
        generating = {name for name in before if name.startswith(("actor.", "critic."))}
        if conditioning == "film":
            generating = {name for name in generating if "_head." in name}
        assert kept == generating
        assert len(kept) == 6 * (4 if conditioning == "film" else 3)


class TestGeneratedDistance:
    CASES: ClassVar[dict[str, dict[str, Any]]] = {
        "hypernetwork": {"hypernet_init": "none"},
        "hidden layers": {"hypernet_layers": [5, 4], "hypernet_init": "none"},
        "no head bias": {"hypernet_head_bias": False, "hypernet_init": "none"},
        "film": {"conditioning": "film"},
        "some layers": {"generated_layers": [False, True, False], "hypernet_init": "none"},
    }

    @pytest.mark.parametrize("case", CASES)
    def test_is_the_mean_squared_difference_of_what_is_generated(self, case: str) -> None:
        policy = perturb(policy_of(**self.CASES[case]))
        a, b = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0)).requires_grad_().unbind(0)
        generated = (policy.generated_parameters(policy.hypernet(x)) for x in (a, b))
        direct = torch.sub(*generated).square().mean(1)
        ours = policy.generated_distance(a, b)
        torch.testing.assert_close(ours, direct, rtol=1e-4, atol=1e-6)
        weight = torch.randn(9, generator=torch.Generator().manual_seed(1))
        leaves = {"a": a, "b": b, **dict(policy.named_parameters())}
        found, expected = (
            torch.autograd.grad((x * weight).sum(), [*leaves.values()], allow_unused=True, materialize_grads=True)
            for x in (ours, direct)
        )
        for name, gradient, wanted in zip(leaves, found, expected, strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
        assert any(gradient.any() for gradient in found[2:])

    def test_runs_in_full_precision_under_autocast(self) -> None:
        policy, (a, b) = perturb(policy_of(hypernet_layers=[5])), torch.randn(2, 9, 3)
        with torch.autocast("cpu", torch.bfloat16):
            ours = policy.generated_distance(a.bfloat16(), b.bfloat16())
        assert torch.equal(ours, policy.generated_distance(a.bfloat16().float(), b.bfloat16().float()))


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
