"""The compiled training step against its design: which collectives, how many, how many bytes, and nothing whole.

In float32: the CPU's compiler sends bfloat16 as float32. What GPUs add, that transfers run under products, is
measured by `benchmark train` (hidden_transfers).
"""

import math

import jaxtyping
import pytest

from experiments import synthetic
from tests.tiny_training import make_tiny
from weathermixer.cost.layout import Layout, StepOptions
from weathermixer.cost.traffic import contraction_schedule, contraction_transfers
from weathermixer.cost.work import contractions
from weathermixer.hlo import collectives, hidden_transfers
from weathermixer.mesh import use_mesh
from weathermixer.schedule import moves_input

BATCH = 8


@pytest.fixture(autouse=True)
def describe_instead_of_hold():
    """Lowering fills the step's dataclasses with descriptions of arrays, which the check of types would refuse."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def compile_step(sizes):
    """The collectives of the tiny problem's training step, its model's sizes, and its plan's layout and options."""
    tiny = make_tiny(sizes, batch_size=BATCH)
    with use_mesh(tiny.mesh):
        arguments = synthetic.describe_arguments(tiny.training, tiny.mesh, batch_size=BATCH)
        text = tiny.training.train_step.lower(*arguments).compile().as_text()
    return collectives(text), tiny.training.shape, Layout(*sizes), StepOptions(batch=BATCH, compute_dtype="float32")


def expect(shape, layout, options):
    """(bytes received, permutes, all-gathers) of all contractions, by the cost model's formula and the schedules."""
    received, permutes, gathers = 0, 0, 0
    for c in contractions(shape):
        if c.name == "blend":
            continue
        along, across = layout.contracted(c.over).size, layout.across(c.over).size
        gather = moves_input(contraction_schedule(c, layout, options))
        received += sum(transfer.bytes for transfer in contraction_transfers(c, layout, options))
        kernel_times = 3 if c.needs_input_gradient else 2
        permutes += c.count * (2 * (along - 1) + kernel_times * (across - 1))
        gathers += c.count * gather
        if c.name == "decode" and across == 1:  # both products need the same dy: the compiler sends it once
            received -= (along - 1) * c.result * BATCH * 4 // layout.data // along
            permutes -= along - 1
    return received, permutes, gathers


@pytest.mark.parametrize("sizes", [(1, 2, 2), (1, 1, 4), (2, 2, 2)], ids=str)
def test_the_step_exchanges_what_the_formula_says(sizes):
    found, shape, layout, options = compile_step(sizes)
    assert not [each for each in found if each.kind == "all-to-all"]
    permutes = [each for each in found if "shard_map/ppermute" in each.origin]
    gathers = [each for each in found if "shard_map/all_gather" in each.origin]
    assert {each.kind for each in permutes} == {"collective-permute"}
    assert {each.kind for each in gathers} <= {"all-gather"}
    received, permute_count, gather_count = expect(shape, layout, options)
    assert sum(each.times for each in permutes) == permute_count
    assert sum(each.times for each in gathers) <= gather_count
    assert math.isclose(sum(each.received(1) for each in permutes + gathers), received, rel_tol=0.02)

    if layout.domain > 1 and layout.tensor > 1:  # on a line of devices something has to be gathered whole
        instance = BATCH // layout.data
        activation = instance * shape.tokens * min(shape.embed, shape.features)
        assert max(each.largest for each in found) < activation
        kernels = {c.kernel // layout.instance for c in contractions(shape)}
        sizes = {c.rows * size for c in contractions(shape) for size in (c.inputs, c.outputs)}
        parts = {size * instance // layout.instance for size in sizes}
        assert {each.largest for each in permutes} <= kernels | parts


def test_loops_count_as_often_as_they_turn():
    text = """HloModule m, is_scheduled=true
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %sum = f32[8]{0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add, metadata={op_name="jit(f)/psum"}
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %sum)
}
ENTRY %main (a: f32[4]) -> f32[8] {
  %a = bf16[4,2]{1,0} parameter(0)
  %start = ((bf16[4,2]{1,0}), bf16[8,2]{1,0}) all-gather-start(%a), dimensions={0}
  %product = bf16[4,4]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %done = bf16[8,2]{1,0} all-gather-done(%start)
  %while = (s32[], f32[8]{0}) while(%init), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %r = f32[8]{0} get-tuple-element(%while), index=1
}
%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %xy = f32[] add(%x, %y)
}
%cond (p: (s32[], f32[8])) -> pred[] {
  ROOT %less = pred[] constant(true)
}
"""
    gathered, summed = sorted(collectives(text), key=lambda each: each.kind)
    assert (summed.kind, summed.operand_bytes, summed.times, summed.origin) == ("all-reduce", 32, 5, "jit(f)/psum")
    assert summed.received(2) == 5 * 32
    assert (gathered.kind, gathered.operand_bytes, gathered.result_bytes, gathered.times) == ("all-gather", 16, 32, 1)
    assert gathered.received(2) == 16 and gathered.largest == 16
    assert hidden_transfers(text) == [("all-gather", 1)]
