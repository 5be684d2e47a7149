"""A small WeatherMixer on a simulated dry atmosphere: no download, no account, two minutes on two CPU cores.

    python -m experiments.train --config=quickstart --workdir=DIR

Simulates the weather first (cached), and ends with scores, a forecast and a map in DIR. The simulation and its archive
take half of the time. What the settings bring: docs/skill.md.
"""

from ml_collections import ConfigDict

from experiments.configs import base

# (samples a step, steps), as quickstart:NAME; the second, of more and smaller steps, is for a GPU
SIZES = {"": (4, 800), "skill": (2, 4000)}


def get_config(size: str = "") -> ConfigDict:
    """64 x 32 points, 33 channels, 2 x 4 patches."""
    if size not in SIZES:
        raise ValueError(f"size {size!r} is not one of {', '.join(filter(None, SIZES))}")
    config = base.get_config()
    config.data.source = "simulated"
    config.data.train = ("2000-01-01", "2002-04-20")
    config.data.validation = ("2002-04-22", "2002-05-10")
    config.data.test = ("2002-05-12", "2002-06-19")

    config.model.patch = (2, 4)
    config.model.embed = 192
    config.model.token_hidden = 256
    config.model.embed_hidden = 384
    config.model.blocks = 2
    config.model.head = "increment"
    config.model.token_mixing = "circulant"

    config.loss.channel_weights = "tendency"
    config.optimizer.kind = "muon"
    config.optimizer.weight_decay = 1e-2
    config.optimizer.peak_rate = 4e-3
    config.optimizer.coder_peak_rate = 4e-3
    config.optimizer.warmup_epochs = 0.2

    config.training.batch_size, config.training.steps = SIZES[size]
    config.training.ema_decay = 0.99
    config.training.checkpoint_every = 400
    config.evaluation.every = 400
    config.evaluation.validation_lead_hours = (6, 24)
    config.evaluation.max_starts = 64
    config.evaluation.batch_size = 16
    config.evaluation.final = True
    return config
