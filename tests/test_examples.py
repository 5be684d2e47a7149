"""Every public name has an example that runs, as does the front page's; importing the library imports nothing heavy."""

import doctest
import importlib
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import weathermixer
from experiments import train
from weathermixer.runs.settings import make_settings

ROOT = pathlib.Path(__file__).parent.parent
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
HEAVY = ("jax", "flax", "optax", "orbax", "tensorstore", "xarray", "zarr", "matplotlib", "pandas", "numpy", "dinosaur")


def examples(name: str) -> doctest.DocTest:
    """A public name's examples, with what they assume to be imported."""
    value = getattr(weathermixer, name)
    names = {"jax": jax, "jnp": jnp, "np": np, "weathermixer": weathermixer}
    return doctest.DocTestParser().get_doctest(value.__doc__ or "", names, name, None, None)


def train_quickstart() -> None:
    """What the examples find in runs/quickstart: a model of a few thousand parameters, trained for two steps."""
    values = {
        "data": {"train": ("2000-01-01", "2000-01-15"), "validation": ("2000-01-16", "2000-01-16")},
        "model": {"patch": (2, 4), "embed": 16, "token_hidden": 16, "embed_hidden": 16, "blocks": 1},
        "training": {"batch_size": 4, "steps": 2, "checkpoint_every": 2},
        "evaluation": {"every": 0, "batch_size": 4},
        "mesh": {"data": 1},
    }
    values["data"]["test"] = ("2000-01-17", "2000-01-20")
    train.train(make_settings(values), pathlib.Path("runs/quickstart").absolute(), "dry.archive")


def test_every_public_name_has_an_example():
    assert not [name for name in weathermixer.__all__ if not examples(name).examples]


def test_all_examples_run(tmp_path, monkeypatch, capsys):
    """In the order of the list in `weathermixer`, in an empty folder: each finds what those before it made.

    The front page's comes last; it finds three of the times in a file, too.
    """
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    for name in weathermixer._PUBLIC:
        if name == "Run":
            train_quickstart()
        runner.run(examples(name))
    assert not runner.summarize().failed, capsys.readouterr().out
    analyses = xr.open_zarr("dry.zarr", chunks=None).isel(time=slice(0, 12, 4))
    xr.Dataset(analyses.data_vars).to_netcdf("analyses.nc")  # without the store's attributes, some of them no netCDF's
    (shown,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    exec(shown, {})
    assert xr.open_dataset("forecast.nc").sizes["time"] == 3
    assert "RMSE" in capsys.readouterr().out


def test_public_names_are_in_their_modules_and_nothing_else_is_public():
    for name, module in weathermixer._PUBLIC.items():
        value = getattr(weathermixer, name)
        assert value is getattr(importlib.import_module(f"weathermixer.{module}"), name)
        assert value.__module__ == f"weathermixer.{module}", f"{name} is defined in {value.__module__}"
    assert set(weathermixer.__all__) == set(weathermixer._PUBLIC) <= set(dir(weathermixer))


def test_importing_the_library_imports_nothing_heavy():
    """In a fresh process; names are imported when they are first used."""
    code = f"import sys, weathermixer; print(sorted(set({HEAVY}) & set(sys.modules)), weathermixer.__version__)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ}, capture_output=True, text=True, check=True
    )
    assert run.stdout.split("\n")[0] == f"[] {weathermixer.__version__}"
