"""Every field of a run, with its default. Other configs are this one plus their differences.

Any field can be changed on the command line: --config.training.steps=500 --config.mesh.domain=2
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The defaults: the published model and settings (Jigsaw, sections 4 and 5), but for the data."""
    config = ConfigDict()
    config.seed = 0  # of parameters, dropout and the order of samples

    # Devices. Any three sizes that divide the model's; they change where things lie, never what is computed.
    config.mesh = ConfigDict()
    config.mesh.data = -1  # model instances side by side; -1: as many as the devices hold
    config.mesh.domain = 1  # latitude bands
    config.mesh.tensor = 1  # channel and feature groups
    config.mesh.zero = "none"  # "moments" (EMA too) or "parameters": what is cut over `data` as well

    config.data = ConfigDict()
    # What to train on where no --data=ARCHIVE is given: "simulated" (made on first use, cached), or a source that
    # experiments.prepare understands (prepared on first use, cached); environment variables in it are expanded.
    config.data.source = ""
    config.data.channels = ()  # names such as "geopotential_500", in order; (): all that the archive has
    config.data.static = ("*",)  # static fields given to the model; ("*",): all that the archive has
    config.data.channel_multiple = 1  # the channel dimension is padded, exactly, to a multiple of this
    # Periods, first and last date inclusive. Keep them apart: tests on data that was seen say nothing.
    config.data.train = ("1980-01-01", "2016-12-31")
    config.data.validation = ("2017-01-01", "2017-12-31")
    config.data.test = ("2018-01-01", "2018-12-31")
    config.data.augmentation = "none"  # "rotate_longitude": each sample is turned about the axis; for little data
    config.data.prefetch = 2  # batches being read ahead
    config.data.block = 1  # shuffle runs of so many consecutive times: a frame is then read once, not twice
    config.data.on_error = "stop"  # at a chunk that cannot be read; "skip" replaces the sample, counts and logs it

    config.model = ConfigDict()
    config.model.patch = (1, 60)  # rows and columns of a token
    config.model.embed = 4320  # features of a token (D)
    config.model.token_hidden = 8640  # hidden size of token mixing (H)
    config.model.embed_hidden = 4320  # hidden size of channel mixing (F)
    config.model.blocks = 3
    config.model.head = "blend"  # as published, or "increment": state + decoded change in units of the 6 h tendency
    config.model.dropout_rate = 0.0
    config.model.history = 1  # frames that the model sees; 2: the state and the one 6 h before, which shows tendencies
    config.model.compute_dtype = "auto"  # bfloat16 on GPU and TPU, float32 on CPU; or named. State stays float32
    config.model.rematerialize = "none"  # "block" keeps only the blocks' inputs for the backward pass
    config.model.schedule = "auto"  # of the distributed contractions, see weathermixer/schedule.py

    config.loss = ConfigDict()
    config.loss.form = "weighted_square"  # weights outside the square, mean one; "published": inside, as they are
    config.loss.channel_weights = "published"  # by variable and level; "uniform"; "tendency": error per 6 h change

    config.optimizer = ConfigDict()
    config.optimizer.kind = "adam"  # with L2 in the gradient, as published; "adamw": decay of kernels alone
    config.optimizer.weight_decay = 3e-6
    config.optimizer.peak_rate = 1e-4
    config.optimizer.coder_peak_rate = 2e-5  # of encode and decode
    config.optimizer.start_rate = 1e-6
    config.optimizer.end_rate = 1e-5
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.999
    config.optimizer.clip_norm = 1.0  # of the whole gradient's norm

    config.training = ConfigDict()
    config.training.batch_size = 8  # samples per step over all instances
    config.training.epochs = 100.0  # length of the run and of its cosine...
    config.training.steps = 0  # ...or in steps, where this is not 0
    config.training.lead_steps = 1  # latent rollout: the blocks are applied so often, the target is so many steps ahead
    config.training.ema_decay = 0.0  # of the parameters' moving average, which then is what forecasts; 0: none
    config.training.log_every = 50  # steps
    config.training.checkpoint_every = 1000  # steps
    config.training.keep_checkpoints = 3

    # Scores on the test period, and what ends a run. Leads in hours.
    config.evaluation = ConfigDict()
    config.evaluation.every = 1000  # steps between looks at the validation loss; 0: never
    config.evaluation.batches = 16  # how many batches of the validation period a look takes
    config.evaluation.batch_size = 8
    config.evaluation.lead_hours = (6, 24, 72)
    config.evaluation.mode = "autoregressive"  # or "latent"
    config.evaluation.period = "test"  # what experiments.evaluate scores: "test" or "validation"
    config.evaluation.max_starts = 0  # score so many forecasts, evenly spread over the period; 0: all
    config.evaluation.final = False  # end the run with scores, a forecast and a map in the workdir
    config.evaluation.forecast_hours = 120  # length of that forecast
    return config
