"""Reads what devices exchange out of a compiled program's text (compiled.as_text()), loops multiplied by their trips.

Replica groups are written differently from one jax to the next and are not read: what is told is what one device hands
in and gets back. Shapes, operands and the order of instructions, which is the schedule, are enough for that.
"""

import dataclasses
import re
from collections.abc import Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
ITEM_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8}

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(.*)$")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
TRIPS = re.compile(r'known_trip_count[^}]*?"n":"?(\d+)')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program, as one device sees it.

    Attributes:
      kind: one of KINDS, synchronous or not.
      operand_bytes, result_bytes: what the device hands in and gets back, once.
      times: how often it runs.
      largest: elements of the largest array that it hands in or gets back.
      origin: the JAX operation that it comes from.
    """

    kind: str
    operand_bytes: int
    result_bytes: int
    times: int
    largest: int
    origin: str

    def received(self, devices: int) -> float:
        """Bytes that a device receives, all times together, in a group of so many devices: a ring's, for a sum."""
        if self.kind == "all-reduce":
            each = 2 * (devices - 1) / devices * self.operand_bytes
        elif self.kind == "collective-permute":
            each = self.operand_bytes
        else:
            each = abs(self.result_bytes - self.operand_bytes)
        return each * self.times


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str


def collectives(text: str) -> list[Collective]:
    """Every collective of a compiled program, once for each place that it stands in."""
    computations, entry = _parse(text)
    times = _count_runs(computations, entry)
    found = []
    for name, instructions in computations.items():
        shapes = {instruction.name: instruction.shape for instruction in instructions}
        for instruction in instructions:
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS or not times.get(name, 0):
                continue
            operands = [array for operand in instruction.operands for array in _arrays(shapes[operand])]
            results = _arrays(instruction.shape)
            if instruction.opcode != kind and kind != "all-reduce":  # a start's type holds the operands as well
                results = results[len(operands) :][: len(operands)]
            origin = re.search(r'op_name="([^"]*)"', instruction.attributes)
            found.append(
                Collective(
                    kind,
                    sum(size * item for size, item in operands),
                    sum(size * item for size, item in results),
                    times[name],
                    max(size for size, _ in operands + results),
                    origin[1] if origin else "",
                )
            )
    return found


def hidden_transfers(text: str) -> list[tuple[str, int]]:
    """For every asynchronous collective, its kind and how many products the schedule runs between start and done."""
    transfers = []
    for instructions in _parse(text)[0].values():
        order = {instruction.name: index for index, instruction in enumerate(instructions)}
        for done in instructions:
            kind = done.opcode.removesuffix("-done")
            if kind in KINDS and kind != done.opcode:
                between = instructions[order[done.operands[0]] + 1 : order[done.name]]
                transfers.append((kind, sum(map(_is_product, between))))
    return transfers


def _is_product(instruction: _Instruction) -> bool:
    if instruction.opcode == "fusion":
        return "gemm" in instruction.attributes
    return instruction.opcode == "dot" or (instruction.opcode == "custom-call" and "matmul" in instruction.attributes)


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """The instructions of every computation, in their order, and the entry's name."""
    computations, current, entry = {}, None, ""
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif current is not None and (match := INSTRUCTION.match(line)):
            name, shape, opcode, operands, attributes = match.groups()
            current.append(_Instruction(name, shape, opcode, tuple(_operand_names(operands)), attributes))
    return computations, entry


def _operand_names(operands: str) -> Iterator[str]:
    """Names from `%a, %b` or, as older versions write it, `f32[8,4]{1,0} %a, ...`."""
    yield from re.findall(r"%([\w.\-]+)", operands) or re.findall(r"[\w.\-]+", operands)


def _count_runs(computations: dict[str, list[_Instruction]], entry: str) -> dict[str, int]:
    """How often each computation runs: once where it is called, a loop's body as often as it is known to turn."""
    times: dict[str, int] = {}

    def visit(name, runs):
        times[name] = times.get(name, 0) + runs
        for instruction in computations[name]:
            turns = TRIPS.search(instruction.attributes) if instruction.opcode == "while" else None
            called = CALLED.findall(instruction.attributes)
            for branches in BRANCHES.findall(instruction.attributes):
                called += re.findall(r"[\w.\-]+", branches)
            for callee in called:
                visit(callee, runs * (int(turns[1]) if turns else 1))

    visit(entry, 1)
    return times


def _arrays(shape: str) -> list[tuple[int, int]]:
    """(elements, bytes of one) of every array in a type; ITEM_BYTES or the bits in its name."""
    arrays = []
    for dtype, dimensions in re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\]", shape):
        size = 1
        for dimension in filter(None, dimensions.split(",")):
            size *= int(dimension)
        bits = re.search(r"\d+", dtype)
        arrays.append((size, ITEM_BYTES.get(dtype) or max(1, int(bits[0]) // 8)))
    return arrays
