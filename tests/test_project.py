"""Properties of the project as a whole: layering, importability, versions."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import hyperrl

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hyperrl"
FILES = sorted(PACKAGE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# What each layer may import from hyperrl. Files that are not listed (cli, callbacks, tracking, ...) see everything.
FOUNDATION = {"distributed", "env_info", "errors", "keys", "metrics", "seeding"}
ALLOWED = {
    **dict.fromkeys(sorted(FOUNDATION), FOUNDATION),
    "workers": {"workers"},
    "envs": FOUNDATION | {"workers", "envs"},
    "data": FOUNDATION | {"envs", "data"},
    "modules": FOUNDATION | {"modules"},
}

METRIC = re.compile(r"(train|val|test|loss|ppo|grad_norm|time)/[a-z_0-9]*[a-z0-9]")


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_layers(file: Path) -> Iterator[tuple[int, str]]:
    """Line and layer (the name after `hyperrl.`) of every import of hyperrl in a file, also inside functions."""
    package = file.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(file.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{source}.{alias.name}" for alias in node.names]
        for name in names:
            root, _, rest = name.partition(".")
            layer = rest.partition(".")[0]
            if root == "hyperrl" and not layer.startswith("__"):
                yield node.lineno, layer or "the whole package"


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "constraints.txt holds exact, public versions"
    pairs = [line.split("==") for line in lines]
    assert len({canonicalize_name(name) for name, _ in pairs}) == len(pairs), "a package is pinned twice"
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.mark.parametrize("layer", ALLOWED)
def test_layering(layer: str) -> None:
    files = [file for file in FILES if file.relative_to(PACKAGE).with_suffix("").parts[0] == layer]
    assert files
    for file in files:
        for line, imported in imported_layers(file):
            assert imported in ALLOWED[layer], f"{file.relative_to(ROOT)}:{line}: {layer} must not import {imported}"


@pytest.mark.parametrize(
    ("source", "layers"),
    [
        ("import hyperrl.data.rollouts", ["data"]),
        ("from hyperrl import keys, data", ["keys", "data"]),
        ("from hyperrl.envs.base import MetaEnv", ["envs"]),
        ("from .. import data", ["data"]),
        ("from ..data.rollouts import x", ["data"]),
        ("from . import gru", ["modules"]),
        ("def f():\n    import hyperrl", ["the whole package"]),
        ("from hyperrl import __version__\nimport torch.nn", []),
    ],
)
def test_layering_sees_every_kind_of_import(
    source: str, layers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "hyperrl" / "modules" / "probe.py"
    file.parent.mkdir(parents=True)
    file.write_text(source)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert [layer for _, layer in imported_layers(file)] == layers


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_module_imports(file: Path) -> None:
    importlib.import_module(module_name(file))


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_library_never_prints(file: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    lines = [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]
    assert not lines, f"print in lines {lines}"


def test_metrics_are_documented() -> None:
    nodes = [node for file in FILES for node in ast.walk(ast.parse(file.read_text()))]
    constants = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    documented = (ROOT / "docs" / "metrics.md").read_text()
    missing = sorted(name for name in constants if METRIC.fullmatch(name) and f"`{name}`" not in documented)
    assert not missing, f"docs/metrics.md does not define {missing}"


def test_pins_satisfy_the_declared_bounds() -> None:
    versions = pins()
    extras = PROJECT["optional-dependencies"].values()
    for text in [*PROJECT["dependencies"], *(text for extra in extras for text in extra)]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:  # an extra that includes others
            continue
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not pinned"
        assert requirement.specifier.contains(version), f"{requirement} excludes the pinned {version}"


def test_torch_is_pinned_in_one_place() -> None:
    for name in ("Makefile", "Dockerfile"):
        assert "grep '^torch==' constraints.txt" in (ROOT / name).read_text(), (
            f"{name} must take torch's pin from there"
        )
    for name in ("Makefile", "Dockerfile", "README.md", "CONTRIBUTING.md"):
        for version in re.findall(r"torch==(\d[\w.]*)", (ROOT / name).read_text()):
            assert version == pins()["torch"], f"{name} names torch {version}"


def test_version_is_the_same_everywhere() -> None:
    assert hyperrl.__version__ == PROJECT["version"]
    assert f"version: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()
    assert PROJECT["version"] in (ROOT / "CHANGELOG.md").read_text()
