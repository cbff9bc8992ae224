"""One test per golden file, named by its path; the files themselves are not part of the repository."""

from __future__ import annotations

import pytest
from collection import KEY, collection, golden_directory


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrises `path` by the files that are due."""
    if "path" not in metafunc.fixturenames:
        return
    directory = golden_directory(metafunc.config)
    if not directory.is_dir():
        mark = pytest.mark.skip(reason=f"no golden data: {directory} does not exist (--golden-dir DIR)")
        metafunc.parametrize("path", [pytest.param(None, marks=mark, id="absent")])
        return
    found = collection(metafunc.config)
    if not found.due and not found.pending:
        raise pytest.UsageError(f"--golden-dir {directory} holds no golden file")
    metafunc.parametrize("path", found.due, ids=[path.relative_to(directory).as_posix() for path in found.due])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many files were compared and how many are owed."""
    if KEY in terminalreporter.config.stash:
        terminalreporter.write_line(terminalreporter.config.stash[KEY].summary())
