"""10 m wind from five months of real GFS analyses (NCEP), 6-hourly on 64 x 32 points: what little data can give.

    WEATHERMIXER_REAL_DATA=FOLDER python -m experiments.train --config=gfs_wind --workdir=DIR

FOLDER holds gfs_10mwind_6h_2026_dev_64x32.zarr. Scored on its last nine days, which training does not see; settings
were chosen on the first six of these. RMSE of u and v there in m/s, and what made it so: docs/skill.md.

Turning the globe is worth most: it shows each pair in 64 places. Next come two frames: wind alone does not tell where
the pressure pushes it, its change does.
"""

from ml_collections import ConfigDict

from experiments.configs import base

# Other sizes, as gfs_wind:NAME: the best that was found, for a GPU
SIZES = {
    "": {},
    "skill": dict(
        patch=(2, 2), embed=192, token_hidden=512, embed_hidden=384, blocks=5, dropout_rate=0.15, token_mixing="dense"
    ),
}


def get_config(size: str = "") -> ConfigDict:
    """Two channels, 250 training samples: a narrow model that sees two frames, turned about the globe's axis."""
    if size not in SIZES:
        raise ValueError(f"size {size!r} is not one of {', '.join(filter(None, SIZES))}")
    config = base.get_config()
    config.data.source = "$WEATHERMIXER_REAL_DATA/gfs_10mwind_6h_2026_dev_64x32.zarr"
    config.data.train = ("2026-03-24", "2026-07-30")
    config.data.validation = ("2026-07-31", "2026-08-08")
    config.data.test = ("2026-07-31", "2026-08-08")
    config.data.channel_multiple = 2
    config.data.augmentation = "rotate_longitude"

    config.model.patch = (4, 4)
    config.model.embed = 128
    config.model.token_hidden = 256
    config.model.embed_hidden = 256
    config.model.blocks = 3
    config.model.head = "increment"
    config.model.history = 2
    config.model.token_mixing = "circulant"
    config.model.dropout_rate = 0.1
    config.model.update(SIZES[size])

    config.loss.channel_weights = "uniform"
    config.optimizer.kind = "muon"
    config.optimizer.weight_decay = 0.1 if size else 0.3
    config.optimizer.peak_rate = 3e-3
    config.optimizer.coder_peak_rate = 3e-3
    config.optimizer.warmup_epochs = 6.0

    config.training.batch_size = 16
    config.training.steps = 4000
    config.training.ema_decay = 0.998
    config.training.checkpoint_every = 1000
    config.evaluation.every = 500
    config.evaluation.validation_lead_hours = (6, 24)
    config.evaluation.batches = 2
    config.evaluation.batch_size = 8
    config.evaluation.final = True
    return config
