"""What the shard_maps of a traced program move between devices, before a compiler has touched it."""

import math
from collections import Counter

BYTES_MOVED = {
    "ppermute": lambda given, got: given,
    "all_gather": lambda given, got: got - given,
    "reduce_scatter": lambda given, got: given - got,
}


def count_moved(jaxpr, moved: Counter) -> Counter:
    """Bytes that a device receives, by mesh axis and dtype."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in BYTES_MOVED:
            arrays = (equation.invars[0].aval, equation.outvars[0].aval)
            sizes = (math.prod(array.shape) * array.dtype.itemsize for array in arrays)
            (axis,) = equation.params["axis_name"]
            moved[axis, str(arrays[0].dtype)] += BYTES_MOVED[equation.primitive.name](*sizes)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)  # of a ClosedJaxpr
            if hasattr(inner, "eqns"):
                count_moved(inner, moved)
    return moved
