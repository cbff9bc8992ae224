"""Golden files: loading with an account of what was read, tolerances, and name maps into our modules."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hyperrl.modules.film import FilmLinear
from hyperrl.modules.hypernet import GeneratedLinear
from hyperrl.modules.normalization import RunningNorm
from hyperrl.modules.per_task import PerTaskLinear
from hyperrl.modules.policy import Policy
from hyperrl.modules.policy_config import SOURCES

# |ours - expected| <= tolerance * (1 + |expected|), as the READMEs of the golden data suggest.
FORMULA = 1e-5
LOSS = 1e-4
GRADIENT = 1e-4
UPDATE = 5e-4


@dataclass(frozen=True)
class Description:
    """What a golden file is about; `kind` is taken from its content, never from its name.

    Attributes:
        path: the file.
        kind: the kind (models, training) or the family (environments) in its metadata; `analysis` and
            `learning_curves` have none and are known by their arrays; empty if nothing fits.
        meta: its metadata.
    """

    path: Path
    kind: str
    meta: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Description:
        """Reads the metadata of a file."""
        with np.load(path, allow_pickle=False) as archive:
            meta = json.loads(str(archive["meta"])) if "meta" in archive.files else {}
            kind = meta.get("kind") or meta.get("family") or _kind_by_arrays(set(archive.files))
        return cls(path, kind, meta)

    def value(self, dotted: str) -> Any:
        """The metadata under a dotted key such as `args.use_film`; none where it is absent."""
        found: Any = self.meta
        for key in dotted.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        return found


def _kind_by_arrays(names: set[str]) -> str:
    """The kind of a file without metadata."""
    if "settings" in names:
        return "analysis"
    return "learning_curves" if {"steps", "values", "runs"} <= names else ""


class Golden:
    """One golden file. It knows which of its arrays were read, so that none is left out silently.

    Args:
        description: the file's description.
    """

    def __init__(self, description: Description) -> None:
        self.description, self.kind, self.meta = description, description.kind, description.meta
        with np.load(description.path, allow_pickle=False) as archive:
            self.arrays = {name: archive[name] for name in archive.files if name != "meta"}
        self._read: set[str] = set()

    @cached_property
    def args(self) -> Mapping[str, Any]:
        """The reference's model arguments."""
        return self.meta["args"]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> Tensor:
        """An array as a tensor of its own type."""
        self._read.add(name)
        return torch.from_numpy(self.arrays[name].copy())

    def find(self, name: str) -> Tensor | None:
        """An array that only some files have."""
        return self[name] if name in self.arrays else None

    def under(self, prefix: str) -> list[str]:
        """The rest of the names that start with `prefix`."""
        return [name.removeprefix(prefix) for name in self.arrays if name.startswith(prefix)]

    def check(self, name: str, ours: Tensor, tolerance: float = FORMULA) -> None:
        """Asserts that `ours` equals the array called `name`, shape included."""
        assert_close(name, ours, self[name], tolerance)

    def check_gradient(self, name: str, ours: Tensor) -> None:
        """Asserts that the gradient of an input equals the array called `name`."""
        assert ours.grad is not None, f"{name}: no gradient"
        self.check(name, ours.grad, GRADIENT)

    @property
    def unread(self) -> list[str]:
        """Names of the arrays that were not read yet."""
        return sorted(set(self.arrays) - self._read)

    def check_all_read(self, unread: Mapping[str, str]) -> None:
        """Asserts that every array was read, or is listed.

        Args:
            unread: patterns of arrays that are left out on purpose, each with the reason.
        """
        unlisted = [name for name in self.unread if not any(fnmatchcase(name, pattern) for pattern in unread)]
        assert not unlisted, f"arrays that are neither compared nor listed: {unlisted}"


def assert_close(name: str, ours: Tensor, expected: Tensor, tolerance: float) -> None:
    """Asserts |ours - expected| <= tolerance * (1 + |expected|), element by element."""
    torch.testing.assert_close(
        ours.detach().double(),
        expected.double(),
        rtol=tolerance,
        atol=tolerance,
        msg=lambda message: f"{name}: {message}",
    )


@dataclass(frozen=True)
class Slot:
    """Where a parameter of the reference lives in ours.

    Attributes:
        parameter: our parameter, of which it may be a part.
        view: shows the parameter, or a tensor laid out like it, in the reference's order of elements.
    """

    parameter: Tensor
    view: Callable[[Tensor], Tensor] = lambda tensor: tensor

    @property
    def value(self) -> Tensor:
        """The current value."""
        return self.view(self.parameter.data)

    @property
    def gradient(self) -> Tensor:
        """The gradient; zeros where there is none."""
        grad = self.parameter.grad
        return self.view(torch.zeros_like(self.parameter) if grad is None else grad.contiguous())

    def load(self, value: Tensor) -> None:
        """Takes a value over from the reference."""
        target = self.value
        target.copy_(value.reshape(target.shape))


Slots = dict[str, Slot]


def affine_slots(name: str, layer: nn.Linear) -> Slots:
    """Weight and bias of an ordinary layer, or of one without bias."""
    slots = {f"{name}.weight": Slot(layer.weight)}
    return slots if layer.bias is None else slots | {f"{name}.bias": Slot(layer.bias)}


def per_task_slots(name: str, layer: PerTaskLinear) -> Slots:
    """Weights and biases of the layers of all tasks; `name` has a place for the task."""
    return {
        f"{name.format(task)}.{kind}": Slot(parameter, lambda tensor, task=task: tensor[task])
        for kind, parameter in (("weight", layer.weight), ("bias", layer.bias))
        for task in range(len(parameter))
    }


def generated_slots(weight_head: str, bias_head: str, layer: GeneratedLinear) -> Slots:
    """Both heads of a generated layer; the weight head is `[out * in, K]` there, its bias apart from its columns."""

    def components(tensor: Tensor) -> Tensor:
        ours = layer.components()
        return tensor.as_strided(ours.shape, ours.stride())

    first = int(layer.head_bias)
    slots = affine_slots(bias_head, layer.bias_head)
    slots[f"{weight_head}.weight"] = Slot(layer.weight, lambda tensor: components(tensor)[first:].permute(1, 2, 0))
    if layer.head_bias:
        slots[f"{weight_head}.bias"] = Slot(layer.weight, lambda tensor: components(tensor)[0])
    return slots


def layer_slots(net: str, index: int, last: bool, head: str, layer: nn.Module) -> Slots:
    """A layer of actor or critic; `head` is the name of an ordinary head."""
    plain = head if last else f"{net}_layers.{index}"
    if isinstance(layer, PerTaskLinear):
        if not last:
            return per_task_slots(f"net_2_{net}_layers.{{}}.{index}", layer)
        of_task = {"critic": "critic_head_layer.{}", "actor": f"dist_layer.{{}}.{head.removeprefix('dist.')}"}[net]
        return per_task_slots(f"net_2_{of_task}", layer)
    generating = f"hyper_final_to_{net}_linear_{{}}" if last else f"hyper_final_to_{net}_{{}}.{index}"
    if isinstance(layer, GeneratedLinear):
        return generated_slots(generating.format("weight"), generating.format("bias"), layer)
    if isinstance(layer, FilmLinear):
        heads = (("weight", layer.scale_head), ("bias", layer.bias_head))
        slots = {f"{plain}.weight": Slot(layer.weight)}
        for kind, own in heads:
            slots |= affine_slots(generating.format(kind), own)
        return slots
    return affine_slots(plain, layer)


def policy_slots(policy: Policy) -> Slots:
    """The reference's names of a policy's parameters."""
    slots: Slots = {}
    for name in SOURCES:
        embedding = getattr(policy, name)
        if embedding is None or embedding.linear is None:
            continue
        per_task = isinstance(embedding.linear, PerTaskLinear)
        slots |= (
            per_task_slots("net_2_st_layer.{}.fc", embedding.linear)
            if per_task
            else affine_slots(f"{name}_encoder.fc", embedding.linear)
        )
    if policy.hypernet is not None:
        for index, layer in enumerate(policy.hypernet.layers):
            slots |= affine_slots(f"hyper_layers.{index}", layer)
    heads = {"actor": "dist.linear" if policy.actions.discrete else "dist.fc_mean", "critic": "critic_linear"}
    for net, head in heads.items():
        layers = getattr(policy, net).layers
        for index, layer in enumerate(layers):
            slots |= layer_slots(net, index, index == len(layers) - 1, head, layer)
    if policy.actions.discrete:
        return slots
    if policy.log_std.dim() == 1:
        return slots | {"dist.logstd": Slot(policy.log_std)}
    return slots | {
        f"net_2_dist_layer.{task}.logstd": Slot(policy.log_std, lambda tensor, task=task: tensor[task])
        for task in range(len(policy.log_std))
    }


def load_parameters(golden: Golden, prefix: str, slots: Slots, module: nn.Module, dropped: Iterable[str] = ()) -> None:
    """Copies `prefix<name>` into a module; both sides must be covered completely, but for names that are dropped."""
    names = set(golden.under(prefix)) - set(dropped)
    assert names == set(slots), f"parameters differ: {names ^ set(slots)}"
    assert sum(slot.value.numel() for slot in slots.values()) == sum(p.numel() for p in module.parameters())
    for name in names:
        slots[name].load(golden[prefix + name])


def check_gradients(golden: Golden, prefix: str, slots: Slots) -> None:
    """Compares `prefix<name>` with the gradients; a parameter without an entry must have none."""
    for name, slot in slots.items():
        ours = slot.gradient
        if prefix + name in golden:
            expected = golden[prefix + name]
            assert_close(prefix + name, ours.reshape(expected.shape), expected, GRADIENT)
        else:
            assert not ours.any(), f"{prefix}{name}: a gradient where the reference has none"


def load_norm(norm: RunningNorm, mean: Tensor, var: Tensor, count: Tensor | None = None) -> None:
    """Sets running statistics."""
    norm.mean.copy_(mean)
    norm.var.copy_(var)
    if count is not None:
        norm.count.copy_(count)


def norms(policy: Policy) -> Iterator[tuple[str, RunningNorm]]:
    """The policy's running statistics by the reference's name of the input."""
    for name in SOURCES:
        embedding = getattr(policy, name)
        if embedding is not None and embedding.norm is not None:
            yield name, embedding.norm


def widths(values: Iterable[Any]) -> list[int]:
    """Layer widths; the reference keeps some as strings."""
    return [int(value) for value in values]
