"""How long a netCDF 3 file must be: the netCDF library opens one that is cut off, and reads zeros past its end."""

import math
import os
import struct
from collections.abc import Iterator

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8, 7: 1, 8: 2, 9: 4, 10: 8, 11: 8}  # bytes of a value by its type's number


def check_length(path: str) -> None:
    """Raises EOFError where a netCDF 3 file (CDF-1, -2 or -5) is shorter than its header says; others pass.

    The format is in the NetCDF User's Guide, "File Format Specifications". Raises struct.error or LookupError where the
    header itself is cut off or damaged.
    """
    with open(path, "rb") as file:
        if file.read(3) != b"CDF":
            return
        version = file.read(1)[0]
        count, offset = ">q" if version == 5 else ">i", ">i" if version == 1 else ">q"

        def number(kind: str) -> int:
            return struct.unpack(kind, file.read(struct.calcsize(kind)))[0]

        def skip(size: int) -> None:
            file.seek(-(-size // 4) * 4, 1)

        def entries() -> Iterator[None]:
            """Those of a list, each read up to the end of its name."""
            number(">i")
            for _ in range(number(count)):
                yield skip(number(count))

        def skip_attributes() -> None:
            for _ in entries():
                size = _SIZES[number(">i")]
                skip(size * number(count))

        records = number(count)
        dimensions = [number(count) for _ in entries()]  # 0: the record dimension
        skip_attributes()
        fixed, recorded = [], []  # (begin, bytes) of each variable, or of its part of a record
        for _ in entries():
            shape = [dimensions[number(count)] for _ in range(number(count))]
            skip_attributes()
            size = _SIZES[number(">i")] * math.prod(length for length in shape if length)
            number(count)
            (recorded if 0 in shape else fixed).append((number(offset), size))
    # the parts of a record are padded to four bytes, unless there is only one
    record = sum(-(-size // 4) * 4 for _, size in recorded) if len(recorded) > 1 else sum(size for _, size in recorded)
    ends = [begin + size for begin, size in fixed]
    ends += [begin + (records - 1) * record + size for begin, size in recorded if records > 0]
    if (there := os.path.getsize(path)) < (whole := max(ends, default=0)):
        raise EOFError(f"{there} of {whole} bytes")
