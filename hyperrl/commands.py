"""Commands besides training and evaluation: typed functions, whose signatures are the command line."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from jsonargparse import ArgumentParser, auto_cli

from hyperrl.errors import ConfigError

# Imported when called, for what they need takes seconds to import.
COMMANDS = {
    "sweep": "hyperrl.experiments.sweep.command.sweep",
    "compare": "hyperrl.experiments.comparison.command.compare",
    "analyze": "hyperrl.experiments.analysis.command.analyze",
    "video": "hyperrl.experiments.behaviour.command.video",
    "export": "hyperrl.experiments.export.export",
}


def call_command(name: str, args: list[str], parser_class: type[ArgumentParser]) -> Any:
    """Call one of `COMMANDS`.

    Args:
        name: The command.
        args: What follows it on the command line.
        parser_class: Whose way to end on wrong input is used.
    """
    module, _, attribute = COMMANDS[name].rpartition(".")
    function = getattr(importlib.import_module(module), attribute)
    description = (inspect.getdoc(function) or "").partition("\n\n")[0]
    args = with_values(function, args)
    try:
        return auto_cli(function, args=args, parser_class=parser_class, prog=f"hyperrl {name}", description=description)
    except OSError as error:  # a folder that is a file, a full disk, no permission
        raise ConfigError(f"{error.filename}: {error.strerror}") from error


def with_values(function: Callable[..., Any], args: list[str]) -> list[str]:
    """Return arguments as jsonargparse takes them: ``--flag`` as ``--flag=true`` and lists as one argument.

    Args:
        function: Its parameters decide what is a flag or a list; the annotations are text.
        args: Command-line arguments; ``--dry-run`` may stand for ``--dry_run``.

    Example:
        >>> def compare(sources: list[str], seeds: list[int] | None = None, paper: bool = False) -> None: ...
        >>> with_values(compare, ["a", "--seeds", "1", "2", "--paper", "b"])
        ['["a", "b"]', '--seeds=[1,2]', '--paper=true']
    """
    if "-h" in args or "--help" in args:
        return args
    parameters = inspect.signature(function).parameters.values()
    kinds = {parameter.name: str(parameter.annotation) for parameter in parameters}
    required = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
    positional: list[str] = []
    options: list[str] = []
    for name, values in _options(args):
        kind = kinds.get(name, "")
        if not name:
            positional += values
        elif kind.startswith(("list", "tuple")) and values:
            options.append(f"--{name}={_as_list(kind, values)}")
        elif kind.startswith("bool") and values[:1] not in (["true"], ["false"]):
            options.append(f"--{name}=true")
            positional += values
        else:
            options += [f"--{name}={value}" for value in values[:1]] or [f"--{name}"]
            positional += values[1:]
    if required and kinds[required[0]].startswith("list"):
        positional = [_as_list(kinds[required[0]], positional)]
    return [*positional, *options]


def _as_list(kind: str, values: list[str]) -> str:
    """Values as one that the parser reads as a list; as they are, where they are one already."""
    if values and values[0].startswith("["):
        return " ".join(values)
    return json.dumps(values) if "str" in kind else f"[{','.join(values)}]"


def _options(args: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Each option's name and values, after those that stand before the first one, whose name is empty."""
    name, values = "", list[str]()
    for arg in args:
        option = re.match(r"--([a-zA-Z][\w.+-]*)(?:=(.*))?$", arg, re.DOTALL)
        if option:
            yield name, values
            name, values = option[1].replace("-", "_"), [] if option[2] is None else [option[2]]
        else:
            values.append(arg)
    yield name, values
