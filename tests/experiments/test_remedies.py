"""What a run is told that memory does not hold: changes of what it has, none of them needless."""

import re

import jax
import pytest

from experiments.configs import load_config
from experiments.remedies import advise, explained
from weathermixer.model.shape import ModelShape
from weathermixer.parallel.mesh import make_mesh
from weathermixer.planning.hardware import find_hardware
from weathermixer.planning.meshes import Layout
from weathermixer.runs.settings import make_settings


def tell(memory_bytes, layout=(1, 1, 1), **changes):
    """What a run of the published model is told."""
    settings = make_settings(load_config("reference").to_dict())
    settings = settings.replace({name.replace("__", "."): value for name, value in changes.items()})
    return advise(settings, ModelShape(), Layout(*layout), find_hardware("h100", memory_bytes=memory_bytes))


def remedies(*args, **kwargs):
    """The changes that are advised, each as {field: value}."""
    said = tell(*args, **kwargs)
    changes = re.findall(r"(?:with|or) ((?:--config\S+(?: |$))+)", said.partition(";")[0].replace(",", " "))
    return [dict(re.findall(r"--config\.(\S+)=(\S+)", change)) for change in changes]


def test_what_a_run_has_already_is_no_remedy():
    """The published model's blocks are made again in the backward pass as it is."""
    assert remedies(60e9) == [{"training.accumulate": "2"}]
    assert remedies(60e9, training__accumulate=2) == [{"training.accumulate": "4"}]
    assert remedies(40e9, layout=(2, 1, 1)) == [
        {"mesh.zero": "parameters"},
        {"mesh.data": "1", "mesh.tensor": "2"},
        {"mesh.data": "1", "mesh.domain": "2"},
    ]


def test_no_remedy_is_another_one_and_something_needless():
    plain = dict(model__rematerialize="none")
    assert remedies(60e9, **plain) == [{"model.rematerialize": "block"}, {"training.accumulate": "2"}]
    both = {"training.accumulate": "4", "model.rematerialize": "block"}
    assert remedies(40e9, **plain) == [both, {"training.accumulate": "8"}]  # less is not enough of either


def test_where_nothing_fits_it_says_so():
    assert remedies(30e9) == [] and "Nothing fits: use more devices" in tell(30e9)


def test_a_want_of_memory_is_explained_and_other_faults_are_not():
    settings, mesh = make_settings({}), make_mesh(1, 1, 1)
    for text, error in (("RESOURCE_EXHAUSTED: 1 GB", ValueError), ("INTERNAL: 1", jax.errors.JaxRuntimeError)):
        told = "out of device memory: the planner" if error is ValueError else text
        with pytest.raises(error, match=told), explained(settings, ModelShape(), mesh):
            raise jax.errors.JaxRuntimeError(text)
