"""WeatherMixer: an all-MLP global weather model, trained on a (data, domain, tensor) mesh of any shape.

The names below are the library's public face, imported on first use. Rooms from the ground up: fields and parallel;
archive and model; planning, sources, training and forecasting; prepare, simulation and verification; runs.

Each has an example in its docstring. They assume `import jax, jax.numpy as jnp, numpy as np, weathermixer` and eight
devices, and follow each other in the order below: a file that one reads, an earlier one made; runs/quickstart is what a
short experiments.train on dry.archive leaves. tests/test_examples.py runs them all.
"""

import importlib

__version__ = "0.1.0"

# public name -> the module that has it
_PUBLIC = {
    # the atmosphere's words
    "Grid": "fields.grid",
    "Channel": "fields.variables",
    "ChannelSet": "fields.variables",
    "area_weights": "fields.grid",
    # devices
    "make_mesh": "parallel.mesh",
    "sharding": "parallel.mesh",
    "mix": "parallel.jigsaw",
    # data
    "simulate": "simulation.simulate",
    "open_source": "sources.sources",
    "prepare_archive": "prepare.prepare",
    "Archive": "archive.archive",
    "open_archive": "archive.archive",
    "verify_archive": "archive.verify",
    "Batch": "archive.loader",
    "Batches": "archive.loader",
    "read_frames": "archive.loader",
    "Reference": "archive.reference",
    "make_reference": "archive.reference",
    "make_standardization": "archive.standardization",
    # the model
    "ModelShape": "model.shape",
    "WeatherMixer": "model.weathermixer",
    # runs
    "Settings": "runs.settings",
    "make_settings": "runs.settings",
    "make_training": "runs.build",
    "Run": "runs.run",
    "open_run": "runs.run",
    "export_run": "runs.export",
    "import_weights": "runs.export",
    "Frames": "archive.frames",
    "Standardization": "archive.standardization",
    # training
    "make_loss": "training.steps",
    "make_train_step": "training.steps",
    "make_optimizer": "training.optimizer",
    "make_learning_rate": "training.optimizer",
    "TrainState": "training.state",
    "make_state": "training.state",
    "Checkpoints": "training.checkpoint",
    # forecasts and scores
    "rollout": "forecasting.rollout",
    "make_forecast": "forecasting.forecasts",
    "model_forecaster": "forecasting.rollout",
    "evaluate": "verification.evaluation",
    "compare": "verification.significance",
    "make_climatology": "verification.climatologies",
    "draw_forecast": "verification.figures",
    "draw_scorecard": "verification.charts",
    "draw_scores": "verification.charts",
    "format_scores": "verification.scores",
    # what a step costs
    "find_hardware": "planning.hardware",
    "StepOptions": "planning.meshes",
    "plan_meshes": "planning.plan",
    "account_step": "planning.account",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'weathermixer' has no attribute {name!r}; its public names are {__all__}")
    value = getattr(importlib.import_module(f"weathermixer.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
