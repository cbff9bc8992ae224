"""The contract of encoders."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor

from hyperrl import keys
from hyperrl.contracts.base import Contract
from hyperrl.modules.encoder import TrajectoryEncoder, Transition

BATCH, STEPS = 5, 23
EARLIER = 3  # steps before those that are checked


class EncoderContract(Contract):
    """See `hyperrl.testing.check_encoder`.

    Args:
        make: constructs the encoder.
        sizes: width of observations, width of actions, and number of actions if they are discrete.
        reset: where tasks start ``[B, T]``; none for random places.
        seed: seed of the random numbers.
        tolerance: largest difference, relative to 1 + the size of the number.
    """

    def __init__(
        self,
        make: Callable[[], TrajectoryEncoder],
        sizes: tuple[int, int, int | None],
        reset: Tensor | None,
        seed: int,
        tolerance: float,
    ) -> None:
        self.encoder = make().double()
        super().__init__(type(self.encoder).__name__, seed, tolerance)
        self.sizes = sizes
        self._stir()
        self.reset = self.resets(BATCH, STEPS, 0.15) if reset is None else reset
        self.none = torch.zeros_like(self.reset)
        self.batch, self.length = self.reset.shape
        self.x = self.transitions(self.batch, self.length)
        self.state = self.carried(self.batch)

    @torch.no_grad()
    def _stir(self) -> None:
        """Moves biases and learned starts, which often are zero, so that mistakes show."""
        for parameter in self.encoder.parameters():
            if parameter.dim() < 2:
                parameter.add_(0.3 * self.random(*parameter.shape))

    def resets(self, batch: int, steps: int, chance: float) -> Tensor:
        """Random places where tasks start, ``[batch, steps]``."""
        return torch.rand(batch, steps, generator=self.generator) < chance

    def transitions(self, batch: int, steps: int) -> Transition:
        """Random transitions ``[batch, steps, ...]``."""
        obs_dim, action_dim, num_actions = self.sizes
        action = self.random(batch, steps, action_dim)
        if num_actions is not None:
            action = torch.randint(num_actions, (batch, steps, 1), generator=self.generator).double()
        before, reward, after = (self.random(batch, steps, width) for width in (obs_dim, 1, obs_dim))
        return Transition(before, action, reward, after)

    def carried(self, batch: int) -> Tensor:
        """A memory ``[batch, S]`` such as acting leaves, of tasks of different ages."""
        x, reset = self.transitions(batch, EARLIER), self.resets(batch, EARLIER, 0.5)
        return self.stepped(x, reset, self.encoder.initial_state(batch))[1].detach()

    def stepped(self, x: Transition, reset: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Latents ``[B, T, 2L]`` and the last memory, one step at a time."""
        latents = []
        for t in range(reset.shape[1]):
            state = torch.where(reset[:, t, None], self.encoder.initial_state(len(state)), state)
            latent, state = self.encoder.step(_part(x, slice(None), t), state)
            latents.append(latent)
        return torch.stack(latents, 1), state

    def shapes(self) -> None:
        """All outputs have the promised shapes and the module's type."""
        encoder, batch = self.encoder, self.batch
        memory, latent = (batch, encoder.state_dim), (batch, encoder.latent_dim)
        self.sound("initial_state(B)", encoder.initial_state(batch), memory, torch.float64)
        self.sound("prior(B)", encoder.prior(batch), latent, torch.float64)
        before = self.state.clone()
        found, after = encoder.step(_part(self.x, slice(None), 0), self.state)
        self.require(torch.equal(before, self.state), "step changes the memory that it is given")
        self.sound("latent of step", found, latent, torch.float64)
        self.sound("memory of step", after, memory, torch.float64)
        found = encoder(self.x, self.reset, self.state)
        self.sound("latent of forward", found, (batch, self.length, encoder.latent_dim), torch.float64)

    def stepping_equals_sequence(self) -> None:
        """Latents, and gradients by transitions and parameters, with resets inside."""
        x = Transition(*(part.clone().requires_grad_() for part in self.x))
        leaves = x._asdict() | {name: p for name, p in self.encoder.named_parameters() if p.requires_grad}
        sequence, stepwise = self.encoder(x, self.reset, self.state), self.stepped(x, self.reset, self.state)[0]
        self.equal("forward differs from stepping", sequence, stepwise)
        weight = self.random(*sequence.shape)
        ours, expected = (
            torch.autograd.grad(latent, list(leaves.values()), weight, allow_unused=True, materialize_grads=True)
            for latent in (sequence, stepwise)
        )
        for name, value, target in zip(leaves, ours, expected, strict=True):
            self.equal(f"gradient by {name} differs from stepping", value, target)

    @torch.no_grad()
    def carried_memory_continues(self) -> None:
        """The second half, from the memory that stepping through the first half leaves, is that of the whole."""
        cut, rows = self.length // 2, slice(None)
        first, rest = slice(0, cut), slice(cut, None)
        state = self.state
        if cut:
            state = self.stepped(_part(self.x, rows, first), self.reset[:, first], state)[1]
        ours = self.encoder(_part(self.x, rows, rest), self.reset[:, rest], state)
        whole = self.encoder(self.x, self.reset, self.state)[:, rest]
        self.equal("a sequence that is cut in two differs from the whole", ours, whole)

    @torch.no_grad()
    def reset_equals_fresh_start(self) -> None:
        """What comes after a reset of all rows knows nothing of what was before."""
        reset, rest = self.none.clone(), slice(self.length // 3, None)
        reset[:, rest.start] = True
        late = self.encoder(self.x, reset, self.state)[:, rest]
        fresh = self.encoder(
            _part(self.x, slice(None), rest), self.none[:, rest], self.encoder.initial_state(self.batch)
        )
        self.equal("a reset differs from a fresh start", late, fresh)

    @torch.no_grad()
    def rows_are_independent(self) -> None:
        """Neither the other rows, nor their number and order, change anything."""
        encoder, whole = self.encoder, self.encoder(self.x, self.reset, self.state)
        order = torch.arange(self.batch).roll(1)
        shuffled = encoder(_part(self.x, order), self.reset[order], self.state[order])
        self.equal("the order of the batch matters", shuffled, whole[order])
        alone = [encoder(_part(self.x, [b]), self.reset[[b]], self.state[[b]]) for b in range(self.batch)]
        self.equal("a row depends on the others", torch.cat(alone), whole)
        for what, of in {"prior": encoder.prior, "initial_state": encoder.initial_state}.items():
            self.equal(f"{what} depends on the batch", of(self.batch + 1), of(1).expand(self.batch + 1, -1))

    @torch.no_grad()
    def acting_equals_learning(self) -> None:
        """`encode` gives the latents of a rollout that `act` gave step by step, priors included."""
        roots, is_init = _steps_of(self.transitions(self.batch, self.length + 1)), self.reset.unsqueeze(-1)
        rollout = roots[:, :-1].clone()
        rollout[keys.NEXT], rollout[keys.IS_INIT] = roots[:, 1:].clone(), is_init
        self.encoder.attach_memory(rollout, self.state)
        self.equal("start_memory differs from what was attached", self.encoder.start_memory(rollout), self.state)
        before, after = self.encoder.encode(rollout)
        memory, acted = self.state, []
        for step in rollout.exclude(keys.START_MEMORY).unbind(1):
            latent, memory = self.encoder.act(step, memory)
            acted.append(latent)
        self.equal("encode differs from acting", before, torch.stack(acted, 1))
        latent, _ = self.encoder.step(Transition.last(rollout[keys.NEXT][:, -1]), memory)
        self.equal("encode differs from acting after the last step", after[:, -1], latent)

    @torch.no_grad()
    def trajectories_equal_sequences(self) -> None:
        """`encode_trajectories` gives the prior, then the latents of a task from its start, truncated or not."""
        encoder, trajectories = self.encoder, _steps_of(self.x)
        trajectories.batch_size = [self.batch]
        latents = encoder(self.x, self.none, encoder.initial_state(self.batch))
        expected = torch.cat([encoder.prior(self.batch).unsqueeze(1), latents], 1)
        self.equal("encode_trajectories differs from forward", encoder.encode_trajectories(trajectories), expected)
        truncated = encoder.encode_trajectories(trajectories, 4)
        self.equal("truncated gradients change the latents of trajectories", truncated, expected)

    def gradients_reach_all_parameters(self) -> None:
        """From a few tasks and the prior; of fixed size, since very short sequences do not use everything."""
        x, reset = self.transitions(BATCH, STEPS), self.resets(BATCH, STEPS, 0.15)
        latent, prior = self.encoder(x, reset, self.carried(BATCH)), self.encoder.prior(1)
        total = (latent * self.random(*latent.shape)).sum() + (prior * self.random(*prior.shape)).sum()
        self.reached(total, dict(self.encoder.named_parameters()))

    @torch.no_grad()
    def autocast_changes_nothing(self) -> None:
        """Memory has to last, so everything runs in full precision; leaves the encoder in single precision."""
        encoder, x, state = self.encoder.float(), Transition(*(part.float() for part in self.x)), self.state.float()
        results = []
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                latent, memory = encoder.step(_part(x, slice(None), 0), state)
                results.append((latent, memory, encoder(x, self.reset, state), encoder.prior(1)))
        names = ("latent of step", "memory of step", "latent of forward", "prior")
        for what, ours, expected in zip(names, *reversed(results), strict=True):
            self.require(torch.equal(ours, expected), f"{what} is less exact under autocast")


def _part(x: Transition, *index: slice | int | list[int] | Tensor) -> Transition:
    """Rows and steps of transitions ``[B, T, ...]``."""
    return Transition(*(part[index] for part in x))


def _steps_of(x: Transition) -> TensorDict:
    """What the roots of the steps hold that transitions ``[B, T, ...]`` led to."""
    names = (keys.PREV_OBSERVATION, keys.PREV_ACTION, keys.PREV_REWARD, keys.OBSERVATION)
    return TensorDict(dict(zip(names, x, strict=True)), x.reward.shape[:2])
