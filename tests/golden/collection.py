"""Which golden files there are: compared one by one, or owed by an issue."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import Description

HERE = Path(__file__).parent
SHIPPED = HERE.parents[2] / "shared" / "golden"
OPERATORS = ("when", "unless", "contains")


@dataclass(frozen=True)
class Rule:
    """A rule of `pending.yaml`; see there."""

    kind: str
    issue: int
    reason: str
    when: Mapping[str, list[Any]] = field(default_factory=dict)
    unless: Mapping[str, list[Any]] = field(default_factory=dict)
    contains: Mapping[str, Any] = field(default_factory=dict)

    def holds(self, file: Description) -> bool:
        """Whether a file is pending by this rule."""
        return (
            file.kind == self.kind
            and all(file.value(key) in values for key, values in self.when.items())
            and not (self.unless and all(file.value(key) in values for key, values in self.unless.items()))
            and all(value in (file.value(key) or ()) for key, value in self.contains.items())
        )


def pending_rules() -> list[Rule]:
    """All rules of `pending.yaml`."""
    return [Rule(**entry) for entry in yaml.safe_load((HERE / "pending.yaml").read_text()) or ()]


@dataclass
class Collection:
    """The golden files below a directory.

    Attributes:
        directory: where they are.
        due: files that are compared, or fail.
        pending: files that are owed, each with the first rule that holds.
    """

    directory: Path
    due: list[Path] = field(default_factory=list)
    pending: dict[Path, Rule] = field(default_factory=dict)
    files: list[Description] = field(default_factory=list)

    @classmethod
    def read(cls, directory: Path) -> Collection:
        """Sorts all `.npz` files below `directory`; one that cannot be read is due, so that its test says why."""
        found, rules = cls(directory), pending_rules()
        for path in sorted(directory.rglob("*.npz")):
            try:
                file = Description.read(path)
            except (OSError, ValueError, zipfile.BadZipFile):
                found.due.append(path)
                continue
            found.files.append(file)
            rule = next((rule for rule in rules if rule.holds(file)), None)
            if rule is None:
                found.due.append(path)
            else:
                found.pending[path] = rule
        return found

    def summary(self) -> str:
        """One line with the numbers of files."""
        counts = Counter((rule.issue, rule.kind) for rule in self.pending.values())
        owed = ", ".join(f"{kind} {number} (issue {issue})" for (issue, kind), number in sorted(counts.items()))
        total = len(self.due) + len(self.pending)
        return f"{total} golden files: {len(self.due)} to compare, {len(self.pending)} pending: {owed or 'none'}"


def golden_directory(config: pytest.Config) -> Path:
    """The directory of golden files that the command line names, or the one beside the checkout."""
    return Path(config.getoption("--golden-dir") or SHIPPED)


KEY = pytest.StashKey[Collection]()


def collection(config: pytest.Config) -> Collection:
    """The golden files of this run, read once."""
    if KEY not in config.stash:
        config.stash[KEY] = Collection.read(golden_directory(config))
    return config.stash[KEY]
