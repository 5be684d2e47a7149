"""Every public name has an example that runs, and importing the library imports nothing heavy."""

import doctest
import importlib
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

import weathermixer

ROOT = pathlib.Path(__file__).parent.parent
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
HEAVY = ("jax", "flax", "optax", "orbax", "tensorstore", "xarray", "zarr", "matplotlib", "pandas", "numpy", "dinosaur")


def examples(name: str) -> doctest.DocTest:
    """A public name's examples, with what they assume to be imported."""
    value = getattr(weathermixer, name)
    names = {"jax": jax, "jnp": jnp, "np": np, "weathermixer": weathermixer}
    return doctest.DocTestParser().get_doctest(value.__doc__ or "", names, name, None, None)


WITHOUT = {  # yet
    "Run", "Standardization", "account_step", "evaluate", "format_scores",
    "make_climatology", "make_forecast", "make_loss", "make_standardization", "make_train_step", "make_training",
    "open_run", "rollout", "write_forecast",
}  # fmt: skip


def test_every_public_name_has_an_example():
    assert {name for name in weathermixer.__all__ if not examples(name).examples} == WITHOUT


def test_all_examples_run(tmp_path, monkeypatch, capsys):
    """In the order of the list in `weathermixer`, in an empty folder: each finds what those before it made."""
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    for name in weathermixer._PUBLIC:
        runner.run(examples(name))
    assert not runner.summarize().failed, capsys.readouterr().out


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
