"""The built wheel is complete: it works from any folder, without the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hatch_build import BuildHook  # noqa: E402


def run(*arguments: str, cwd: Path, **variables: str) -> str:
    """Run this interpreter with `arguments` and return its standard output."""
    process = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT), cwd=folder)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    options = ("--quiet", "--no-deps", "--no-index", "--target", str(folder))
    run("-m", "pip", "install", *options, str(wheel), cwd=folder)
    return folder


def test_wheel_holds_package_and_configurations(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hyperrl").rglob("*.py")}
    configs = {f"hyperrl/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert "hyperrl/configs/experiment/quickstart.yaml" in configs
    assert package | configs | {"hyperrl/py.typed", "hyperrl/modules/libkernels.so"} <= names
    assert not wheel.name.endswith("-any.whl"), "compiled for one platform"
    # dist-info apart, nothing else is installed
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"hyperrl"}


def test_shipped_name_resolves_in_the_installed_wheel(installed: Path, tmp_path: Path) -> None:
    location = run("-c", "import hyperrl; print(hyperrl.__file__)", cwd=tmp_path, PYTHONPATH=str(installed))
    assert Path(location.strip()).is_relative_to(installed)
    command = ("-m", "hyperrl.cli", "fit", "--config", "experiment/quickstart", "--print_config")
    printed = run(*command, cwd=tmp_path, PYTHONPATH=str(installed))
    assert {"trainer:", "model:", "data:"} <= set(printed.splitlines())
    assert not list(tmp_path.iterdir()), "--print_config must create nothing"


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        (["In file included from a.c:1:", "a.h:2:1: error: unknown type", "2 errors"], "a.h:2:1: error: unknown type"),
        (["not found", "sorry"], "not found"),
        ([], "exit status 3"),
    ],
)
def test_a_failed_compilation_is_explained_in_one_line(
    lines: list[str], shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "compiler.py"
    compiler.write_text(f"import sys\nprint(*{lines}, sep='\\n', file=sys.stderr)\nsys.exit(3)\n")
    monkeypatch.setenv("CC", f"{sys.executable} {compiler}")
    hook = BuildHook(str(tmp_path), {}, None, None, str(tmp_path), "wheel")
    assert hook._compile() == f"{sys.executable}: {shown}"
