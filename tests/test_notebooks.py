"""The notebooks run from top to bottom, use the library and define nothing, open in Colab, and show small outputs."""

import ast
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_BYTES = 400_000  # of a notebook with its figures


def read(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_of(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def count_pictures(notebook) -> list[int]:
    return [sum("image/png" in output.get("data", {}) for output in cell.get("outputs", ())) for cell in notebook.cells]


def test_they_are_there():
    assert [path.stem for path in NOTEBOOKS] == ["1_data", "2_model", "3_forecast", "4_cluster", "5_fine_tune"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_define_nothing_and_show_small_outputs(path):
    notebook = read(path)
    for source in code_of(notebook):
        plain = re.sub(r"^(\s*)%.*$", r"\1pass", source, flags=re.MULTILINE)  # magics are not Python
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        assert not [node.name for node in ast.walk(ast.parse(plain)) if isinstance(node, kinds)]
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error"]
    assert path.stat().st_size < MOST_BYTES
    for output in outputs:  # nothing of the machine that made them
        assert not re.search(r"(^|[\s'\"])/\w+/", output.get("text", output.get("data", {}).get("text/plain", "")))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_open_in_colab(path):
    notebook = read(path)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "colab" in notebook.metadata
    assert "colab-badge.svg" in notebook.cells[0].source
    install = code_of(notebook)[0]
    assert "%pip install" in install
    assert "# @param" in install


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all of them run: what is simulated and prepared for one, the next one uses."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.slow  # up to two minutes each on two cores
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_run(path, folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    for name in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS"):
        monkeypatch.delenv(name, raising=False)
    notebook, shown = read(path), read(path)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}})
    client.execute()
    assert count_pictures(notebook) == count_pictures(shown)  # those that the repository shows are made
