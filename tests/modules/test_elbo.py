"""The loss on whole trajectories against slow loops over trajectories, latents and steps (spec/training.md 7.3)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence
from torch.testing import assert_close

from hyperrl import keys
from hyperrl.env_info import EnvInfo
from hyperrl.errors import ConfigError
from hyperrl.modules import decoders
from hyperrl.modules.decoders import LatentDecoder, StepDecoder
from hyperrl.modules.elbo import Elbo, ElboTerms, Indices, binary_error
from hyperrl.modules.encoder_config import EncoderConfig
from hyperrl.modules.inference_config import InferenceConfig

N, T, L = 4, 6, 2
INFO = EnvInfo(obs_dim=3, action_dim=2, num_actions=None, horizon=T, task_dim=3, num_tasks=5, num_states=7)
ENCODER = EncoderConfig(state_embedding_dim=4, action_embedding_dim=2, latent_dim=L)
TARGET_DIM = 11
FULL, RAGGED = (T,) * N, (T, 1, 4, 3)

PER_STATE = {"reward": "bernoulli", "reward_per_state": True}
NO_REWARD = {"reward": "none"}
DRAWN = {"subsample_elbos": 3, "subsample_decodes": 5}
AVERAGED = {"average_elbos": True, "average_decodes": True}
MEAN = {"reduction": "mean"}
CASES: dict[str, dict[str, Any]] = {
    "reward": {"kl_coeff": 0.3, "reward_coeff": 1.7},
    "reward, bernoulli": {"reward": "bernoulli", "reward_uses_action": False},
    "reward per state, bernoulli": PER_STATE,
    "reward per state, categorical": PER_STATE | {"reward": "categorical"},
    "reward of 2 per state, bernoulli": PER_STATE | {"reward_target": 2.0},
    "reward of 2 per state, categorical": PER_STATE | {"reward": "categorical", "reward_target": 2.0},
    "reward per state, deterministic": PER_STATE | {"reward": "deterministic"},
    "state": NO_REWARD | {"state": "deterministic", "state_coeff": 0.6},
    "state, gaussian": NO_REWARD | {"state": "gaussian"},
    "task id": NO_REWARD | {"task": "id", "task_coeff": 2.5},
    "task description": NO_REWARD | {"task": "description"},
    "task embedding": NO_REWARD | {"task": "embedding"},
    "generated weights": NO_REWARD | {"task": "base_network"},
    "everything": PER_STATE | {"state": "gaussian", "task": "description", "kl_prior": "standard"},
    "only the KL": {"encoder_loss": "rl_and_kl"},
    "without decoding tasks": {"encoder_loss": "both", "task": "embedding", "state": "deterministic"},
    "not stochastic": {"stochastic": False, "task": "id"},
}
EVERYTHING = CASES["everything"]
REDUCTIONS = {
    "averages": AVERAGED,
    "average of latents": {"average_elbos": True},
    "average of steps": {"average_decodes": True},
    "mean": MEAN,
    "mean of averages": MEAN | AVERAGED,
    "only past": {"only_past": True},
    "drawn": DRAWN,
    "drawn latents": {"subsample_elbos": 9},
    "drawn steps": {"subsample_decodes": 2},
    "drawn, averages": DRAWN | AVERAGED,
    "drawn, mean": DRAWN | MEAN,
    "drawn, resampled": {"subsample_elbos": 3, "resample_decodes": True},
    "drawn, KL to the previous": DRAWN | {"kl_prior": "previous"},
}
CASES |= {name: EVERYTHING | options for name, options in REDUCTIONS.items()}


def _config(**options: Any) -> InferenceConfig:
    return InferenceConfig(**{"encoder_loss": "inference", "reward_layers": [8], "state_layers": [8], **options})


def _elbo(config: InferenceConfig, dtype: torch.dtype = torch.float64) -> Elbo:
    torch.manual_seed(1)
    return Elbo(INFO, ENCODER, config, TARGET_DIM).to(dtype)


def _trajectories(lengths: tuple[int, ...], dtype: torch.dtype = torch.float64) -> TensorDict:
    """Random trajectories whose steps behind the end are poisoned."""
    torch.manual_seed(2)
    widths = {keys.PREV_OBSERVATION: 3, keys.PREV_ACTION: 2, keys.OBSERVATION: 3}
    steps = {name: torch.randn(N, T, width, dtype=dtype) for name, width in widths.items()}
    steps[keys.PREV_REWARD] = torch.randint(-1, 3, (N, T, 1)).to(dtype)
    steps[keys.STATE_ID] = torch.randint(INFO.num_states, (N, T))
    for row, length in enumerate(lengths):
        for value in steps.values():
            value[row, length:] = math.nan if value.is_floating_point() else 10**9
    tasks = {keys.TASK: torch.randn(N, 3, dtype=dtype), keys.TASK_ID: torch.randint(INFO.num_tasks, (N,))}
    return TensorDict({**steps, **tasks, keys.LENGTH: torch.tensor(lengths)}, batch_size=[N])


def _latents(lengths: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Random latents, poisoned behind the end, and noise."""
    torch.manual_seed(3)
    latents, noise = torch.randn(N, T + 1, 2 * L, dtype=dtype), torch.randn(N, T + 1, L, dtype=dtype)
    for row, length in enumerate(lengths):
        latents[row, length + 1 :] = math.nan
    return latents.requires_grad_(), noise


# The loops


class Loops:
    """The loss, one trajectory, latent and step after the other."""

    def __init__(
        self, model: Elbo, latents: Tensor, td: TensorDict, noise: Tensor, indices: Indices, target: Tensor | None
    ) -> None:
        self.model, self.config = model, model.config
        self.td, self.indices, self.target = td, indices, target
        self.lengths = td[keys.LENGTH].tolist()
        self.mean, self.logvar, self.noise = latents[..., :L], latents[..., L:], noise

    def z(self, row: int, t: int) -> Tensor:
        mean, logvar = self.mean[row, t], self.logvar[row, t]
        if not self.config.stochastic:
            return torch.cat([mean, logvar])
        return mean + (logvar / 2).exp() * self.noise[row, t]

    def terms_of(self, row: int) -> list[tuple[int, list[int]]]:
        """The decoded latents of a trajectory, each with its steps."""
        length, (latents, steps) = self.lengths[row], self.indices
        numbers = range(length + 1) if latents is None else latents[row].tolist()
        found = []
        for place, t in enumerate(numbers):
            of_term = range(length) if steps is None else steps[row, place].tolist()
            found.append((t, [step for step in of_term if step < t or not self.config.only_past]))
        return found

    def kl(self, row: int, t: int) -> Tensor:
        posterior = Normal(self.mean[row, t], (self.logvar[row, t] / 2).exp())
        if t == 0 or self.config.kl_prior == "standard":
            prior = Normal(torch.zeros_like(posterior.loc), torch.ones_like(posterior.scale))
        else:
            prior = Normal(self.mean[row, t - 1], (self.logvar[row, t - 1] / 2).exp())
        return kl_divergence(posterior, prior).sum()

    def of_step(self, decoder: StepDecoder, z: Tensor, row: int, step: int) -> Tensor:
        parts = {"observation": keys.OBSERVATION, "action": keys.PREV_ACTION, "prev_observation": keys.PREV_OBSERVATION}
        given = [z]
        for name in decoder.inputs:
            layer = decoder.action if name == "action" else decoder.state
            given.append(layer(self.td[parts[name]][row, step]).relu())
        return decoder.rest(decoder.first(torch.cat(given)))

    def reward(self, row: int, t: int, step: int) -> Tensor:
        decoder, kind, z = self.model.reward, self.config.reward, self.z(row, t)
        reward = self.td[keys.PREV_REWARD][row, step, 0]
        if isinstance(decoder, LatentDecoder):
            of_states, state = decoder(z), self.td[keys.STATE_ID][row, step]
            if kind == "categorical":
                probability = of_states.softmax(-1)[state]
                return -(probability if reward == self.config.reward_target else 1 - probability).log()
            prediction = of_states[state]
        else:
            assert decoder is not None
            (prediction,) = self.of_step(decoder, z, row, step)
        if kind == "deterministic":
            return (prediction - reward) ** 2
        return -Bernoulli(logits=prediction).log_prob((reward == self.config.reward_target).to(prediction.dtype))

    def state(self, row: int, t: int, step: int) -> Tensor:
        decoder, target = self.model.state, self.td[keys.OBSERVATION][row, step]
        assert decoder is not None
        prediction = self.of_step(decoder, self.z(row, t), row, step)
        if self.config.state == "deterministic":
            return ((prediction - target) ** 2).mean()
        return -Normal(prediction[:3], (prediction[3:] / 2).exp()).log_prob(target).mean()

    def task(self, row: int, t: int) -> Tensor:
        assert self.model.task is not None
        prediction = self.model.task(self.z(row, t))
        if self.config.task == "id":
            return -Categorical(logits=prediction).log_prob(self.td[keys.TASK_ID][row])
        target = self.td[keys.TASK] if self.config.task == "description" else self.target
        assert target is not None
        return ((prediction - target[row]) ** 2).mean()

    def over_latents(self, values: list[Tensor]) -> Tensor:
        return _total(values) / (len(values) if self.config.average_elbos else 1)

    def over_trajectories(self, values: list[Tensor], published_sum: bool) -> Tensor:
        averaged = not published_sum or self.config.reduction == "mean" or self.config.only_past
        return _total(values) / (N if averaged else 1)

    def reconstruction(self, kind: str) -> Tensor:
        of_rows = []
        for row in range(N):
            of_latents = []
            for t, steps in self.terms_of(row):
                errors = [getattr(self, kind)(row, t, step) for step in steps]
                of_latents.append(_total(errors) / (len(errors) if self.config.average_decodes else 1))
            of_rows.append(self.over_latents(of_latents))
        return self.over_trajectories(of_rows, published_sum=False)

    def tasks(self) -> Tensor:
        of_rows = []
        for row in range(N):
            numbers = [t for t, _ in self.terms_of(row) if t > 0 or not self.config.only_past]
            of_rows.append(self.over_latents([self.task(row, t) for t in numbers]))
        return self.over_trajectories(of_rows, published_sum=True)

    def kls(self) -> Tensor:
        """With the published reduction, every row drawn for anyone counts for everyone who has it."""
        drawn = [t for row in range(N) for t, _ in self.terms_of(row)]
        of_rows = []
        for row in range(N):
            everyones = self.indices.latents is not None and self.config.reduction == "published"
            numbers = drawn if everyones else [t for t, _ in self.terms_of(row)]
            of_rows.append(self.over_latents([self.kl(row, t) for t in numbers if t <= self.lengths[row]]))
        return self.over_trajectories(of_rows, published_sum=True)

    def terms(self) -> ElboTerms:
        config, zero = self.config, torch.zeros((), dtype=torch.float64)
        decodes = config.encoder_loss in ("inference", "both")
        reward = self.reconstruction("reward") if decodes and config.reward != "none" else zero
        state = self.reconstruction("state") if decodes and config.state != "none" else zero
        task = self.tasks() if config.encoder_loss == "inference" and config.task != "none" else zero
        kl = self.kls() if config.stochastic else zero
        total = config.reward_coeff * reward + config.state_coeff * state + config.task_coeff * task
        return ElboTerms(total + config.kl_coeff * kl, reward, state, task, kl)


def _total(values: list[Tensor]) -> Tensor:
    return sum(values, torch.zeros((), dtype=torch.float64))


def _gradients(total: Tensor, wanted: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(total, wanted, allow_unused=True)
    return [torch.zeros_like(of) if grad is None else grad for grad, of in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("lengths", [FULL, RAGGED], ids=["full", "ragged"])
@pytest.mark.parametrize("name", CASES)
def test_equals_loops(name: str, lengths: tuple[int, ...]) -> None:
    """Value and gradients; what is poisoned behind the ends would be seen in both."""
    config = _config(**CASES[name])
    model, td, (latents, noise) = _elbo(config), _trajectories(lengths), _latents(lengths)
    target = torch.randn(N, TARGET_DIM, dtype=torch.float64, requires_grad=True)
    indices = model.draw(td[keys.LENGTH], T, torch.Generator().manual_seed(4))
    ours = model(latents, td, noise=noise, indices=indices, target=target)
    loops = Loops(model, latents, td, noise, indices, target).terms()
    for kind, own, expected in zip(ElboTerms._fields, ours, loops, strict=True):
        assert own.shape == ()
        assert_close(own, expected, msg=lambda message, kind=kind: f"{kind}: {message}")
    wanted = [latents, target, *model.parameters()]
    for own, expected in zip(_gradients(ours.total, wanted), _gradients(loops.total, wanted), strict=True):
        assert_close(own, expected)


@pytest.mark.parametrize("name", ["everything", "drawn", "only past", "state, gaussian", "task id"])
def test_gradcheck(name: str) -> None:
    config = _config(**CASES[name])
    model, td, (latents, noise) = _elbo(config), _trajectories(FULL), _latents(FULL)
    indices = model.draw(td[keys.LENGTH], T, torch.Generator().manual_seed(4))
    assert torch.autograd.gradcheck(lambda x: model(x, td, noise=noise, indices=indices).total, latents, atol=1e-4)


def test_nothing_behind_the_end_gets_gradients() -> None:
    model, td, (latents, noise) = _elbo(_config(**EVERYTHING)), _trajectories(RAGGED), _latents(RAGGED)
    model(latents, td, noise=noise).total.backward()
    for row, length in enumerate(RAGGED):
        assert latents.grad[row, : length + 1].all()
        assert not latents.grad[row, length + 1 :].any()


def test_given_indices_are_used_as_they_are() -> None:
    """Nothing but the last latent and the last step is decoded."""
    model, td, (latents, noise) = _elbo(_config(**PER_STATE)), _trajectories(FULL), _latents(FULL)
    indices = Indices(torch.full((N, 1), T), torch.full((N, 1, 1), T - 1))
    last = model(latents, td, noise=noise, indices=indices)
    moved = latents.detach().clone()
    moved[:, :T] += 1
    td[keys.PREV_REWARD][:, : T - 1] += 1
    assert torch.equal(model(moved, td, noise=noise, indices=indices).reward, last.reward)
    moved[:, T] += 1
    assert model(moved, td, noise=noise, indices=indices).reward != last.reward


def test_given_indices_do_not_reach_behind_the_past() -> None:
    """Of the latent after 2 transitions the first 2 steps are decoded, and no task of latents that know nothing."""
    config = _config(**EVERYTHING, only_past=True)
    model, td, (latents, noise) = _elbo(config), _trajectories(FULL), _latents(FULL)
    chosen = Indices(torch.tensor([[2, 0]]).expand(N, -1), torch.tensor([[0, 1, 2], [0, 1, 2]]).expand(N, -1, -1))
    loops = Loops(model, latents, td, noise, chosen, None)
    assert [terms for row in range(N) for terms in loops.terms_of(row)] == [(2, [0, 1]), (0, [])] * N
    ours = model(latents, td, noise=noise, indices=chosen)
    for own, expected in zip(ours[1:4], loops.terms()[1:4], strict=True):
        assert_close(own, expected)


# What is drawn


def test_draws_are_within_the_length_and_uniform() -> None:
    """Every count is within 5 standard deviations of the expected one (level 1e-4 for all of them)."""
    config = _config(**PER_STATE, subsample_elbos=4000, subsample_decodes=3)
    length = torch.tensor(RAGGED)
    indices = _elbo(config).draw(length, T, torch.Generator().manual_seed(0))
    assert indices.latents is not None
    assert indices.steps is not None
    assert indices.latents.shape == (N, 4000)
    assert indices.steps.shape == (N, 4000, 3)
    for row, number in enumerate(RAGGED):
        for drawn, of in ((indices.latents[row], number + 1), (indices.steps[row].flatten(), number)):
            assert 0 <= drawn.min() <= drawn.max() < of
            counts = drawn.bincount(minlength=of).double()
            expected, deviation = len(drawn) / of, math.sqrt(len(drawn) * (1 / of) * (1 - 1 / of))
            assert ((counts - expected).abs() <= 5 * deviation).all()


@pytest.mark.parametrize(
    ("options", "latents", "steps"),
    [
        ({}, None, None),
        ({"subsample_elbos": 3}, (N, 3), None),
        ({"subsample_decodes": 2}, None, (N, T + 1, 2)),
        ({"subsample_elbos": 3, "resample_decodes": True}, (N, 3), (N, 3, 5)),
        ({"resample_decodes": True}, None, (N, T + 1, 5)),
    ],
)
def test_what_is_drawn(options: dict[str, Any], latents: Any, steps: Any) -> None:
    """Resampling draws as many steps as the longest trajectory has."""
    drawn = _elbo(_config(**options)).draw(torch.tensor([5, 1, 4, 3]), T, torch.Generator())
    assert tuple(None if index is None else tuple(index.shape) for index in drawn) == (latents, steps)


def test_randomness_is_the_callers() -> None:
    model, td, (latents, _) = _elbo(_config(**EVERYTHING, **DRAWN)), _trajectories(RAGGED), _latents(RAGGED)
    before = torch.get_rng_state()
    losses = [model(latents, td, generator=torch.Generator().manual_seed(seed)).total.item() for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("options", [{}, {"stochastic": False, "subsample_elbos": 3}])
def test_randomness_is_never_global(options: dict[str, Any]) -> None:
    model, td, (latents, _) = _elbo(_config(**options)), _trajectories(FULL), _latents(FULL)
    with pytest.raises(ValueError, match="generator is None"):
        model(latents, td)


def test_noise_is_standard_normal() -> None:
    """Mean and variance of the samples' noise, within 5 standard errors (level 1e-6 each)."""
    model = _elbo(_config())
    latents = torch.tensor([3.0, math.log(4.0)], dtype=torch.float64).repeat_interleave(L).expand(5000, 2, -1)
    noise = (model._sample(latents, None, torch.Generator().manual_seed(0)) - 3) / 2
    number = noise.numel()
    assert abs(noise.mean()) < 5 / math.sqrt(number)
    assert abs(noise.var() - 1) < 5 * math.sqrt(2 / number)


@pytest.mark.parametrize(("options", "lengths"), [(MEAN, RAGGED), ({}, FULL)], ids=["mean, ragged", "published, full"])
def test_averages_of_draws_are_unbiased(options: dict[str, Any], lengths: tuple[int, ...]) -> None:
    """Every part, averaged over 1,000 draws, is that of all latents and steps within 5 standard errors (level 1e-6)."""
    averaged = EVERYTHING | AVERAGED | options
    whole, sampled = _elbo(_config(**averaged)), _elbo(_config(**averaged, **DRAWN))
    td, (latents, noise) = _trajectories(lengths), _latents(lengths)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        expected = torch.stack(whole(latents, td, noise=noise))
        draws = torch.stack([torch.stack(sampled(latents, td, noise=noise, generator=generator)) for _ in range(1000)])
    error = draws.std(0) / math.sqrt(len(draws))
    assert (error > 0).all()
    assert ((draws.mean(0) - expected).abs() < 5 * error).all()


# Numbers


def test_fp32_under_autocast() -> None:
    model, td = _elbo(_config(**EVERYTHING), torch.float32), _trajectories(RAGGED, torch.float32)
    latents, noise = _latents(RAGGED, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(latents, td, noise=noise)
    for own, expected in zip(mixed, model(latents, td, noise=noise), strict=True):
        assert own.dtype == torch.float32
        assert torch.equal(own, expected)


def test_wide_targets_are_compared_without_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of generated weights is the same through both forms, subsampled and ragged."""
    model = _elbo(_config(**CASES["generated weights"], subsample_elbos=3))
    td, (latents, noise) = _trajectories(RAGGED), _latents(RAGGED)
    target = torch.randn(N, TARGET_DIM, dtype=torch.float64, requires_grad=True)
    indices = model.draw(td[keys.LENGTH], T, torch.Generator().manual_seed(0))
    wanted, found, calls = [latents, target, *model.parameters()], [], []
    without = decoders.affine_squared_error
    monkeypatch.setattr(decoders, "affine_squared_error", lambda *inputs: calls.append(1) or without(*inputs))
    for limit in (TARGET_DIM, TARGET_DIM - 1):
        assert not calls, "not wide yet"
        monkeypatch.setattr(decoders, "WIDE", limit)
        loss = model(latents, td, noise=noise, indices=indices, target=target).total
        found.append([loss, *_gradients(loss, wanted)])
    for direct, wide in zip(*found, strict=True):
        assert_close(wide, direct)
    assert calls, "both forms are the same code"


def test_binary_error_of_saturated_predictions() -> None:
    """Logits are exact; probabilities that are rounded to 1 cost something finite."""
    logits = torch.tensor([-200.0, 200.0], requires_grad=True)
    error = binary_error(logits, torch.tensor([True, False]))
    assert_close(error, torch.tensor([200.0, 200.0]))
    assert_close(torch.autograd.grad(error.sum(), logits)[0], torch.tensor([-1.0, 1.0]))
    certain = torch.tensor([100.0, 0.0], requires_grad=True)
    error = binary_error(certain.log_softmax(-1), torch.tensor([False, True]), log_probability=True)
    assert_close(error[1], torch.tensor(100.0))
    assert 10 < error[0] < math.inf
    assert torch.autograd.grad(error.sum(), certain)[0].isfinite().all()


# Profiles


def test_profile() -> None:
    """Step t is predicted from latent t, the one just before it, or from the prior; behind the end there is nothing."""
    model, td, (latents, _) = _elbo(_config(**EVERYTHING)), _trajectories(RAGGED), _latents(RAGGED)
    profile = model.profile(latents, td)
    assert set(profile) == {"kl", "reward_error", "reward_error_of_prior", "state_error", "task_error"}
    assert not any(value.requires_grad for value in profile.values())
    loops = Loops(model, latents, td, torch.zeros(N, T + 1, L), Indices(), None)
    for name, values in profile.items():
        per_step = name.startswith(("reward_error", "state_error"))
        assert values.shape == (N, T if per_step else T + 1)
        for row, length in enumerate(RAGGED):
            valid = length if per_step else length + 1
            assert values[row, valid:].isnan().all()
            for t in range(valid):
                one = getattr(loops, name.split("_")[0])
                latent = 0 if name.endswith("prior") else t
                assert_close(values[row, t], (one(row, latent, t) if per_step else one(row, t)).detach())


def test_profile_of_what_there_is() -> None:
    model, td, (latents, _) = _elbo(_config(stochastic=False)), _trajectories(FULL), _latents(FULL)
    assert set(model.profile(latents, td)) == {"reward_error", "reward_error_of_prior"}


# What cannot be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PER_STATE, "model.inference.reward_per_state is true"),
        ({"task": "id"}, "model.inference.task is id"),
        ({"task": "description"}, "model.inference.task is description"),
        ({"task": "embedding"}, "model.inference.task is embedding"),
        ({"task": "base_network"}, "model.inference.task is base_network"),
    ],
)
def test_what_the_environment_does_not_have(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Elbo(EnvInfo(3, 2, None, T), ENCODER, _config(**options))


def test_target_has_to_be_given() -> None:
    model, td, (latents, noise) = _elbo(_config(task="embedding")), _trajectories(FULL), _latents(FULL)
    with pytest.raises(ValueError, match="expected target"):
        model(latents, td, noise=noise)


def test_only_what_learns_has_parameters() -> None:
    """Where the RL loss trains the encoder, embeddings of the task are compared elsewhere, and nothing decodes it."""
    assert not list(_elbo(_config(encoder_loss="rl_and_kl", task="embedding")).parameters())
    assert _elbo(_config(encoder_loss="both", task="embedding")).task is None
    for name, options in CASES.items():
        model, td, (latents, noise) = _elbo(_config(**options)), _trajectories(FULL), _latents(FULL)
        target = torch.randn(N, TARGET_DIM, dtype=torch.float64)
        indices = model.draw(td[keys.LENGTH], T, torch.Generator())
        model(latents, td, noise=noise, indices=indices, target=target).total.backward()
        assert all(parameter.grad is not None for parameter in model.parameters()), name
