"""Reads what devices exchange out of a compiled program's text (compiled.as_text()), loops multiplied by their trips.

Shapes, operands, groups of devices and the order of instructions, which is the schedule, are enough for that.
"""

import math
import re
from collections import Counter
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(.*)$")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|\w+_computations?)=(\{[^}]*\}|%?[\w.\-]+)")
NAME = re.compile(r"[\w.\-]+")
TRIPS = re.compile(r'known_trip_count[^}]*?"n":"?(\d+)')
# groups of devices: listed, counted through a transposed range, or along axes of a mesh that is counted through so
LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
COUNTED = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
ALONG_AXES = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? ?\{([^}]*)\}"
)
PAIR = re.compile(r"\{(\d+),(\d+)\}")


class Collective(NamedTuple):
    """One array that a collective of a program carries, as one device sees it."""

    kind: str  # one of KINDS, synchronous or not
    elements: int  # of the array that the device hands in
    operand_bytes: int  # what the device hands in, once
    result_bytes: int  # what it gets back, once
    times: int  # how often it runs
    group: tuple[int, ...]  # devices that exchange, of the first such group; of a permute, those of one pair
    origin: str  # the JAX operation that it comes from

    @property
    def received(self) -> float:
        """Bytes that a device receives, all times together: for a sum, around a ring."""
        if self.kind == "all-reduce":
            each = 2 * (1 - 1 / len(self.group)) * self.operand_bytes
        elif self.kind == "collective-permute":
            each = self.operand_bytes
        else:
            each = abs(self.result_bytes - self.operand_bytes)
        return each * self.times


class Instruction(NamedTuple):
    """One line of a program: what it makes, of which type, by what operation on what."""

    name: str
    shape: str
    opcode: str
    operands: list[str]
    attributes: str

    @property
    def called(self) -> list[str]:
        """The computations that it runs."""
        return NAME.findall(" ".join(CALLED.findall(self.attributes)))


def collectives(text: str) -> list[Collective]:
    """Every collective of a compiled program, once for each place that it stands in."""
    computations, entry = parse(text)
    times = _count_runs(computations, entry)
    found = []
    for name, instructions in computations.items():
        shapes = {instruction.name: instruction.shape for instruction in instructions}
        for instruction in instructions:
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS or not times[name]:
                continue
            operands = [array for operand in instruction.operands for array in _arrays(shapes[operand])]
            results = _arrays(instruction.shape)
            if instruction.opcode != kind and kind != "all-reduce":  # a start's type holds the operands as well
                results = results[len(operands) :]
            origin = re.search(r'op_name="([^"]*)"', instruction.attributes)
            rest = times[name], _group(instruction.attributes), origin[1] if origin else ""
            found += [
                Collective(kind, size, size * item, got * got_item, *rest)
                for (size, item), (got, got_item) in zip(operands, results)
            ]
    return found


def _group(attributes: str) -> tuple[int, ...]:
    """The first of a collective's groups of devices; ValueError where they are written in a way not known here."""
    if "source_target_pairs" in attributes:
        pairs = PAIR.findall(attributes[attributes.index("source_target_pairs") :])
        return next((int(a), int(b)) for a, b in pairs if a != b)
    if found := LISTED.search(attributes):
        return _numbers(found[1])
    if found := COUNTED.search(attributes):
        return tuple(_count(found[2], found[3]).reshape(_numbers(found[1]))[0].tolist())
    if found := ALONG_AXES.search(attributes):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        devices = _count(found[2] or ",".join(axes.values()), found[3]).reshape([*map(int, axes.values())])
        along = tuple(slice(None) if f"'{axis}'" in found[4] else 0 for axis in axes)
        return tuple(devices[along].ravel().tolist())
    raise ValueError(f"groups of devices written in a way that is not known here: {attributes[:200]}")


def _count(sizes: str, order: str | None) -> np.ndarray:
    """0, 1, 2, ... in an array of these sizes, its dimensions then put into the order, if there is one."""
    counted = np.arange(math.prod(_numbers(sizes))).reshape(_numbers(sizes))
    return counted.transpose(_numbers(order)) if order else counted


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, filter(None, text.split(","))))


def hidden_transfers(text: str) -> list[tuple[str, int]]:
    """For every asynchronous collective, its kind and how many products the schedule runs between start and done."""
    transfers = []
    computations, _ = parse(text)
    for instructions in computations.values():
        order = {instruction.name: index for index, instruction in enumerate(instructions)}
        for done in instructions:
            kind = done.opcode.removesuffix("-done")
            if kind in KINDS and kind != done.opcode:
                between = instructions[order[done.operands[0]] + 1 : order[done.name]]
                transfers.append((kind, sum(is_product(each, computations) for each in between)))
    return transfers


def is_product(instruction: Instruction, computations: dict[str, list[Instruction]]) -> bool:
    """Whether it is a matrix product, or a fusion with one in it."""
    if instruction.opcode == "fusion":
        fused = (each for name in instruction.called for each in computations.get(name, ()))
        return "gemm" in instruction.attributes or any(each.opcode == "dot" for each in fused)
    return instruction.opcode == "dot" or (instruction.opcode == "custom-call" and "matmul" in instruction.attributes)


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The instructions of every computation, in their order, and the entry's name."""
    computations, current, entry = {}, None, ""
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif current is not None and (match := INSTRUCTION.match(line)):
            name, shape, opcode, operands, attributes = match.groups()
            # `%a, %b` or, as older versions write it, `f32[8,4]{1,0} %a, ...`
            names = re.findall(r"%([\w.\-]+)", operands) or NAME.findall(operands)
            current.append(Instruction(name, shape, opcode, names, attributes))
    return computations, entry


def _count_runs(computations: dict[str, list[Instruction]], entry: str) -> Counter[str]:
    """How often each computation runs: once where it is called, a loop's body as often as it is known to turn."""
    times: Counter[str] = Counter()

    def visit(name, runs):
        times[name] += runs
        for instruction in computations[name]:
            turns = TRIPS.search(instruction.attributes) if instruction.opcode == "while" else None
            for callee in instruction.called:
                visit(callee, runs * (int(turns[1]) if turns else 1))

    visit(entry, 1)
    return times


def _arrays(shape: str) -> list[tuple[int, int]]:
    """(elements, bytes of one) of every array in a type; by the bits in its name; pred has one byte."""
    arrays = re.findall(r"\b[a-z]+(\d*)\w*\[([\d,]*)\]", shape)
    return [(math.prod(_numbers(sizes)), max(1, int(bits or 8) // 8)) for bits, sizes in arrays]
