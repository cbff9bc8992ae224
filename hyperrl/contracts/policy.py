"""The contract of policies."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from hyperrl import keys
from hyperrl.contracts.base import Contract
from hyperrl.modules.film import FilmLinear
from hyperrl.modules.hypernet import GeneratedLinear, Input
from hyperrl.modules.networks import Network
from hyperrl.modules.normalization import RunningNorm
from hyperrl.modules.policy import Policy


class PolicyContract(Contract):
    """See `hyperrl.testing.check_policy`.

    Args:
        make: constructs the policy.
        dims: width of each input by its name in `Policy.inputs`; 0 where there is none.
        num_tasks: number of tasks with an id.
        seed: seed of the random numbers.
        tolerance: largest difference, relative to 1 + the size of the number.
    """

    def __init__(
        self, make: Callable[[], Policy], dims: dict[str, int], num_tasks: int, seed: int, tolerance: float
    ) -> None:
        self.make, self.policy = make, make()
        super().__init__(type(self.policy).__name__, seed, tolerance)
        self.dims, self.num_tasks = dims, num_tasks
        self.rows = 12 + num_tasks  # at least one for every task
        with torch.no_grad():
            for parameter in self.policy.parameters():
                # Of a size that keeps sums over wide layers moderate, and with them rounding errors.
                std = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.3
                parameter.copy_(std * self.random(*parameter.shape))
        self.given = self.inputs()

    def inputs(self) -> dict[str, Tensor]:
        """Random inputs, those of no width left out."""
        given = {name: self.random(self.rows, dim).float() for name, dim in self.dims.items() if dim}
        if self.policy.config.uses_task_id:
            given["task"] = torch.arange(self.rows) % self.num_tasks
        if self.policy.config.task_replaces != "none":
            given["task_shown"] = torch.arange(self.rows) % 3 == 0
        return given

    def evaluate(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        """Distribution parameters and values ``[N, .]``, by what to call them in a message."""
        inputs = self.policy.inputs(**given)
        return {**self.policy.distribution(inputs), "value": self.policy.value(inputs)}

    def shapes(self) -> None:
        """Distribution parameters and values, in single precision also under autocast."""
        actions, rows = self.policy.actions, self.rows
        width = actions.num_actions or actions.dim
        names = [keys.LOGITS] if actions.discrete else [keys.LOC, keys.SCALE]
        shapes = {**dict.fromkeys(names, (rows, width)), "value": (rows, 1)}
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                found = self.evaluate(self.given)
            self.require(found.keys() == shapes.keys(), f"gives {sorted(found)}, expected {sorted(shapes)}")
            for what, shape in shapes.items():
                self.sound(f"{what} under autocast" if enabled else what, found[what], shape, torch.float32)
            if keys.SCALE in found:
                self.require(bool((found[keys.SCALE] > 0).all()), "scale is not positive")

    @torch.no_grad()
    def evaluation_repeats_itself(self) -> None:
        """Nothing is random, and training mode is evaluation mode: PPO's ratio compares the two."""
        expected = self.evaluate(self.given)
        for training in (True, False):
            self.policy.train(training)
            for what, ours in self.evaluate(self.given).items():
                self.require(torch.equal(ours, expected[what]), f"{what} differs from evaluation to evaluation")
        self.policy.train()

    @torch.no_grad()
    def rows_are_independent(self) -> None:
        """Neither the other rows, nor their number and order, change anything."""
        order = torch.arange(self.rows).roll(1)
        whole, shuffled = self.evaluate(self.given), self.evaluate(_rows(self.given, order))
        alone = [self.evaluate(_rows(self.given, [row])) for row in range(self.rows)]
        for what, expected in whole.items():
            self.equal(f"{what}: the order of the batch matters", shuffled[what], expected[order])
            self.equal(f"{what}: a row depends on the others", torch.cat([one[what] for one in alone]), expected)

    def gradients_reach_all_parameters(self) -> None:
        """And the latent, through which the encoder learns."""
        latent = {"latent": self.given["latent"].clone().requires_grad_()} if self.policy.config.use_latent else {}
        found = self.evaluate(self.given | latent)
        total = torch.stack([(value * self.random(*value.shape)).sum() for value in found.values()]).sum()
        self.reached(total, latent | dict(self.policy.named_parameters()))

    @torch.no_grad()
    def materialised_weights_are_those_in_use(self) -> None:
        """With them, the plain formulas give what the networks give."""
        inputs = self.policy.inputs(**self.given)
        weights = self.policy.materialise(inputs)
        networks = {"critic": self.policy.critic, "actor": self.policy.actor}
        expected = {
            f"{name}/{layer}/{kind}"
            for name, network in networks.items()
            for layer, module in _named_layers(network)
            for kind in getattr(module, "generates", ())
        }
        self.require(weights.keys() == expected, f"materialise gives {sorted(weights)}, expected {sorted(expected)}")
        for name, network in networks.items():
            own = {key.removeprefix(f"{name}/"): value for key, value in weights.items()}
            self.equal(f"{name}: materialised weights give another output", _run(network, own, inputs), network(inputs))

    def statistics_move_in_one_place(self) -> None:
        """In `update_statistics`, which changes nothing else."""
        before = _copy(self.policy)
        self.evaluate(self.inputs())
        for name, value in self.policy.state_dict().items():
            self.require(torch.equal(value, before[name]), f"evaluation changes {name}")
        moving = {name: x.unflatten(0, (1, -1)) for name, x in self.inputs().items() if name != "task_shown"}
        self.policy.update_statistics(**moving)
        for name, parameter in self.policy.named_parameters():
            self.require(torch.equal(parameter, before[name]), f"update_statistics changes the parameter {name}")
        for name, norm in self.policy.named_modules():
            if isinstance(norm, RunningNorm):
                moved = not torch.equal(norm.mean, before[f"{name}.mean"])
                self.require(moved, f"update_statistics leaves {name} as it is")

    @torch.no_grad()
    def state_dict_holds_everything(self) -> None:
        """Another policy that loads it is the same."""
        expected = self.evaluate(self.given)
        self.policy, saved = self.make(), _copy(self.policy)
        self.policy.load_state_dict(saved)
        for what, ours in self.evaluate(self.given).items():
            self.require(torch.equal(ours, expected[what]), f"{what} of a copy made from the state dict differs")


def _rows(given: dict[str, Tensor], index: Tensor | list[int]) -> dict[str, Tensor]:
    return {name: x[index] for name, x in given.items()}


def _copy(module: nn.Module) -> dict[str, Tensor]:
    """The state dict as it is now."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def _named_layers(network: Network) -> list[tuple[str, nn.Module]]:
    """The layers by the names that they have in `Policy.materialise`."""
    *hidden, head = network.layers
    return [*((str(index), layer) for index, layer in enumerate(hidden)), ("head", head)]


def _run(network: Network, weights: dict[str, Tensor], inputs: Input) -> Tensor:
    """The output ``[N, O]`` of a network by the plain formulas, generated layers with their materialised weights."""
    x = inputs.x
    for name, layer in _named_layers(network):
        if isinstance(layer, GeneratedLinear):
            x = torch.einsum("noi,ni->no", weights[f"{name}/weight"], x) + weights[f"{name}/bias"]
        elif isinstance(layer, FilmLinear):
            x = functional.linear(x, layer.weight) * weights[f"{name}/scale"] + weights[f"{name}/bias"]
        else:
            x = layer(inputs.next(x))
        x = x if name == "head" else network.activation(x)
    return x
