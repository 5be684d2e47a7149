"""The notebooks run from top to bottom, use the library and define nothing, and open in Colab."""

import ast
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def read(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_of(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_they_are_there():
    assert [path.stem for path in NOTEBOOKS] == ["jigsaw", "quickstart"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_define_nothing_and_keep_no_output(path):
    notebook = read(path)
    for source in code_of(notebook):
        plain = re.sub(r"^(\s*)%.*$", r"\1pass", source, flags=re.MULTILINE)  # magics are not Python
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        assert not [node.name for node in ast.walk(ast.parse(plain)) if isinstance(node, kinds)]
    assert not any(cell.outputs or cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_open_in_colab(path):
    notebook = read(path)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "colab" in notebook.metadata
    install = code_of(notebook)[0]
    assert "%pip install" in install
    assert "# @param" in install


@pytest.mark.slow  # compilation on eight simulated devices: minutes on two cores
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_run(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    for name in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS"):
        monkeypatch.delenv(name, raising=False)
    notebook = read(path)
    client = NotebookClient(notebook, timeout=1500, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()
    if path.stem == "quickstart":
        assert {"scores.json", "forecast.zarr", "forecast.png"} <= set(os.listdir(tmp_path / "quickstart"))
