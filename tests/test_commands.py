"""The command line of typed functions: flags and lists as people type them."""

from __future__ import annotations

import importlib
import inspect

import pytest

from hyperrl.commands import COMMANDS, with_values


def command(
    sources: list[str], seeds: list[int] | None = None, limits: tuple[float, float] = (0, 1), level: float = 1.0,
    dry_run: bool = False,
) -> None:  # fmt: skip
    """What a command looks like."""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["a", "b"], ['["a", "b"]']),
        ([], ["[]"]),
        (['["a"]'], ['["a"]']),
        (["a", "--dry-run"], ['["a"]', "--dry_run=true"]),
        (["--dry-run", "a"], ['["a"]', "--dry_run=true"]),
        (["--dry_run=false", "a"], ['["a"]', "--dry_run=false"]),
        (["--dry_run", "false", "a"], ['["a"]', "--dry_run=false"]),
        (["--level", "2", "a", "b"], ['["a", "b"]', "--level=2"]),
        (["a", "--seeds", "1", "2"], ['["a"]', "--seeds=[1,2]"]),
        (["a", "--seeds=[1,2]"], ['["a"]', "--seeds=[1,2]"]),
        (["a", "--limits", "-1", "1"], ['["a"]', "--limits=[-1,1]"]),
        (["a", "--env_options.size", "20", "b"], ['["a", "b"]', "--env_options.size=20"]),
        (["a", "--level"], ['["a"]', "--level"]),
        (["a", "--help"], ["a", "--help"]),
    ],
)
def test_arguments_become_what_the_parser_reads(given: list[str], expected: list[str]) -> None:
    assert with_values(command, given) == expected


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_documented_function(name: str) -> None:
    module, _, attribute = COMMANDS[name].rpartition(".")
    function = getattr(importlib.import_module(module), attribute)
    documented = inspect.getdoc(function) or ""
    for parameter in inspect.signature(function).parameters:
        assert f"    {parameter}: " in documented
