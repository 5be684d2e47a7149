"""Every setting of a run, with its default, what it may be, and what it means: the one place that says so.

A run is described by plain nested values: JSON on disk, an ml_collections config on a command line. `make_settings`
checks such values against the fields below and fills in what they leave out. The defaults are the published model and
settings (Jigsaw, sections 4 and 5), but for the data. One file, so that nothing that is said of a field is elsewhere.
"""

import dataclasses
import difflib
import functools
import json
import operator
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_type_hints

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from weathermixer.forecasting.rollout import MODES, PRESCRIBED
from weathermixer.model.shape import HEADS, REMATERIALIZE, TOKEN_MIXING
from weathermixer.parallel.schedule import SCHEDULES
from weathermixer.parallel.zero import ZERO
from weathermixer.training.losses import CHANNEL_WEIGHTS, FORMS
from weathermixer.training.optimizer import KINDS, RATES
from weathermixer.training.steps import AUGMENTATIONS
from weathermixer.training.trackers import TRACKERS

_group = dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))


def check_period(period: Sequence[str]) -> tuple[str, str]:
    """A period's first and last date, both inclusive: ("1980", "2016") or ("2018-01-01", "2018-12-31").

    Raises ValueError where they are not two dates in order.
    """
    given = ",".join(period)
    try:
        first, last = (np.datetime64(date, "ns") for date in period)
    except ValueError:
        first = last = np.datetime64("NaT", "ns")
    if np.isnat(first) or np.isnat(last):
        raise ValueError(f"{given!r} is not a first and a last date, as 2018-01-01,2018-12-31")
    if last < first:
        raise ValueError(f"{given!r}: the last date is before the first")
    return tuple(period)


Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Counts = Annotated[tuple[Count, ...], Field(min_length=1)]
Period = Annotated[tuple[str, ...], AfterValidator(check_period)]


@_group
class MeshSettings:
    """Devices. Any three sizes that divide the model's; they change where things lie, never what is computed."""

    data: Annotated[int, Field(ge=-1)] = -1  # model instances side by side; -1: as many as the devices hold
    domain: Count = 1  # latitude bands
    tensor: Count = 1  # channel and feature groups
    # "parameters": they, their moments and averages are cut over `data` as well; up to 8 instances of a large model are
    # faster so, small models have more messages to wait for than they save
    zero: Literal[*ZERO] = "none"


@_group
class DataSettings:
    """What is trained on. Periods are first and last date, both inclusive; tests on data that was seen say nothing."""

    # What to train on where no archive is given: "simulated" (made on first use, cached), or a source that
    # experiments.prepare understands (prepared on first use, cached); environment variables in it are expanded.
    source: str = ""
    channels: tuple[str, ...] = ()  # names such as "geopotential_500", in order; (): all that the archive has
    static: tuple[str, ...] = ("*",)  # static fields given to the model; ("*",): all that the archive has
    # of these channels, by their or their variable's name: those that the archive prescribes, and those that are
    # predicted but not shown to the model; others are both input and output
    input_only: tuple[str, ...] = ()
    output_only: tuple[str, ...] = ()
    # input computed from time and place: insolation, insolation_ahead (a step later), time_of_day (UTC), local_time,
    # time_of_year, latitude, longitude; all but the first two are sine and cosine
    forcings: tuple[str, ...] = ()
    # what the input has where values are missing, such as sea surface temperature over land: SI values by the names of
    # channels or variables; of others their mean
    fill_values: dict[str, float] = Field(default_factory=dict)
    channel_multiple: Count = 1  # the channel dimension is padded, exactly, to a multiple of this
    train: Period = ("1980-01-01", "2016-12-31")
    validation: Period = ("2017-01-01", "2017-12-31")
    test: Period = ("2018-01-01", "2018-12-31")
    augmentation: Literal[*AUGMENTATIONS] = "none"  # each sample is turned about the axis; for little data
    prefetch: Count = 2  # batches being read ahead
    block: Count = 1  # shuffle runs of so many consecutive times: a frame is then read once, not twice
    on_error: Literal["stop", "skip"] = "stop"  # at a chunk that cannot be read; "skip" replaces the sample


@_group
class ModelSettings:
    """The model's sizes and how it is computed."""

    patch: Annotated[tuple[Count, ...], Field(min_length=2, max_length=2)] = (1, 60)  # rows and columns of a token
    embed: Count = 4320  # features of a token (D)
    token_hidden: Count = 8640  # hidden size of token mixing (H)
    # "circulant": the same from every column of tokens, with columns times fewer parameters; H is whole rows of tokens
    token_mixing: Literal[*TOKEN_MIXING] = "dense"
    embed_hidden: Count = 4320  # hidden size of channel mixing (F)
    blocks: Count = 3
    # as published, or "increment": state + decoded change in units of the 6 h tendency
    head: Literal[*HEADS] = "blend"
    dropout_rate: Share = 0.0
    # numbers of noise by which a forecast becomes a member of an ensemble, through the norms; 0: no ensembles
    noise: Whole = 0
    # frames that the model sees; 2: the state and the one a step before, which shows tendencies
    history: Literal[1, 2] = 1
    # of activations and products, "auto": bfloat16 on GPU and TPU, float32 on CPU. State stays float32. "fp8":
    # bfloat16, but the blocks' products in 8-bit floats, for GPUs of compute capability 8.9 on (Ada, Hopper, Blackwell)
    compute_dtype: Literal["auto", "bfloat16", "float32", "fp8"] = "auto"
    rematerialize: Literal[*REMATERIALIZE] = "none"  # "block" keeps only the blocks' inputs for backward
    schedule: Literal[*SCHEDULES] = "auto"  # of the distributed contractions, see parallel/schedule.py


@_group
class LossSettings:
    """What is minimized."""

    form: Literal[*FORMS] = "weighted_square"  # weights outside the square, mean one; "published": inside
    # by variable and level; "uniform"; "tendency": error per 6 h change
    channel_weights: Literal[*CHANNEL_WEIGHTS] = "published"
    # factors of these, by the names of channels or variables: weights["2m_temperature"] = 2.0
    weights: dict[str, NotNegative] = Field(default_factory=dict)
    # of ensembles: weight of the fair CRPS of zonal Fourier coefficients beside that of the points
    spectral_crps: NotNegative = 0.0


@_group
class OptimizerSettings:
    """How it is minimized: a linear warm-up, then the rest of the schedule."""

    # with L2 in the gradient, as published; "adamw": decay of kernels alone; "muon": and orthogonal steps in blocks
    kind: Literal[*KINDS] = "adam"
    weight_decay: NotNegative = 3e-6
    # after the warm-up: to end_rate at the run's end, or constant, which may be trained on as long as one likes;
    # "cooldown": from peak_rate at once to end_rate as 1 - sqrt, for a run that starts from a constant one
    schedule: Literal[*RATES] = "cosine"
    # of schedule="factors": those of the peak rates at equally spaced parts of the run after the warm-up, linear
    # between. Of any function f of the part done: tuple(f(n / 100) for n in range(101))
    factors: tuple[NotNegative, ...] = ()
    peak_rate: Positive = 1e-4
    coder_peak_rate: Positive = 2e-5  # of encode and decode
    start_rate: NotNegative = 1e-6
    end_rate: NotNegative = 1e-5
    warmup_epochs: NotNegative = 1.0
    beta1: Share = 0.9
    beta2: Share = 0.999
    clip_norm: NotNegative = 1.0  # of the whole gradient's norm; 0: none
    momentum_dtype: Literal["float32", "bfloat16"] = "float32"  # of the first moments; the second are float32


@_group
class TrainingSettings:
    """The run's length, and what is kept of it."""

    # what the run starts from: another one's folder, or an export, as PATH or PATH@STEP; its statistics are taken too
    init_from: str = ""
    # whether the optimizer's moments are taken from there, and the parameters beside them; else what forecasts
    init_moments: bool = False
    batch_size: Count = 8  # samples per step over all instances
    epochs: Positive = 100.0  # length of the run and of its cosine...
    steps: Whole = 0  # ...or in steps, where this is not 0
    # latent rollout: the blocks are applied so often, the target is so many steps ahead
    lead_steps: Count = 1
    # leads, in steps, that the blocks take at once: each sample's is drawn from these, and the model is told which; all
    # are multiples of the first
    leads: Counts = (1,)
    # forecasts of each sample, with other noise: of 2 or more the loss is the fair CRPS
    members: Count = 1
    # how often forecasts are fed back in training, from the steps rollout_from on: the loss is over all of these leads
    rollout: Counts = (1,)
    rollout_from: tuple[Whole, ...] = (0,)
    # of each lead in the loss, such as (0, 0, 1) for the last alone; (): all alike
    rollout_weights: tuple[NotNegative, ...] = ()
    rollout_gradient: Literal["all", "own"] = "all"  # through all steps, or each step's from its own lead alone
    accumulate: Count = 1  # in so many parts, one after the other, a batch's gradient is made
    # of the parameters' moving average, which then is what forecasts; 0: none
    ema_decay: Share = 0.0
    log_every: Count = 50  # steps
    # "wandb", "mlflow": who else takes the log's numbers; servers and keys as these packages want them told
    trackers: tuple[Literal[*TRACKERS], ...] = ()
    checkpoint_every: Count = 1000  # steps
    keep_checkpoints: Count = 3  # the last so many, and besides, for ever:
    keep_every: Whole = 0  # those of every so many steps; 0: none
    keep_hours: NotNegative = 0.0  # the first, and one each so much later; 0: none
    keep_best: Whole = 0  # so many with the least validation loss; 0: none
    on_damage: Literal["before", "stop"] = "before"  # where the last is damaged: take the one before

    @property
    def longest_steps(self) -> int:
        """From a sample's input to its last target."""
        return self.lead_steps * max(self.leads) * max(self.rollout)


@_group
class EvaluationSettings:
    """Scores on the test period, and what ends a run. Leads in hours."""

    every: Whole = 1000  # steps between looks at the validation loss; 0: never
    batches: Count = 16  # how many batches of the validation period a look takes
    validation_lead_hours: tuple[Count, ...] = ()  # a look also takes the RMSE by channel at these, of as many samples
    batch_size: Count = 8
    lead_hours: Counts = (6, 24, 72)
    mode: Literal[*MODES] = "autoregressive"
    # input-only channels on the way: as analysed at each valid time, or held as at the start, as a real forecast has to
    prescribed: Literal[*PRESCRIBED] = "analysis"
    period: Literal["test", "validation"] = "test"  # what experiments.evaluate scores
    max_starts: Whole = 0  # score so many forecasts, evenly spread over the period; 0: all
    final: bool = False  # end the run with scores, a forecast and a map in the workdir
    forecast_hours: Count = 120  # length of that forecast


@_group
class Settings:
    """All of a run's settings.

    >>> settings = weathermixer.Settings().replace({"training.steps": 100, "mesh.domain": 4})
    >>> settings.training.steps, settings.mesh.domain, settings.model.head
    (100, 4, 'blend')
    """

    seed: Whole = 0  # of parameters, dropout and the order of samples
    mesh: MeshSettings = MeshSettings()
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    def values(self) -> dict[str, Any]:
        """As plain nested values, tuples and all."""
        return dataclasses.asdict(self)

    def replace(self, changes: Mapping[str, Any]) -> "Settings":
        """With other values of some dotted names, checked: replace({"training.steps": 100})."""
        values = self.values()
        for name, value in changes.items():
            *groups, last = name.split(".")
            functools.reduce(operator.getitem, groups, values)[last] = value
        return make_settings(values)


def make_settings(values: Mapping[str, Any]) -> Settings:
    """The settings that nested plain values describe, checked; what they leave out has its default.

    Raises ValueError that names a field that there is not, or that has a value it cannot have, and what it can have.

    >>> weathermixer.make_settings({"model": {"blocks": 2}, "optimizer": {"kind": "adamw"}}).model.blocks
    2
    >>> weathermixer.make_settings({"model": {"block": 2}})
    Traceback (most recent call last):
    ValueError: config.model.block is not a field of a run's settings: did you mean config.model.blocks?
    """
    try:
        settings = TypeAdapter(Settings).validate_json(json.dumps(values, default=repr))  # in JSON lists are tuples
    except ValidationError as error:
        raise ValueError(_explain(error.errors()[0])) from None
    if problem := _contradiction(settings):
        raise ValueError(f"config.{problem}")
    return settings


def _contradiction(settings: Settings) -> str | None:
    """What two settings say against each other; None where all go together."""
    training, schedule, factors = settings.training, settings.optimizer.schedule, settings.optimizer.factors
    history, noise, mode = settings.model.history, settings.model.noise, settings.evaluation.mode
    rollout, since, weights = training.rollout, training.rollout_from, training.rollout_weights
    lead_steps, leads, members = training.lead_steps, training.leads, training.members
    every, size, parts = training.checkpoint_every, training.batch_size, training.accumulate
    if (schedule == "factors") != (len(factors) > 1):
        return f'optimizer.factors={factors}: two or more factors go with schedule="factors", none with {schedule!r}'
    if len(since) != len(rollout) or since[0] != 0 or list(since) != sorted(set(since)):
        return f"training.rollout_from={since}: give a step for each of rollout={rollout}, the first 0, ascending"
    if weights and (set(rollout) != {len(weights)} or not sum(weights)):
        return f"training.rollout_weights={weights}: give one for each lead of rollout={rollout}, or ()"
    if list(leads) != sorted(set(leads)) or any(lead % leads[0] for lead in leads):
        return f"training.leads={leads} must ascend, each a multiple of the first"
    if leads != (1,) and (lead_steps > 1 or mode == "latent"):
        return f"training.leads={leads} with {lead_steps=}, evaluation.{mode=}: set 1 and autoregressive, or no leads"
    if history == 2 and (leads[0] > 1 or (max(rollout) > 1 and (lead_steps > 1 or leads != (1,)))):
        return (
            f"training.rollout={rollout}, {lead_steps=}, leads={leads}: a model of history=2 sees the state a step "
            "before; set history=1, or rollout=1 and leads from 1 on"
        )
    if (members > 1) != (noise > 0):
        return f"training.members={members} with model.noise={noise}: they differ by noise: set 2 and 16, or 1 and 0"
    if settings.loss.spectral_crps and members == 1:
        return (
            f"loss.spectral_crps={settings.loss.spectral_crps} is of ensembles, with training.{members=}: set 0, or "
            "training.members=2 and model.noise=16"
        )
    if size % parts:
        return f"training.accumulate={parts} does not divide batch_size={size}"
    if training.keep_every % every:
        return f"training.keep_every={training.keep_every} is not a multiple of checkpoint_every={every}"
    if training.keep_best and not settings.evaluation.every:
        return f"training.keep_best={training.keep_best} needs config.evaluation.every"
    return None


def _explain(error: Mapping[str, Any]) -> str:
    """What pydantic found, with the field's name and value, and the field that may have been meant."""
    name = "config" + "".join(f"[{part}]" if type(part) is int else f".{part}" for part in error["loc"])
    if error["type"] != "unexpected_keyword_argument":
        message = error["msg"].removeprefix("Value error, ")
        return f"{name}={error['input']!r}: {message[0].lower()}{message[1:]}"
    group, _, last = name.removeprefix("config.").rpartition(".")
    names = [f.name for f in dataclasses.fields(get_type_hints(Settings)[group] if group else Settings)]
    near = difflib.get_close_matches(last, names, 1)
    hint = f"did you mean {name.removesuffix(last)}{near[0]}?" if near else f"there are {', '.join(names)}"
    return f"{name} is not a field of a run's settings: {hint}"
