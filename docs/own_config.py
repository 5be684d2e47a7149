"""A config of your own: any file with get_config(), here the quickstart on your archive, deeper and turned about.

python -m experiments.train --config=docs/own_config.py --data=era5.archive --workdir=runs/own
"""

from ml_collections import ConfigDict

from experiments.configs import quickstart


def get_config() -> ConfigDict:
    """The quickstart but for these fields; weathermixer/runs/settings.py has them all."""
    config = quickstart.get_config()
    config.data.train = ("1979-01-01", "2016-12-31")
    config.data.validation = ("2017-01-01", "2017-12-31")
    config.data.test = ("2018-01-01", "2018-12-31")
    config.data.augmentation = "rotate_longitude"
    config.data.forcings = ("insolation", "time_of_year")
    config.loss.weights["2m_temperature"] = 2.0
    config.model.blocks = 4
    config.training.steps = 0  # and so many epochs instead
    config.training.epochs = 20.0
    return config
