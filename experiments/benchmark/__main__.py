"""Measures the parts that decide a run's speed, each beside what it could be:

  python -m experiments.benchmark loader     reading: this loader, xarray, and a plain read of the same bytes
  python -m experiments.benchmark prepare    preparing an archive, beside the disk and the cores
  python -m experiments.benchmark train      the training step
  python -m experiments.benchmark scaling    the training step over meshes
  python -m experiments.benchmark forecast   a forecast and its file, beside computing and writing alone

Each has its own --help.
"""

import importlib
import sys

from experiments import command_line, ends

BENCHMARKS = ("loader", "prepare", "train", "scaling", "forecast")


def make_parser() -> command_line.Parser:
    """The choice among the benchmarks, which have parsers of their own."""
    parser = command_line.make_parser("experiments.benchmark", __doc__)
    parser.add_argument("benchmark", choices=BENCHMARKS, help="which one; its own options follow")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark that the first argument names, with the arguments that follow."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    benchmark = make_parser().parse_args(arguments[:1]).benchmark
    importlib.import_module(f"experiments.benchmark.{benchmark}").main(arguments[1:])


if __name__ == "__main__":
    ends.run(main)
