"""The notebook, from its first cell to its last."""

import nbformat
import pytest
from helpers import ROOT
from nbclient import NotebookClient


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_tour(tmp_path, monkeypatch):
    """In a copy, with a few steps; the packages are there already, and TensorBoard would be left running."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two would wait for each other where another test has one of two cores
    for name in ("train.py", "sample.py", "conf", "chargpt"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "docs").mkdir()
    notebook = nbformat.read(ROOT / "docs" / "tour.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    notebook.cells = [cell for cell in notebook.cells if "tensorboard" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        cell.source = cell.source.replace("STEPS = 900", "STEPS = 30").replace("%pip install", "# %pip install")
    resources = {"metadata": {"path": str(tmp_path / "docs")}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    shown = {kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})}
    assert {"image/png", "text/html"} <= shown
    printed = "".join(output.text for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output)
    assert "ROMEO:" in printed
    assert "30 steps in" in printed
    assert "60 in all" in printed
