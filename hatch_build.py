"""Compiles the C kernels when the package is built or installed, also in editable form."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MODULES = Path("hyperrl/modules")
SOURCES = [str(MODULES / name) for name in ("scan_kernels.c", "sequence/gru_kernel.c")]
LIBRARY = MODULES / "libkernels.so"
# Loops with a choice in them are vectorised only where no operation is expected to trap.
FLAGS = ["-O3", "-std=c11", "-ffp-contract=fast", "-fno-trapping-math", "-fPIC", "-shared"]


class BuildHook(BuildHookInterface):
    """Adds the compiled library to the wheel, which thereby belongs to one platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles into the source tree, where an editable installation looks for it."""
        if self.target_name != "wheel":
            return
        failure = self._compile("-fopenmp")
        if failure is not None:
            failure = self._compile()
            if failure is not None:
                self.app.abort(f"The C kernels could not be compiled; is there a C compiler ($CC, else cc)? {failure}")
            self.app.display_warning("The compiler knows no -fopenmp: the kernels run without threads.")
        build_data["artifacts"].append(f"/{LIBRARY.as_posix()}")
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def _compile(self, *flags: str) -> str | None:
        """Why it failed in one line, if it did. A library that is in use is replaced, not overwritten."""
        root = Path(self.root)
        fresh = root / LIBRARY.with_suffix(f".{os.getpid()}.so")
        compiler = shlex.split(os.environ.get("CC") or "cc")
        try:
            command = [*compiler, *FLAGS, *flags, *SOURCES, "-o", str(fresh)]
            subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
            fresh.replace(root / LIBRARY)
        except subprocess.CalledProcessError as error:
            lines = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
            # Where the error was included from, and warnings, may come first.
            return f"{compiler[0]}: {next((line for line in lines if 'error' in line), lines[0])}"
        except OSError as error:
            return str(error)
        finally:
            fresh.unlink(missing_ok=True)
        return None
