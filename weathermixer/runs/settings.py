"""Every setting of a run, with its default, what it may be, and what it means: the one place that says so.

A run is described by plain nested values: JSON on disk, an ml_collections config on a command line. `make_settings`
checks such values against the fields below and fills in what they leave out. The defaults are the published model and
settings (Jigsaw, sections 4 and 5), but for the data.
"""

import dataclasses
import difflib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import numpy as np

from weathermixer.forecasting.rollout import MODES, PRESCRIBED
from weathermixer.model.shape import HEADS, REMATERIALIZE, TOKEN_MIXING
from weathermixer.parallel.schedule import SCHEDULES
from weathermixer.parallel.zero import ZERO
from weathermixer.training.augment import AUGMENTATIONS
from weathermixer.training.losses import CHANNEL_WEIGHTS, FORMS
from weathermixer.training.optimizer import KINDS, RATES
from weathermixer.training.trackers import TRACKERS


def _setting(default: Any, choices: tuple = (), **bounds: int | float) -> Any:
    """A field with what its value may be: one of `choices`, or within the bounds least, above and below.

    Of a tuple each entry is bounded, and there is at least one, or as many as `length`.
    """
    return dataclasses.field(default=default, metadata={"choices": choices, **bounds})


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """Devices. Any three sizes that divide the model's; they change where things lie, never what is computed."""

    data: int = _setting(-1, least=-1)  # model instances side by side; -1: as many as the devices hold
    domain: int = _setting(1, least=1)  # latitude bands
    tensor: int = _setting(1, least=1)  # channel and feature groups
    zero: str = _setting("none", ZERO)  # "moments" (EMA too) or "parameters": what is cut over `data` as well


@dataclasses.dataclass(frozen=True)
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
    fill_values: dict[str, float] = dataclasses.field(default_factory=dict)
    channel_multiple: int = _setting(1, least=1)  # the channel dimension is padded, exactly, to a multiple of this
    train: tuple[str, ...] = ("1980-01-01", "2016-12-31")
    validation: tuple[str, ...] = ("2017-01-01", "2017-12-31")
    test: tuple[str, ...] = ("2018-01-01", "2018-12-31")
    augmentation: str = _setting("none", AUGMENTATIONS)  # each sample is turned about the axis; for little data
    prefetch: int = _setting(2, least=1)  # batches being read ahead
    block: int = _setting(1, least=1)  # shuffle runs of so many consecutive times: a frame is then read once, not twice
    on_error: str = _setting("stop", ("stop", "skip"))  # at a chunk that cannot be read; "skip" replaces the sample


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The model's sizes and how it is computed."""

    patch: tuple[int, ...] = _setting((1, 60), least=1, length=2)  # rows and columns of a token
    embed: int = _setting(4320, least=1)  # features of a token (D)
    token_hidden: int = _setting(8640, least=1)  # hidden size of token mixing (H)
    # "circulant": the same from every column of tokens, with columns times fewer parameters; H is whole rows of tokens
    token_mixing: str = _setting("dense", TOKEN_MIXING)
    embed_hidden: int = _setting(4320, least=1)  # hidden size of channel mixing (F)
    blocks: int = _setting(3, least=1)
    # as published, or "increment": state + decoded change in units of the 6 h tendency
    head: str = _setting("blend", HEADS)
    dropout_rate: float = _setting(0.0, least=0, below=1)
    # numbers of noise by which a forecast becomes a member of an ensemble, through the norms; 0: no ensembles
    noise: int = _setting(0, least=0)
    # frames that the model sees; 2: the state and the one a step before, which shows tendencies
    history: int = _setting(1, (1, 2))
    # of activations and products, "auto": bfloat16 on GPU and TPU, float32 on CPU. State stays float32. "fp8":
    # bfloat16, but the blocks' products in 8-bit floats, for GPUs of compute capability 8.9 on (Ada, Hopper, Blackwell)
    compute_dtype: str = _setting("auto", ("auto", "bfloat16", "float32", "fp8"))
    rematerialize: str = _setting("none", REMATERIALIZE)  # "block" keeps only the blocks' inputs for backward
    schedule: str = _setting("auto", SCHEDULES)  # of the distributed contractions, see parallel/schedule.py


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """What is minimized."""

    form: str = _setting("weighted_square", FORMS)  # weights outside the square, mean one; "published": inside
    # by variable and level; "uniform"; "tendency": error per 6 h change
    channel_weights: str = _setting("published", CHANNEL_WEIGHTS)
    # factors of these, by the names of channels or variables: weights["2m_temperature"] = 2.0
    weights: dict[str, float] = dataclasses.field(default_factory=dict, metadata={"least": 0})


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """How it is minimized: a linear warm-up, then the rest of the schedule."""

    # with L2 in the gradient, as published; "adamw": decay of kernels alone; "muon": and orthogonal steps in blocks
    kind: str = _setting("adam", KINDS)
    weight_decay: float = _setting(3e-6, least=0)
    # after the warm-up: to end_rate at the run's end, or constant, which may be trained on as long as one likes;
    # "cooldown": from peak_rate at once to end_rate as 1 - sqrt, for a run that starts from a constant one
    schedule: str = _setting("cosine", RATES)
    # of schedule="factors": those of the peak rates at equally spaced parts of the run after the warm-up, linear
    # between. Of any function f of the part done: tuple(f(n / 100) for n in range(101))
    factors: tuple[float, ...] = _setting((), least=0)
    peak_rate: float = _setting(1e-4, above=0)
    coder_peak_rate: float = _setting(2e-5, above=0)  # of encode and decode
    start_rate: float = _setting(1e-6, least=0)
    end_rate: float = _setting(1e-5, least=0)
    warmup_epochs: float = _setting(1.0, least=0)
    beta1: float = _setting(0.9, least=0, below=1)
    beta2: float = _setting(0.999, least=0, below=1)
    clip_norm: float = _setting(1.0, least=0)  # of the whole gradient's norm; 0: none


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """The run's length, and what is kept of it."""

    # what the run starts from: another one's folder, or an export, as PATH or PATH@STEP; its statistics are taken too
    init_from: str = ""
    # whether the optimizer's moments are taken from there, and the parameters beside them; else what forecasts
    init_moments: bool = False
    batch_size: int = _setting(8, least=1)  # samples per step over all instances
    epochs: float = _setting(100.0, above=0)  # length of the run and of its cosine...
    steps: int = _setting(0, least=0)  # ...or in steps, where this is not 0
    # latent rollout: the blocks are applied so often, the target is so many steps ahead
    lead_steps: int = _setting(1, least=1)
    # leads, in steps, that the blocks take at once: each sample's is drawn from these, and the model is told which; all
    # are multiples of the first
    leads: tuple[int, ...] = _setting((1,), least=1)
    # forecasts of each sample, with other noise: of 2 or more the loss is the fair CRPS
    members: int = _setting(1, least=1)
    # how often forecasts are fed back in training, from the steps rollout_from on: the loss is over all of these leads
    rollout: tuple[int, ...] = _setting((1,), least=1)
    rollout_from: tuple[int, ...] = _setting((0,), least=0)
    # of each lead in the loss, such as (0, 0, 1) for the last alone; (): all alike
    rollout_weights: tuple[float, ...] = _setting((), least=0)
    rollout_gradient: str = _setting("all", ("all", "own"))  # through all steps, or each step's from its own lead alone
    accumulate: int = _setting(1, least=1)  # in so many parts, one after the other, a batch's gradient is made
    # of the parameters' moving average, which then is what forecasts; 0: none
    ema_decay: float = _setting(0.0, least=0, below=1)
    log_every: int = _setting(50, least=1)  # steps
    # "wandb", "mlflow": who else takes the log's numbers; servers and keys as these packages want them told
    trackers: tuple[str, ...] = _setting((), tuple(TRACKERS))
    checkpoint_every: int = _setting(1000, least=1)  # steps
    keep_checkpoints: int = _setting(3, least=1)  # the last so many, and besides, for ever:
    keep_every: int = _setting(0, least=0)  # those of every so many steps; 0: none
    keep_hours: float = _setting(0.0, least=0)  # the first, and one each so much later; 0: none
    keep_best: int = _setting(0, least=0)  # so many with the least validation loss; 0: none
    on_damage: str = _setting("before", ("before", "stop"))  # where the last is damaged: take the one before

    @property
    def longest_steps(self) -> int:
        """From a sample's input to its last target."""
        return self.lead_steps * max(self.leads) * max(self.rollout)


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """Scores on the test period, and what ends a run. Leads in hours."""

    every: int = _setting(1000, least=0)  # steps between looks at the validation loss; 0: never
    batches: int = _setting(16, least=1)  # how many batches of the validation period a look takes
    batch_size: int = _setting(8, least=1)
    lead_hours: tuple[int, ...] = _setting((6, 24, 72), least=1)
    mode: str = _setting("autoregressive", MODES)
    # input-only channels on the way: as analysed at each valid time, or held as at the start, as a real forecast has to
    prescribed: str = _setting("analysis", PRESCRIBED)
    period: str = _setting("test", ("test", "validation"))  # what experiments.evaluate scores
    max_starts: int = _setting(0, least=0)  # score so many forecasts, evenly spread over the period; 0: all
    final: bool = False  # end the run with scores, a forecast and a map in the workdir
    forecast_hours: int = _setting(120, least=1)  # length of that forecast


@dataclasses.dataclass(frozen=True)
class Settings:
    """All of a run's settings.

    >>> settings = weathermixer.Settings().replace({"training.steps": 100, "mesh.domain": 4})
    >>> settings.training.steps, settings.mesh.domain, settings.model.head
    (100, 4, 'blend')
    """

    seed: int = _setting(0, least=0)  # of parameters, dropout and the order of samples
    mesh: MeshSettings = dataclasses.field(default_factory=MeshSettings)
    data: DataSettings = dataclasses.field(default_factory=DataSettings)
    model: ModelSettings = dataclasses.field(default_factory=ModelSettings)
    loss: LossSettings = dataclasses.field(default_factory=LossSettings)
    optimizer: OptimizerSettings = dataclasses.field(default_factory=OptimizerSettings)
    training: TrainingSettings = dataclasses.field(default_factory=TrainingSettings)
    evaluation: EvaluationSettings = dataclasses.field(default_factory=EvaluationSettings)

    def values(self) -> dict[str, Any]:
        """As plain nested values, tuples and all."""
        return dataclasses.asdict(self)

    def replace(self, changes: Mapping[str, Any]) -> "Settings":
        """With other values of some dotted names, checked: replace({"training.steps": 100})."""
        values = self.values()
        for name, value in changes.items():
            *parts, last = name.split(".")
            inner = values
            for part in parts:
                inner = inner[part]
            inner[last] = value
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
    settings = _make(Settings, values, "config")
    for name in ("train", "validation", "test"):
        try:
            check_period(getattr(settings.data, name))
        except ValueError as error:
            raise ValueError(f"config.data.{name}: {error}") from None
    optimizer = settings.optimizer
    if (optimizer.schedule == "factors") != (len(optimizer.factors) > 1):
        raise ValueError(
            f"config.optimizer.factors={optimizer.factors} with schedule={optimizer.schedule!r}: two or more factors "
            'go with schedule="factors", none with another'
        )
    _check_rollout(settings)
    _check_keeping(settings.training, settings.evaluation.every)
    return settings


def _check_keeping(training: TrainingSettings, validated_every: int) -> None:
    if training.keep_every % training.checkpoint_every:
        raise ValueError(
            f"config.training.keep_every={training.keep_every} is not a multiple of "
            f"checkpoint_every={training.checkpoint_every}: nothing is saved at these steps"
        )
    if training.keep_best and not validated_every:
        raise ValueError(f"config.training.keep_best={training.keep_best} needs config.evaluation.every")


def _check_rollout(settings: Settings) -> None:
    training = settings.training
    given, since = training.rollout, training.rollout_from
    if len(since) != len(given) or since[0] != 0 or any(b <= a for a, b in itertools.pairwise(since)):
        raise ValueError(
            f"config.training.rollout_from={since}: give the step from which each of rollout={given} is used, the "
            "first 0, ascending"
        )
    weights = training.rollout_weights
    if weights and (set(given) != {len(weights)} or not sum(weights)):
        raise ValueError(f"config.training.rollout_weights={weights}: give one for each lead of rollout={given}, or ()")
    if max(given) > 1 and settings.model.history == 2 and training.lead_steps > 1:
        raise ValueError(
            f"config.training.rollout={given} with lead_steps={training.lead_steps}: a model of history=2 sees the "
            "state a step before, which such a rollout does not make; set lead_steps=1 or history=1"
        )
    leads = training.leads
    if any(lead % leads[0] for lead in leads) or any(b <= a for a, b in itertools.pairwise(leads)):
        raise ValueError(f"config.training.leads={leads} must ascend, each a multiple of the first")
    if leads != (1,) and (training.lead_steps > 1 or settings.evaluation.mode == "latent"):
        raise ValueError(
            f"config.training.leads={leads} are not those of a latent rollout, lead_steps={training.lead_steps}, "
            f"evaluation.mode={settings.evaluation.mode}: set lead_steps=1 and autoregressive, or leave leads out"
        )
    if settings.model.history == 2 and leads != (1,) and (leads[0] > 1 or max(given) > 1):
        raise ValueError(
            f"config.training.leads={leads}, rollout={given}: a model of history=2 sees the state a step before, which "
            "such forecasts do not make; begin leads with 1 and set rollout=1, or set history=1"
        )
    if (training.members > 1) != (settings.model.noise > 0):
        raise ValueError(
            f"config.training.members={training.members} with config.model.noise={settings.model.noise}: members "
            "differ by noise, and they alone teach the model to use it; set both, such as 2 and 16, or neither"
        )
    if training.batch_size % training.accumulate:
        raise ValueError(
            f"config.training.accumulate={training.accumulate} does not divide batch_size={training.batch_size}"
        )


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


def field_types(cls: type = Settings) -> Iterator[tuple[str, Any]]:
    """(dotted name, type) of every field that has a value: ("model.blocks", int)."""
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            yield from ((f"{field.name}.{name}", kind) for name, kind in field_types(field.type))
        else:
            yield field.name, field.type


def _make(cls: type, values: Mapping[str, Any], where: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            hint = f"did you mean {where}.{near[0]}?" if near else f"there are {', '.join(fields)}"
            raise ValueError(f"{where}.{name} is not a field of a run's settings: {hint}")
    made = {}
    for name, value in values.items():
        field, full = fields[name], f"{where}.{name}"
        if dataclasses.is_dataclass(field.type):
            if not isinstance(value, Mapping):
                raise ValueError(f"{full}={value!r}: this is a group of settings, not one")
            made[name] = _make(field.type, value, full)
        else:
            made[name] = _check(full, _convert(full, value, field.type), field.metadata)
    return cls(**made)


def _convert(name: str, value: Any, wanted: Any) -> Any:
    """The value in a field's type, where JSON and command lines have others for it."""
    if wanted == dict[str, float] and isinstance(value, Mapping):
        return {entry: _convert(f"{name}.{entry}", number, float) for entry, number in value.items()}
    entries = get_args(wanted)
    if entries == (float, ...) and isinstance(value, list | tuple):
        return tuple(_convert(name, entry, float) for entry in value)
    if entries and isinstance(value, list | tuple) and all(type(entry) is entries[0] for entry in value):
        return tuple(value)
    if wanted is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if type(value) is wanted and wanted is not float:
        return value
    raise ValueError(f"{name}={value!r} must be {_KINDS[wanted]}")


_KINDS = {
    int: "an integer",
    float: "a finite number",
    str: "text",
    bool: "True or False",
    tuple[int, ...]: "a list of integers",
    tuple[str, ...]: "a list of texts",
    tuple[float, ...]: "a list of numbers",
    dict[str, float]: "numbers by names, as {'2m_temperature': 2.0}",
}


def _check(name: str, value: Any, rules: Mapping[str, Any]) -> Any:
    entries = value if type(value) is tuple else (value,)
    for entry in entries if rules.get("choices") else ():
        if entry not in rules["choices"]:
            raise ValueError(f"{name}={entry!r} is not one of {', '.join(map(str, rules['choices']))}")
    if value == () and rules.get("least") == 0:
        return value
    if type(value) is dict:
        entries = tuple(value.values())
    elif len(entries) != rules.get("length", len(entries)) or (not entries and "least" in rules):
        raise ValueError(f"{name}={value} must have {rules.get('length', 'one or more')} entries")
    for rule, (words, holds) in _BOUNDS.items():
        if rule in rules and not all(holds(entry, rules[rule]) for entry in entries):
            raise ValueError(f"{name}={value} must be {words} {rules[rule]}")
    return value


_BOUNDS = {
    "least": ("at least", lambda value, bound: value >= bound),
    "above": ("more than", lambda value, bound: value > bound),
    "below": ("less than", lambda value, bound: value < bound),
}
