"""What an aggregator promises."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperrl.contracts.base import Contract
from hyperrl.modules.aggregators import Aggregator

_BATCH, _STEPS = 5, 23


class AggregatorContract(Contract):
    """What holds for every aggregator, on random features.

    Args:
        aggregator: in double precision.
        seed: seed of the random numbers.
        tolerance: largest difference, relative to 1 + the size of the number.
    """

    def __init__(self, aggregator: Aggregator, seed: int, tolerance: float) -> None:
        super().__init__(type(aggregator).__name__, seed, tolerance)
        self.aggregator = aggregator
        self.x = self.random(_BATCH, _STEPS, aggregator.width)
        self.reset = torch.rand(_BATCH, _STEPS, generator=self.generator) < 0.15
        self.reset[0] = False
        self.none = torch.zeros_like(self.reset)
        # A state such as acting leaves, and the initial state moved where it may be learned.
        self.state = self.steps(self.random(_BATCH, 3, aggregator.width), self.none[:, :3], self.start())[1].detach()
        moved = 0.3 * self.random(aggregator.state_dim)
        self.initial = torch.where(aggregator.learnable, self.start()[0] + moved, self.start()[0])

    def start(self) -> Tensor:
        """The state at a task's start ``[B, S]``."""
        return self.aggregator.initial_state(_BATCH)

    def steps(self, x: Tensor, reset: Tensor, state: Tensor, initial: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs ``[B, T, O]`` and last state, one step at a time."""
        start = self.start() if initial is None else initial.expand_as(state)
        outputs = []
        for t in range(x.shape[1]):
            state = torch.where(reset[:, t, None], start, state)
            output, state = self.aggregator.step(x[:, t], state)
            outputs.append(output)
        return torch.stack(outputs, 1), state

    def shapes(self) -> None:
        """Everything has the shape it says."""
        aggregator, start = self.aggregator, self.start()
        expected = {
            "initial_state(B)": (start, (_BATCH, aggregator.state_dim)),
            "learnable": (aggregator.learnable, (aggregator.state_dim,)),
            "output of step": (aggregator.step(self.x[:, 0], start)[0], (_BATCH, aggregator.output_dim)),
            "state of step": (aggregator.step(self.x[:, 0], start)[1], (_BATCH, aggregator.state_dim)),
            "output of forward": (aggregator(self.x, self.reset, start), (_BATCH, _STEPS, aggregator.output_dim)),
        }
        for what, (tensor, shape) in expected.items():
            self.require(tensor.shape == shape, f"{what} has shape {tuple(tensor.shape)}, expected {shape}")
        promised = aggregator.output_dim if aggregator.gives_latent else aggregator.width // aggregator.input_factor
        self.require(
            aggregator.output_dim == promised,
            f"{aggregator.width} features give {aggregator.output_dim}; input_factor promises {promised}",
        )

    def precision(self) -> None:
        """Nothing leaves the precision of the module."""
        for what, tensor in {
            "initial_state": self.start(),
            "output of step": self.aggregator.step(self.x[:, 0], self.state)[0],
            "state of step": self.aggregator.step(self.x[:, 0], self.state)[1],
            "output of forward": self.aggregator(self.x, self.reset, self.state),
        }.items():
            self.require(tensor.dtype == torch.float64, f"{what} is {tensor.dtype} in a module of float64")
            self.require(bool(tensor.isfinite().all()), f"{what} is not finite")

    def stepping_equals_sequence(self) -> None:
        """One call equals stepping, in outputs and gradients."""
        leaves = {"x": self.x, "state": self.state, "initial": self.initial}
        leaves = {name: value.clone().requires_grad_() for name, value in leaves.items()}
        leaves |= dict(self.aggregator.named_parameters())
        x, state, initial = leaves["x"], leaves["state"], leaves["initial"]
        weight = self.random(_BATCH, _STEPS, self.aggregator.output_dim)
        for where, reset in {"with resets": self.reset, "without resets": self.none}.items():
            stepwise = self.steps(x, reset, state, initial)[0]
            sequence = self.aggregator(x, reset, state, initial)
            self.equal(f"forward differs from stepping {where}", sequence, stepwise)
            ours, expected = (
                torch.autograd.grad(output, list(leaves.values()), weight, allow_unused=True, materialize_grads=True)
                for output in (sequence, stepwise)
            )
            for name, value, target in zip(leaves, ours, expected, strict=True):
                free = self.aggregator.learnable if name in ("state", "initial") else torch.tensor(True)
                self.equal(f"gradient by {name} differs from stepping {where}", value * free, target * free)
        constants = self.aggregator(self.x, self.reset, self.state)
        given = self.aggregator(self.x, self.reset, self.state, self.start()[:1])
        self.equal("forward without `initial` differs from initial_state", constants, given)

    def reset_equals_fresh_start(self) -> None:
        """Nothing remains of what was before a reset."""
        reset = self.none.clone()
        reset[:, 7] = True
        late = self.aggregator(self.x, reset, self.state)[:, 7:]
        self.equal(
            "a reset differs from a fresh start", late, self.aggregator(self.x[:, 7:], self.none[:, 7:], self.start())
        )

    def rows_are_independent(self) -> None:
        """Rows neither see each other nor their order."""
        whole = self.aggregator(self.x, self.reset, self.state)
        order = torch.randperm(_BATCH, generator=self.generator)
        shuffled = self.aggregator(self.x[order], self.reset[order], self.state[order])
        self.equal("the order of the batch matters", shuffled, whole[order])
        alone = [self.aggregator(self.x[[b]], self.reset[[b]], self.state[[b]]) for b in range(_BATCH)]
        self.equal("a row depends on the others", torch.cat(alone), whole)

    def order_is_irrelevant(self) -> None:
        """The order of the steps changes nothing."""
        order = torch.randperm(_STEPS, generator=self.generator)
        last, other = (self.aggregator(x, self.none, self.state)[:, -1] for x in (self.x, self.x[:, order]))
        self.equal("the order of steps matters; set permutation_invariant = False", other, last)
