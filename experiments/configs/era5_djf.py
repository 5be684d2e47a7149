"""Mean sea level pressure and 850 hPa vorticity from one winter of ERA5, 6-hourly at 2.5 degrees: little data again.

    WEATHERMIXER_REAL_DATA=FOLDER python -m experiments.train --config=era5_djf --workdir=DIR

FOLDER holds era5_djf_2025_dev_2p5deg.zarr. Scored on its last ten days, which training does not see: docs/skill.md.
"""

from ml_collections import ConfigDict

from experiments.configs import gfs_wind


def get_config() -> ConfigDict:
    """As gfs_wind; 245 training samples, and 73 rows from pole to pole, which only patches of one row divide."""
    config = gfs_wind.get_config()
    config.data.source = "$WEATHERMIXER_REAL_DATA/era5_djf_2025_dev_2p5deg.zarr"
    config.data.train = ("2025-12-01", "2026-01-31")
    config.data.validation = ("2026-02-01", "2026-02-10")
    config.data.test = ("2026-02-01", "2026-02-10")

    config.model.patch = (1, 12)
    config.model.token_hidden = 876
    config.model.token_mixing = "dense"
    config.optimizer.weight_decay = 0.1
    config.training.steps = 2000
    return config
