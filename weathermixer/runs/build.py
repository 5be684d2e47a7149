"""From settings to the objects of a run: channels, model, loss, state. Programs share it, so that they agree."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from weathermixer.archive.archive import Archive
from weathermixer.archive.reference import Reference
from weathermixer.fields.variables import Channel, ChannelSet
from weathermixer.model.shape import ModelShape
from weathermixer.model.weathermixer import WeatherMixer
from weathermixer.parallel.fp8 import COMPILER_OPTIONS, check_device
from weathermixer.runs.settings import OptimizerSettings, Settings
from weathermixer.training.losses import make_loss_weights
from weathermixer.training.optimizer import make_learning_rate, make_optimizer
from weathermixer.training.state import TrainState, make_state
from weathermixer.training.steps import make_loss, make_train_step


def make_channel_set(settings: Settings, archive: Archive) -> ChannelSet:
    """The channels of a run: those that the settings name, or all of the archive's."""
    data = settings.data
    names = data.channels or [channel.name for channel in archive.channels]
    chosen = [archive.channels[index] for index in archive.channel_indices(names)]
    return assign_roles(settings, chosen, tuple(archive.static) if data.static == ("*",) else data.static)


def assign_roles(settings: Settings, channels: Sequence[Channel], static: Sequence[str]) -> ChannelSet:
    """These channels and static fields in the roles that the settings give them, with the settings' forcings."""
    data = settings.data
    roles = dict(input_only=data.input_only, output_only=data.output_only, forcings=data.forcings)
    return ChannelSet.from_channels(channels, static, data.channel_multiple, **roles)


def make_model_shape(settings: Settings, grid: tuple[int, int], channel_set: ChannelSet) -> ModelShape:
    """The model's sizes on a grid of (lat, lon) points."""
    names = {field.name for field in dataclasses.fields(ModelShape)}
    sizes = {name: value for name, value in vars(settings.model).items() if name in names}
    sizes |= dict(channels=channel_set.size, predicted=len(channel_set.dynamic), leads=len(settings.training.leads))
    return ModelShape(grid=grid, **sizes)


def compute_dtype(settings: Settings) -> jnp.dtype:
    """Of activations, and of products that are not in 8-bit floats: bfloat16 where the hardware is made for it."""
    if settings.model.compute_dtype == "auto":
        return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    return jnp.dtype(jnp.bfloat16 if settings.model.compute_dtype == "fp8" else settings.model.compute_dtype)


def make_model(settings: Settings, reference: Reference, *, fp8: bool = False) -> tuple[Callable, Callable]:
    """The model as two functions on the mesh in use: make_params(key) -> params, apply(params, x, **options of it).

    `fp8` is for training with compute_dtype="fp8": what is forecast or validated is computed in bfloat16 then, which is
    nearer to what was learnt.
    """
    shape = make_model_shape(settings, reference.grid.shape, reference.channel_set)
    if jax.config.jax_enable_x64:
        raise ValueError("JAX_ENABLE_X64 is set, with which this software computes other numbers: unset it")
    if fp8:
        check_device(jax.devices()[0])

    def build(key):
        return WeatherMixer(
            shape,
            rngs=nnx.Rngs(params=key),
            tendency=tuple(np.asarray(reference.tendency, np.float64).tolist()),
            compute_dtype=compute_dtype(settings),
            rematerialize=settings.model.rematerialize,
            schedule=settings.model.schedule,
            fp8=fp8,
        )

    graph = nnx.split(nnx.eval_shape(lambda: build(jax.random.key(0))))[0]

    def make_params(key):
        return nnx.split(build(key))[1]

    def apply(params, x, **options):
        return nnx.merge(graph, params)(x, **options)

    return make_params, apply


def training_steps(settings: Settings, starts: int) -> tuple[int, int]:
    """(steps of the run, steps of the warm-up) for so many training pairs."""
    per_epoch = starts / settings.training.batch_size
    steps = settings.training.steps or round(settings.training.epochs * per_epoch)
    if steps < 1:
        raise ValueError(f"training.steps={steps}: nothing to train; set training.steps or training.epochs")
    warmup = round(settings.optimizer.warmup_epochs * per_epoch)
    # a constant rate does not depend on how long the run is: it may be made longer
    return steps, warmup if settings.optimizer.schedule == "constant" else min(warmup, steps // 2)


def rollout_stages(settings: Settings, first_step: int, last_step: int) -> list[tuple[int, int, int]]:
    """(first step, last step, rollout) of each part of the steps that are left: in each the loss is another."""
    since = settings.training.rollout_from
    parts = zip(since, (*since[1:], last_step), settings.training.rollout, strict=True)
    left = [(max(first, first_step), min(last, last_step), rollout) for first, last, rollout in parts]
    return [part for part in left if part[0] < part[1]] or [(last_step, last_step, settings.training.rollout[-1])]


def _make_optimizer(
    options: OptimizerSettings, steps: int, warmup: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of a run of so many steps, and the rate of its blocks."""
    rates = dict(start=options.start_rate, end=options.end_rate, warmup_steps=warmup, total_steps=steps)
    rates |= dict(schedule=options.schedule, factors=options.factors)
    processor, coder = (make_learning_rate(peak=peak, **rates) for peak in (options.peak_rate, options.coder_peak_rate))
    names = ("beta1", "beta2", "weight_decay", "clip_norm", "momentum_dtype")
    others = {name: getattr(options, name) for name in names}
    return make_optimizer(options.kind, processor_rate=processor, coder_rate=coder, **others), processor


@dataclasses.dataclass(frozen=True)
class Training:
    """What a training step needs, as functions on the mesh in use: the same on any mesh, concrete or abstract."""

    shape: ModelShape
    steps: int  # of the run
    rollout: int  # how often forecasts are fed back in the loss
    apply: Callable  # (params, x, *, repeats, key) -> prediction
    loss: Callable  # (params, batch, standardization, key) -> loss
    eval_loss: Callable  # the same, jitted; in bfloat16 where training is in 8-bit floats
    train_step: Callable  # (state, batch, standardization) -> (state, metrics)
    initial_state: Callable[[], TrainState]  # to be jitted


def make_training(
    settings: Settings,
    reference: Reference,
    *,
    starts: int,
    rollout: int | None = None,
    length: tuple[int, int] | None = None,
) -> Training:
    """Puts model, loss and optimizer together, for the channels and the grid of a reference and so many training pairs.

    Args:
      rollout: how often forecasts are fed back in the loss; None: as often as they ever are in the run.
      length: steps of the run and of its warm-up; None: as training_steps says.

    Raises ValueError, with the numbers, for sizes that do not divide over the mesh and settings that do not fit them.

    >>> model = {"patch": (2, 4), "embed": 16, "token_hidden": 16, "embed_hidden": 16, "blocks": 1}
    >>> settings = weathermixer.make_settings({"model": model, "training": {"steps": 10}})
    >>> archive, mesh = weathermixer.open_archive("dry.archive"), weathermixer.make_mesh(1, 2, 1)
    >>> reference = weathermixer.make_reference(archive, weathermixer.ChannelSet(archive.channels))
    >>> with jax.set_mesh(mesh):
    ...     training = weathermixer.make_training(settings, reference, starts=100)
    ...     state = jax.jit(training.initial_state)()
    >>> training.steps, int(state.step)
    (10, 0)
    """
    channel_set = reference.channel_set
    shape = make_model_shape(settings, reference.grid.shape, channel_set)
    make_params, apply = make_model(settings, reference)
    fp8 = settings.model.compute_dtype == "fp8"
    trained = make_model(settings, reference, fp8=True)[1] if fp8 else apply
    steps, warmup = length or training_steps(settings, starts)
    optimizer, learning_rate = _make_optimizer(settings.optimizer, steps, warmup)
    weights = dict(channel_weights=settings.loss.channel_weights, factors=settings.loss.weights)
    area, channel = make_loss_weights(reference, form=settings.loss.form, **weights)
    rollout = rollout or max(settings.training.rollout)
    loss, eval_loss = (
        make_loss(
            function,
            area=area,
            channel=channel,
            repeats=settings.training.lead_steps,
            augmentation=settings.data.augmentation,
            rollout_weights=settings.training.rollout_weights or (1.0,) * rollout,
            cut_gradient=settings.training.rollout_gradient == "own",
            input_only=(len(channel_set.dynamic), len(channel_set.stored)),
            members=settings.training.members,
            spectral_crps=settings.loss.spectral_crps,
            noise=settings.model.noise,
        )
        for function in (trained, apply)
    )
    train_step = make_train_step(
        loss,
        optimizer,
        learning_rate=learning_rate,
        ema_decay=settings.training.ema_decay or None,
        seed=settings.seed if shape.dropout_rate or shape.noise or settings.data.augmentation != "none" else None,
        accumulate=settings.training.accumulate,
        compiler_options=COMPILER_OPTIONS if fp8 else None,
    )

    def initial_state():
        options = dict(ema=settings.training.ema_decay > 0, zero=settings.mesh.zero)
        return make_state(make_params(jax.random.key(settings.seed)), optimizer, **options)

    return Training(shape, steps, rollout, apply, loss, jax.jit(eval_loss), train_step, initial_state)
