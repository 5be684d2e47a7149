"""The mesh and the table: strict names, sizes that do not divide, devices that are not there."""

import os
from types import SimpleNamespace

import jax
import pytest
from jax.sharding import AxisType, PartitionSpec

from weathermixer.parallel.mesh import (
    AXES,
    LOGICAL_AXES,
    check_divides,
    make_mesh,
    spec,
    use_copy_engines,
    ways,
    without,
)


def test_the_mesh_has_three_explicit_axes_and_fills_the_devices():
    mesh = make_mesh(-1, 2, 2)
    assert dict(mesh.shape) == {"data": 2, "domain": 2, "tensor": 2}
    assert mesh.axis_names == AXES
    assert set(mesh.axis_types) == {AxisType.Explicit}
    assert make_mesh(1, 2, 1).size == 2


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((2, 4, 2), "mesh data=2 x domain=4 x tensor=2 needs 16 devices, 8 are visible"),
        ((-1, 16, 1), "needs 16 devices, 8 are visible"),
        ((1, 0, 1), "every size must be at least 1"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(*sizes)


def test_a_process_without_a_part_of_the_mesh_is_named(monkeypatch):
    """It would have no parts of any array, and end somewhere in the middle with a message about those."""
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(process_index=index // 2) for index in range(6)])
    with pytest.raises(ValueError, match="needs 2 of 6 devices, and none of process 1, 2: .* start fewer processes"):
        make_mesh(2, 1, 1)


def test_names_are_strict():
    assert spec("batch", "channel", "lat", "lon") == PartitionSpec("data", "tensor", "domain", None)
    with pytest.raises(KeyError, match="no rule for logical axis \\['latitude'\\]"):
        spec("batch", "latitude")


def test_gathering_removes_axes_and_no_others():
    assert without(spec("token_in", "token_out"), "tensor") == PartitionSpec("domain", None)
    assert without(spec("embed_vector"), "domain") == PartitionSpec("tensor")


def test_every_kernel_is_cut_over_both_model_axes():
    for first, second in (("token_in", "token_out"), ("embed_in", "embed_out")):
        assert {LOGICAL_AXES[first], LOGICAL_AXES[second]} == {"domain", "tensor"}
    mesh = make_mesh(1, 4, 2)
    assert ways(mesh, "token_vector") == ways(mesh, "embed_vector") == 8


def test_every_size_that_does_not_divide_is_named():
    with pytest.raises(
        ValueError, match="latitude=33 is not divisible by domain=2; bias=12 is not divisible by domain=2 \\* tensor=4"
    ):
        check_divides(make_mesh(1, 2, 4), latitude=("lat", 33), bias=("token_vector", 12), fine=("embed", 8))
    assert len(jax.devices()) == 8


@pytest.mark.parametrize(
    "version, flags, expected",
    [
        ((0, 11, 2), "", "--xla_gpu_collective_permute_mode=peer"),
        ((0, 12, 0, 1), "--xla_dump_to=x", "--xla_dump_to=x --xla_gpu_collective_permute_mode=peer"),
        ((0, 12, 0), "--xla_gpu_collective_permute_mode=other", "--xla_gpu_collective_permute_mode=other"),
        ((0, 10, 2), "", ""),  # XLA ends a program that sets a flag which it does not know
        ((0, 13, 0), "", ""),  # nobody has tried it there yet
    ],
)
def test_copy_engines_are_asked_for_where_they_are_known(monkeypatch, version, flags, expected):
    monkeypatch.setattr(jax, "__version_info__", version)
    monkeypatch.setenv("XLA_FLAGS", flags)
    use_copy_engines()
    assert os.environ["XLA_FLAGS"] == expected
