"""What storage in 16 bits changes, and what it refuses."""

import numpy as np
import pytest

from weathermixer.archive.layout import choose_packing, pack, rounding_error


@pytest.fixture
def sample():
    noise = np.random.default_rng(0).normal(size=(5, 2, 8, 16))
    return (np.array([2e5, 3e-6])[:, None, None] + np.array([400.0, 4e-7])[:, None, None] * noise).astype(np.float32)


# relative rounding of float16 is 2^-12 on average of a value in units of std; int16 has 2^15 steps for each half of a
# range that is twice the sample's, about 8 std: steps of 2.6e-4 std, rms step / sqrt(12)
@pytest.mark.parametrize("dtype, error", [("float16", 3e-4), ("int16", 9e-5), ("float32", 0.0)])
def test_round_trip(sample, dtype, error):
    scale, offset = choose_packing(sample, dtype)
    stored = pack(sample, scale, offset, dtype)[0]
    assert stored.dtype == dtype
    physical = stored.astype(np.float64) * scale[:, None, None] + offset[:, None, None]
    difference = physical - sample.astype(np.float64)
    relative = np.sqrt((difference**2).mean(axis=(0, 2, 3))) / sample.std(axis=(0, 2, 3), dtype=np.float64)
    assert np.all(relative <= error)
    assert np.all(relative >= error / 5)
    np.testing.assert_allclose(rounding_error(sample, dtype), relative * sample.std(axis=(0, 2, 3)), rtol=0.02)


def test_float16_is_standardized(sample):
    scale, offset = choose_packing(sample, "float16")
    np.testing.assert_allclose(scale, sample.std(axis=(0, 2, 3), dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(offset, sample.mean(axis=(0, 2, 3), dtype=np.float64), rtol=1e-6)
    np.testing.assert_array_equal(scale, scale.astype(np.float32))


def test_missing_values_pass_float16_and_stop_int16(sample):
    broken = sample.copy()
    broken[1, 1, 2, 3], broken[3, 0, 0, 0] = np.nan, np.inf
    scale, offset = choose_packing(broken, "float16")
    stored = pack(broken, scale, offset, "float16")[0]
    assert np.isnan(stored[1, 1, 2, 3])
    assert np.isinf(stored[3, 0, 0, 0])
    assert np.isfinite(stored).sum() == stored.size - 2
    channel, value = pack(broken[:2], *choose_packing(sample, "int16"), "int16")[1]
    assert channel == 1 and np.isnan(value)


@pytest.mark.parametrize("dtype, value", [("int16", 2e5 + 400 * 20), ("float16", 2e5 + 400 * 7e4)])
def test_values_beyond_the_range_are_refused(sample, dtype, value):
    scale, offset = choose_packing(sample, dtype)
    sample[4, 0, 1, 1] = value
    assert pack(sample, scale, offset, dtype)[1] == (0, np.float32(value))


def test_constant_and_empty_channels_have_a_packing(sample):
    sample[:, 0], sample[:, 1] = 5, np.nan
    for dtype in ("float16", "int16"):
        scale, offset = choose_packing(sample, dtype)
        np.testing.assert_array_equal(scale, [1, 1])
        np.testing.assert_array_equal(offset, [5, 0])
