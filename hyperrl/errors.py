"""The exceptions that HyperRL raises for its users; the command line shows them as one line, without a traceback."""

from __future__ import annotations


class ConfigError(ValueError):
    """A setting is wrong; the message names the key, the value, what was expected and the nearest valid name."""


class DivergedError(RuntimeError):
    """A loss or parameter is not finite; the message names the quantity. The run ends with status ``diverged``."""


class TrackingError(RuntimeError):
    """The MLflow tracking server or store cannot be used at the start of a run or command; later it may be."""
