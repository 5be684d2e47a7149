"""Measures the parts that decide a run's speed, each beside what it could be:

  python -m experiments.benchmark loader     reading: this loader, xarray, and a plain read of the same bytes
  python -m experiments.benchmark train      the training step
  python -m experiments.benchmark scaling    the training step over meshes

Each has its own --help.
"""

import importlib
import sys

BENCHMARKS = ("loader", "train", "scaling")


def main(argv: list[str]) -> None:
    """Runs the benchmark that the first argument names; prints what there is where it names none."""
    if argv[:1] and argv[0] in BENCHMARKS:
        importlib.import_module(f"experiments.benchmark.{argv[0]}").main(argv[1:])
    else:
        print(__doc__)
        if argv[:1] not in ([], ["--help"], ["-h"]):
            sys.exit(f"no benchmark {argv[0]!r}; there are {', '.join(BENCHMARKS)}")


if __name__ == "__main__":
    main(sys.argv[1:])
