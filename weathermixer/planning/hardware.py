"""The machines: one small table of peaks, bandwidths and link rates, every entry overridable.

Rates are per device and per direction, in SI units (bytes/s, FLOP/s); `achieved_...` are the shares of the datasheet's
peaks that are reached within a training step, where products and memory share the device's power.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Hardware:
    """One accelerator in its node: what it computes, holds, moves and exchanges."""

    name: str
    bf16_flops: float | int  # dense peak, FLOP/s
    tf32_flops: float | int  # dense peak of float32 products as jax runs them by default, FLOP/s
    fp8_flops: float | int  # dense peak of products of 8-bit floats, FLOP/s; 0 where there are none
    memory_bytes: float | int
    memory_rate: float | int  # peak, bytes/s
    node_rate: float | int  # to the devices of the same node, bytes/s each way
    network_rate: float | int  # to other nodes, bytes/s each way, this device's share of the node's adapters
    node_size: int = 8  # devices per node
    read_rate: float | int = 20e9  # from storage into one node, bytes/s: an assumption about the site, override it
    achieved_products: float | int = 0.74  # of the peak in FLOP/s, by large products
    achieved_copies: float | int = 0.8875  # of memory_rate, by the optimizer
    achieved_elementwise: float | int = 0.46  # of memory_rate, by the fusions between products, which compute as well
    achieved_links: float | int = 0.8  # of node_rate and network_rate, by collectives of 100 MB and more
    latency_seconds: float | int = 2e-5  # of one transfer between two devices
    contention: float | int = 0.5  # seconds that products lose to a second of transfers under them
    gap_seconds: float | int = 5e-3  # of a step in which nothing runs, between kernels

    def peak(self, compute_dtype: str) -> float:
        """Dense peak in FLOP/s of products in `compute_dtype`; ValueError for a dtype without a peak."""
        peaks = {"bfloat16": self.bf16_flops, "float32": self.tf32_flops, "fp8": self.fp8_flops}
        known = sorted(name for name, peak in peaks.items() if peak)
        if compute_dtype not in known:
            raise ValueError(f"compute_dtype={compute_dtype!r} has no peak on {self.name}, choose one of {known}")
        return peaks[compute_dtype]


# Set so that the steps of an H200 and of one to four H100 come out as they were measured (time.py; profiles give
# products, Adam, fusions and gaps apart). Alone, an H200 reaches 796 TFLOP/s (0.805) with an 8192^3 bf16 product and
# copies at 4.26 TB/s (0.8875), an H100 copies at 3.02 TB/s (0.90). The others are given the H200's shares, which is an
# assumption, as are achieved_links and read_rate in every row; latency_seconds is the H100's.
# Peaks: NVIDIA's datasheets (A100 80GB SXM, H100 SXM, H200 SXM, GH200 with 96 GB of HBM3, HGX B200), dense; NVLink's
# 600, 900, 900, 900 and 1800 GB/s count both ways and are halved here; network: one 200 (A100) or 400 Gbit/s adapter
# per device, as in NVIDIA's DGX nodes and in nodes of four GH200. `cpu` is two laptop-sized cores, roughly.
_CPU = dict(node_size=1, read_rate=1e9, latency_seconds=5e-5, gap_seconds=0.0)
_CPU |= dict.fromkeys(("achieved_products", "achieved_copies", "achieved_elementwise", "achieved_links"), 0.7)
_H100 = dict(achieved_products=0.735, achieved_copies=0.90, achieved_elementwise=0.53, gap_seconds=3.5e-3)
HARDWARE = {
    hardware.name: hardware
    for hardware in (
        Hardware("a100", 312e12, 156e12, 0.0, 80e9, 2.039e12, 300e9, 25e9),
        Hardware("h100", 989e12, 494.5e12, 1979e12, 80e9, 3.35e12, 450e9, 50e9, **_H100),
        Hardware("h200", 989e12, 494.5e12, 1979e12, 141e9, 4.8e12, 450e9, 50e9),
        Hardware("gh200", 989e12, 494.5e12, 1979e12, 96e9, 4.0e12, 450e9, 50e9, node_size=4),
        Hardware("b200", 2250e12, 1125e12, 4500e12, 180e9, 8.0e12, 900e9, 50e9),
        Hardware("cpu", 0.1e12, 0.1e12, 0.0, 16e9, 20e9, 5e9, 1e9, **_CPU),
    )
}


def find_hardware(name: str, **overrides: float | int) -> Hardware:
    """The table's entry with some of its numbers replaced; ValueError for a name or a field that it does not have.

    >>> hardware = weathermixer.find_hardware("h200", read_rate=40e9)  # a site with fast storage
    >>> hardware.node_size, hardware.peak("bfloat16") / 1e12
    (8, 989.0)
    """
    if name not in HARDWARE:
        raise ValueError(f"device={name!r} is not in the hardware table, choose one of {sorted(HARDWARE)}")
    fields = {field.name for field in dataclasses.fields(Hardware)} - {"name"}
    unknown = sorted(set(overrides) - fields)
    if unknown:
        raise ValueError(f"hardware has no field {unknown}, choose from {sorted(fields)}")
    return dataclasses.replace(HARDWARE[name], **overrides)


def find_device(device_kind: str) -> Hardware | None:
    """The table's entry of an accelerator by the name that jax gives it ("NVIDIA H200"); None where it has none."""
    words = device_kind.lower().replace("-", " ").split()
    return next((HARDWARE[word] for word in words if word in HARDWARE and word != "cpu"), None)
