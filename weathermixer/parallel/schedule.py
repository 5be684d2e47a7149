"""What a distributed contraction moves, in closed form, and the schedule that moves least. No arrays: plans use it too.

A contraction y = x W is cut `along` ways over the mesh axis that it contracts and `across` ways over the other one, and
so are x, y and W, each dimension over one axis. Either x is gathered along the contracted axis or the partial products
of y are scattered over it; both gather W over the other axis. The cut of W decides between the two (`kernel_names`).
Bytes that a device receives, |.| being one device's part:

                forward                             backward
    gather      (along-1) |x| + (across-1) |W|      2 (along-1) |x| + 2 (across-1) |W|     x again for dW, dx; W, dW
    scatter     (along-1) |y| + (across-1) |W|        (along-1) |y| + 2 (across-1) |W|     dy, for both;       W, dW

The ring forms move the same bytes chunk by chunk, each under the product of another; `einsum` lets the compiler choose.

Kernels that are cut over the instances too (zero.py) are gathered over them as often as across, W in the table, and dW
is summed over them once: (data - 1) |W| each, |W| being the part that such a device keeps.
"""

from typing import Literal, get_args

Over = Literal["channel", "token"]
Schedule = Literal["auto", "einsum", "gather", "scatter", "ring_gather", "ring_scatter"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
# instances that exchange chunks of kernels; between more they would be too many and too small: collectives gather
# kernels before a contraction, in float32, and cut its gradients after it
MOST_IN_RING = 8


def moves_input(schedule: Schedule) -> bool:
    """Whether x moves (and the kernel is stored for it), not y; "einsum" keeps the kernel as "scatter" does."""
    return schedule in ("gather", "ring_gather")


def in_ring(schedule: Schedule, instances: int) -> bool:
    """Whether so many instances that share a kernel exchange chunks of it within a contraction on this schedule."""
    return (schedule == "auto" or schedule.startswith("ring")) and instances <= MOST_IN_RING


def kernel_names(over: Over, schedule: Schedule) -> tuple[str, str]:
    """Logical names of the dimensions of a kernel that is to be contracted on this schedule."""
    what = {"channel": "embed", "token": "token"}[over]
    form = "gather_" if moves_input(schedule) else ""
    return f"{form}{what}_in", f"{form}{what}_out"


def choose_schedule(schedule: Schedule, contracted: int, produced: int, *, along: int) -> Schedule:
    """The schedule itself, or for "auto" the ring form that moves the fewest bytes in a training step.

    Scatter moves y twice, gather moves x three times: so x moves only where 3 contracted < 2 produced, as in the second
    half of a token MLP that is narrow inside. One device along the axis moves nothing either way: the scatter form.

    Raises ValueError for an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r} is not one of {SCHEDULES}")
    if schedule != "auto":
        return schedule
    return "ring_gather" if along > 1 and 3 * contracted < 2 * produced else "ring_scatter"
