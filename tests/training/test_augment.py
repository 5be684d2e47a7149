"""Rotations are whole columns, the same for input and target, the same on every mesh, and all of them occur."""

import jax
import numpy as np
import pytest

from weathermixer.archive.loader import Batch
from weathermixer.archive.standardization import Standardization
from weathermixer.parallel.mesh import make_mesh, sharding, use_mesh
from weathermixer.training.steps import make_loss, rotate_longitude

SHAPE = (4, 4, 8, 6)


def rotated(shape, key, fields):
    mesh = make_mesh(*shape)
    cut = sharding(mesh, "batch", "channel", "lat", "lon")
    with use_mesh(mesh):
        out = jax.jit(rotate_longitude)(tuple(jax.device_put(field, cut) for field in fields), jax.random.key(key))
    assert all(field.sharding.is_equivalent_to(cut, 4) for field in out)
    return [np.asarray(field) for field in out]


def shift_of(before, after):
    (shift,) = [s for s in range(SHAPE[3]) if np.array_equal(np.roll(before, s, axis=-1), after)]
    return shift


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2), (4, 1, 2)])
def test_input_and_target_turn_together_and_alike_on_every_mesh(shape):
    x, target = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    turned, turned_target = rotated(shape, 3, (x, target))
    shifts = [shift_of(before, after) for before, after in zip(x, turned, strict=True)]
    assert shifts == [shift_of(before, after) for before, after in zip(target, turned_target, strict=True)]
    assert len(set(shifts)) > 1, "samples turn by shifts of their own"
    np.testing.assert_array_equal(rotated((1, 1, 1), 3, (x, target))[0], turned)


def test_every_rotation_occurs_as_often():
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    mesh = make_mesh(1, 1, 1)
    turn = jax.jit(lambda x, key: rotate_longitude((x,), key)[0])
    with use_mesh(mesh):
        fields = jax.device_put(x, sharding(mesh, "batch", "channel", "lat", "lon"))
        shifts = [
            shift_of(b, a) for key in range(150) for b, a in zip(x, np.asarray(turn(fields, jax.random.key(key))))
        ]
    counts = np.bincount(shifts, minlength=SHAPE[3])
    # 600 draws of 6: 100 each, with a standard deviation of 9
    assert counts.sum() == 600 and counts.min() > 60 and counts.max() < 140


def mean_loss(augmentation, apply, key):
    mesh = make_mesh(2, 2, 1)
    x, target = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    ones, zeros = np.ones(SHAPE[1], np.float32), np.zeros(SHAPE[1], np.float32)
    static = np.zeros(SHAPE[1:], np.float32)
    with use_mesh(mesh):
        cut = sharding(mesh, "batch", "channel", "lat", "lon")
        batch = Batch(jax.device_put(x, cut), jax.device_put(target, cut))
        vectors = (jax.device_put(v, sharding(mesh, "channel")) for v in (ones, zeros, zeros, ones, ones))
        standardization = Standardization(*vectors, jax.device_put(static, sharding(mesh, "channel", "lat", "lon")))
        area = np.linspace(0.5, 1.5, SHAPE[2])
        loss = make_loss(apply, area=area, channel=ones, repeats=1, augmentation=augmentation)
        return float(jax.jit(loss)({}, batch, standardization, key))


def test_the_loss_turns_samples_where_it_is_given_a_key():
    def persistence(params, x, *, repeats=1, key=None):
        return x

    def bound_to_the_ground(params, x, *, repeats=1, key=None):
        return x * np.arange(SHAPE[3], dtype=np.float32)[None, None, None, :]

    key = jax.random.key(3)
    # persistence has no geography: turning input and target together changes nothing
    np.testing.assert_allclose(
        mean_loss("rotate_longitude", persistence, key), mean_loss("none", persistence, key), rtol=1e-5
    )
    plain = mean_loss("none", bound_to_the_ground, None)
    assert mean_loss("rotate_longitude", bound_to_the_ground, None) == plain
    assert abs(mean_loss("rotate_longitude", bound_to_the_ground, key) / plain - 1) > 1e-3


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(ValueError, match="augmentation='flip'"):
        mean_loss("flip", print, None)
