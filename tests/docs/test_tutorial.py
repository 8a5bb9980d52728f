"""The tutorial notebook runs from top to bottom, and is committed without outputs."""

import re

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

# In place of the notebook's own: as few as its cells can do with.
PARAMETERS = {"TRAIN_SCENES": 8, "VAL_SCENES": 5, "EPOCHS": 1}


@pytest.fixture
def notebook():
    return nbformat.read(ROOT / "docs/tutorial.ipynb", as_version=4)


def test_it_is_committed_without_outputs(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_it_runs_and_shows_its_figures(notebook, tmp_path, monkeypatch):
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert [line.split(" = ")[0] for line in parameters.source.splitlines()] == list(PARAMETERS)
    parameters.source = "\n".join(f"{name} = {value}" for name, value in PARAMETERS.items())
    resources = {"metadata": {"path": ROOT / "docs"}}  # the working directory
    NotebookClient(notebook, kernel_name="python3", timeout=300, resources=resources).execute()
    for cell in notebook.cells:
        figures = [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
        assert len(figures) == len(re.findall(r"^(?:plt\.)?show\(", cell.source, re.MULTILINE)), cell.source
