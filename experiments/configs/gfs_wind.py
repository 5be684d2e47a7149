"""10 m wind from five months of real GFS analyses (NCEP), 6-hourly on 64 x 32 points: what little data can give.

    WEATHERMIXER_REAL_DATA=FOLDER python -m experiments.train --config=experiments/configs/gfs_wind.py --workdir=DIR

FOLDER holds gfs_10mwind_6h_2026_dev_64x32.zarr. Scored on its last nine days, which training does not see.
"""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    """Two channels, 255 training pairs: a narrow model, strong decay, rotations of the globe as augmentation."""
    config = base.get_config()
    config.data.source = "$WEATHERMIXER_REAL_DATA/gfs_10mwind_6h_2026_dev_64x32.zarr"
    config.data.train = ("2026-03-24", "2026-07-30")
    config.data.validation = ("2026-07-31", "2026-08-08")
    config.data.test = ("2026-07-31", "2026-08-08")
    config.data.channel_multiple = 2

    config.model.patch = (2, 4)
    config.model.embed = 128
    config.model.token_hidden = 128
    config.model.embed_hidden = 256
    config.model.blocks = 2
    config.model.head = "increment"

    config.loss.channel_weights = "uniform"
    config.optimizer.kind = "adamw"
    config.optimizer.weight_decay = 0.1
    config.optimizer.peak_rate = 1e-3
    config.optimizer.coder_peak_rate = 1e-3
    config.optimizer.warmup_epochs = 2.0

    config.training.batch_size = 16
    config.training.steps = 1500
    config.training.ema_decay = 0.995
    config.training.checkpoint_every = 500
    config.evaluation.every = 100
    config.evaluation.batches = 2
    config.evaluation.batch_size = 8
    config.evaluation.final = True
    return config
