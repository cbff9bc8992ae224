"""Runs notebooks and keeps their outputs: ``python notebooks/execute.py [NAME ...]``, without names all of them.

They run in a folder of their own, so that nothing is left here. Pictures are reduced to 256 colours, which is a quarter
of their size; what libraries write to stderr (about missing widgets, with paths and times) is dropped.
"""

from __future__ import annotations

import base64
import io
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from PIL import Image

NOTEBOOKS = Path(__file__).resolve().parent
PNG = "image/png"


def run_in(folder: Path, notebook: nbformat.NotebookNode) -> None:
    """Runs a notebook beside a copy of the results, as it stands in the repository.

    Args:
        folder: where both are put; the notebook writes its files to ``folder/notebooks``.
        notebook: gets the outputs.
    """
    shutil.copytree(NOTEBOOKS.parent / "results", folder / "results")
    place = folder / NOTEBOOKS.name
    place.mkdir()
    NotebookClient(notebook, timeout=None, record_timing=False, resources={"metadata": {"path": str(place)}}).execute()


def execute(path: Path) -> None:
    """Runs a notebook and writes it with its outputs.

    Args:
        path: the notebook.
    """
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:
        run_in(Path(folder), notebook)
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for data in (output.data for output in cell.outputs if PNG in output.get("data", {})):
            data[PNG] = reduce_colours(data[PNG])
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, path)


def reduce_colours(picture: str) -> str:
    """A PNG file in base64 with at most 256 colours.

    Args:
        picture: the same with as many as it likes.
    """
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    file = io.BytesIO()
    image.quantize(method=Image.Quantize.FASTOCTREE).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")):
        execute(NOTEBOOKS / f"{name}.ipynb")
