"""The defaults of every field: the published model and settings, but for the data. Other configs are this one plus
their differences; fields, meanings and what they may be are in weathermixer/runs/settings.py.

Any field can be changed on the command line: --config.training.steps=500 --config.mesh.domain=2
"""

from ml_collections import ConfigDict

from weathermixer.runs.settings import Settings


def get_config() -> ConfigDict:
    """The fields of weathermixer.runs.settings.Settings with their defaults."""
    return ConfigDict(Settings().values())
