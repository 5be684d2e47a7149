"""Closed formulas for a training step before anything is started: work, memory, traffic and time, in plain Python.

hardware.py knows the machines, work.py parameters and products, memory.py the bytes that a device holds, traffic.py the
bytes that it exchanges and reads, time.py what a step takes. No arrays and no devices: a plan for 1024 GPUs takes
milliseconds.
"""

from weathermixer.cost.hardware import HARDWARE, Hardware, find_device, find_hardware
from weathermixer.cost.work import executed_flops, forward_flops, parameter_parts, parameters, train_flops

__all__ = [
    "HARDWARE",
    "Hardware",
    "executed_flops",
    "find_device",
    "find_hardware",
    "forward_flops",
    "parameter_parts",
    "parameters",
    "train_flops",
]
