"""Writes a trained run as one folder to hand on: the parameters that forecast, and what forecasts need; no archive.

  python -m experiments.export RUN DEST [--step=N]

RUN is a run's workdir. DEST is opened as RUN is: python -m experiments.forecast DEST --data=analysis.nc
"""

from experiments import command_line, ends
from weathermixer import export_run, open_run
from weathermixer.parallel import distributed


def make_parser() -> command_line.Parser:
    parser = command_line.make_parser("experiments.export", __doc__)
    parser.add_argument("run", metavar="RUN", help="folder of a trained run")
    parser.add_argument("dest", metavar="DEST", help="folder to make")
    parser.add_argument("--step", type=command_line.integer(0), metavar="N", help="checkpoint; default: the last")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = make_parser().parse_args(arguments)
    distributed.initialize()
    run = open_run(options.run, step=options.step)
    print(f"step {run.step} of {options.run} in {export_run(run, options.dest)}", flush=True)


if __name__ == "__main__":
    ends.run(main)
