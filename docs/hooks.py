"""Hooks of the documentation site (mkdocs.yml): notebooks become pages, and docstrings Markdown."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

FOLDER = "notebooks"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for each notebook, with the outputs that it was committed with."""
    for notebook in sorted((Path(config.config_file_path).parent / FOLDER).glob("*.ipynb")):
        text, resources = MarkdownExporter().from_filename(str(notebook))
        # A page is a folder of the site: its pictures get a folder beside it.
        for name, content in resources["outputs"].items():
            text = text.replace(f"({name})", f"({notebook.stem}_files/{name})")
            files.append(File.generated(config, f"{FOLDER}/{notebook.stem}_files/{name}", content=content))
        files.append(File.generated(config, f"{FOLDER}/{notebook.stem}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Lets links between notebooks/ and docs/, which lie side by side on GitHub, lead to pages of the site."""
    if page.file.src_uri.startswith(f"{FOLDER}/"):
        return re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.md)", markdown.replace("](../docs/", "](../"))
    return re.sub(rf"\]\(\.\./{FOLDER}/(\w+)\.ipynb\)", rf"]({FOLDER}/\1.md)", markdown)


def on_page_content(html: str, **_: object) -> str:
    """Drops the roles of Sphinx, such as ``:meth:``, that some docstrings have."""
    return re.sub(r":(?:attr|class|func|meth|mod):(?=<code>)", "", html)
