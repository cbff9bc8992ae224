"""HyperRL: meta-reinforcement learning with hypernetworks on TorchRL and Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyperrl.experiments.agents import load_agent as load_agent

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what is public here when it is used first: it needs all of torch."""
    if name == "load_agent":
        from hyperrl.experiments.agents import load_agent

        return load_agent
    raise AttributeError(f"module 'hyperrl' has no attribute {name!r}")
