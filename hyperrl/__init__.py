"""HyperRL: meta-reinforcement learning with hypernetworks on TorchRL and Lightning."""

__version__ = "0.1.0"
