"""The documentation site: it builds without a warning, its links lead somewhere, nothing is left out."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from hyperrl.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[1]


class Page(HTMLParser):
    """The links of a page, and the anchors that others can lead to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `mkdocs build --strict` does it: a warning is an error."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # where mkdocstrings looks for the package
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder))
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
        config.plugins.on_shutdown()
    return folder


def test_links_lead_somewhere(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}  # its links are absolute
    assert len(pages) > 30
    broken, checked = [], 0
    for path, page in pages.items():
        for link in page.links:
            if urlparse(link).scheme:
                continue
            name, anchor = urldefrag(link)
            target = (path.parent / unquote(name)).resolve() if name else path
            target = target / "index.html" if target.is_dir() else target
            known = not anchor or target not in pages or unquote(anchor) in pages[target].anchors
            checked += 1
            if not target.is_file() or not known:
                broken.append(f"{path.relative_to(site)}: {link}")
    assert checked > 1000
    assert not broken, broken


def test_notebooks_are_pages_with_their_pictures(site: Path) -> None:
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        page = Page(site / "notebooks" / notebook.stem / "index.html")
        pictures = [link for link in page.links if link.endswith(".png") and f"{notebook.stem}_files/" in link]
        assert pictures, notebook.stem
    index = Page(site / "notebooks" / "index.html")
    assert {"quickstart/", "own_aggregator/", "compare_and_read_weights/"} <= set(index.links)


def test_reference_has_signatures_and_help(site: Path) -> None:
    page = (site / "reference" / "commands" / "index.html").read_text(encoding="utf-8")
    assert 'id="hyperrl.experiments.comparison.command.compare"' in page
    assert "How the best setting is chosen" in page
    assert ":meth:" not in (site / "reference" / "models" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_reference(command: str) -> None:
    text = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    function = COMMANDS[command].rpartition(".")[2]
    assert re.search(rf"^## {command}\n\n::: hyperrl[\w.]*\.{function}$", text, re.M)


def test_every_picture_is_in_the_gallery() -> None:
    text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    pictures = sorted(path.name for path in (ROOT / "docs" / "figures").glob("*.png"))
    assert pictures
    missing = [name for name in pictures if f"(figures/{name})" not in text]
    assert not missing, f"docs/gallery.md lacks {missing}"
