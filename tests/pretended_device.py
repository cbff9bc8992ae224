"""A device that is not the CPU, for machines that have none: its tensors hold CPU tensors and say they are elsewhere.

Everything is computed for real, so that results can be compared with the CPU's. What a GPU would punish is noticed:
tensors of two devices in one operation raise, as they do there, and whatever makes the host wait for the device is
noted with the function that asked for it.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

import hyperrl

# PyTorch knows this device in every build, and computes nothing on it: an operation that slipped through would raise.
DEVICE = torch.device("meta")
_PACKAGE = Path(hyperrl.__file__).parent
_aten = torch.ops.aten
# Operations on CUDA that copy sizes to the host, over and above those that PyTorch marks as depending on data.
_WAITING = {_aten.bincount.default, _aten.equal.default, _aten.multinomial.default}
_INDEXING = {
    _aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default,
    _aten._unsafe_index.Tensor, _aten._unsafe_index_put.default,
}  # fmt: skip
_COPYING = {_aten._to_copy.default, _aten.copy_.default}
# The only way to the device without waiting: `non_blocking` alone may wait, unless the memory is pinned.
_QUEUES = "modules.host_mask.queued"


class Elsewhere(Tensor):
    """A tensor on the device. `held` is its value, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return Tensor._make_wrapper_subclass(cls, held.size(), device=DEVICE, **layout)  # type: ignore[attr-defined]

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.held})"

    def tolist(self) -> Any:
        """PyTorch refuses this for subclasses."""
        return self.cpu().tolist()

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        """As on a GPU: made on the CPU, then copied."""
        return torch.tensor(data, **{"dtype": self.dtype, "device": DEVICE, **options})

    def numpy(self, *, force: bool = False) -> Any:
        """PyTorch refuses this for subclasses."""
        if not force:
            raise TypeError(f"a tensor on {DEVICE} is no array; expected one on the CPU")
        return self.detach().cpu().numpy()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of `PretendedDevice`")


class PretendedDevice(TorchDispatchMode):
    """Lets tensors exist on `DEVICE`, and notes where the host waits for it.

    Args:
        allowed: functions within which it may, as ``module.function``, without the package's name.

    Attributes:
        waits: the others that did, with the operation that waited, in the order of their calls.
        used: those of `allowed` that did.
        operations: how many ran on the device, views left out.
    """

    def __init__(self, allowed: Collection[str] = ()) -> None:
        super().__init__()
        self.allowed = frozenset(allowed)
        self.waits: list[str] = []
        self.used: set[str] = set()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = list(_tensors((args, tuple(kwargs.values()))))
        there = any(isinstance(tensor, Elsewhere) for tensor in tensors)
        result_there = there if kwargs.get("device") is None else torch.device(kwargs["device"]) == DEVICE
        _check_generator(func, kwargs.get("generator"), DEVICE if result_there else torch.device("cpu"))
        if there or result_there:
            self.operations += not func.is_view
            self._check(func, args, kwargs, tensors, result_there)
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        own_args, own_kwargs = _mapped(_held, args), {name: _mapped(_held, value) for name, value in kwargs.items()}
        result = func(*own_args, **own_kwargs)
        if result_there:
            result = _mapped(Elsewhere, result)
        return return_and_correct_aliasing(func, args, kwargs, result) if there and result_there else result

    def _check(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], result_there: bool) -> None:
        """Notes an operation that waits, and refuses one that mixes devices."""
        hosts = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and tensor.ndim]
        if func in _COPYING:
            to_host = not result_there if func is _aten._to_copy.default else not isinstance(args[0], Elsewhere)
            crosses = len({isinstance(tensor, Elsewhere) for tensor in tensors} | {not to_host}) > 1
            if crosses and (to_host or _QUEUES not in _own_functions(sys._getframe(2))):
                self._note(f"{func} to the {'host' if to_host else 'device'}")
        elif func in _INDEXING:
            index = [tensor for tensor in args[1] if tensor is not None]
            if hosts or any(tensor.dtype in (torch.bool, torch.uint8) for tensor in index):
                self._note(f"{func} by {'an index on the host' if hosts else 'a mask'}")
        elif {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags) or func in _WAITING:
            self._note(str(func))
        elif hosts and result_there and len(hosts) < len(tensors):
            raise RuntimeError(f"{func}: expected all tensors on the same device, found {DEVICE} and cpu")

    def _note(self, operation: str) -> None:
        functions = list(_own_functions(sys._getframe(2)))
        allowed = [function for function in functions if function in self.allowed]
        if allowed:
            self.used.update(allowed)
        else:
            self.waits.append(f"{functions[0] if functions else 'the test'}: {operation}")


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors in nested lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Nested lists and tuples with all tensors replaced."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(function, part) for part in value)
    return value


def _held(tensor: Tensor) -> Tensor:
    return tensor.held if isinstance(tensor, Elsewhere) else tensor


def _own_functions(frame: FrameType | None) -> Iterator[str]:
    """The functions of the package that are being called, the innermost first."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_PACKAGE):
            module = ".".join(path.relative_to(_PACKAGE).with_suffix("").parts)
            yield f"{module}.{frame.f_code.co_qualname}"
        frame = frame.f_back


class _HostGenerator(torch.Generator):
    """A generator on the CPU that says where it is: the device has none of its own."""

    # By their address: operations get another object for the same generator.
    there: ClassVar[weakref.WeakValueDictionary[int, _HostGenerator]] = weakref.WeakValueDictionary()

    def __new__(cls, device: Any = "cpu") -> _HostGenerator:
        generator = super().__new__(cls, "cpu")
        if torch.device(device) == DEVICE:
            cls.there[generator._cdata] = generator
        return generator


def _check_generator(func: Any, generator: torch.Generator | None, device: torch.device) -> None:
    if generator is not None and (generator._cdata in _HostGenerator.there) is not (device == DEVICE):
        raise RuntimeError(f"{func}: expected a generator on {device}, found one of another device")


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> type[PretendedDevice]:
    """`PretendedDevice`, after what PyTorch has no form of on this device has been replaced."""
    autocast = torch.autocast

    def cast(device_type: str, **options: Any) -> Any:
        return contextlib.nullcontext() if device_type == DEVICE.type else autocast(device_type, **options)

    def copying(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Values given as numbers are made on the CPU and then copied, as on a GPU."""

        def made(data: Any, *, device: Any = None, **options: Any) -> Tensor:
            if isinstance(data, Tensor) or device is None or torch.device(device) != DEVICE:
                return make(data, device=device, **options)
            return make(data, **options).to(DEVICE)

        return made

    monkeypatch.setattr(torch, "Generator", _HostGenerator)
    monkeypatch.setattr(torch, "autocast", cast)
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda parameter: None)
    for name in ("tensor", "as_tensor"):
        monkeypatch.setattr(torch, name, copying(getattr(torch, name)))
    return PretendedDevice


Module = TypeVar("Module", bound=nn.Module)


def moved(module: Module) -> Module:
    """The same module with its parameters and buffers on the device."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(Elsewhere(parameter.detach().clone()), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = Elsewhere(buffer.clone())
    return module
