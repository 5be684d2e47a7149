"""Rotations are whole columns, the same for input and target, the same on every mesh, and all of them occur."""

import jax
import numpy as np
import pytest

from weathermixer.augment import rotate_longitude
from weathermixer.mesh import make_mesh, sharding, use_mesh

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
