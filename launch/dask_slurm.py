"""Prepares an archive on nodes of a SLURM cluster: dask-jobqueue submits jobs of workers, shards are given out here.

  python -m launch.dask_slurm SOURCE [SOURCE ...] DEST [options]

The arguments are those of experiments.prepare. Source and archive lie where all nodes see them. The jobs' queue, size
and number stand in this file. Needs pip install 'weathermixer[dask]' dask-jobqueue.

Example:
  python -m launch.dask_slurm era5.zarr /scratch/me/era5.archive --channels=era5 --crop-south-pole --domain=8

Run it where a process may live for some hours, in a small job of its own for one. Jobs that end early are no harm; when
this process ends early, the same command goes on.
"""

import contextlib
import shutil
from collections.abc import Iterator

from experiments import ends, prepare

JOBS = 4  # nodes at a time


@contextlib.contextmanager
def open_cluster(name: str) -> Iterator[str]:
    """A scheduler here and jobs of workers, as long as the context; its address."""
    if not shutil.which("sbatch"):
        raise ValueError("there is no sbatch on the PATH: run this where jobs are submitted to SLURM")
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise ValueError(f"{error}: pip install 'weathermixer[dask]' dask-jobqueue") from None
    with SLURMCluster(
        # ---- your cluster --------------------------------------------------------------------------------------------
        queue="cpu",
        cores=32,
        processes=32,  # one worker for each core
        memory="128GB",  # of all; a worker's part has to be a third more than what --dry-run says that a worker takes
        walltime="08:00:00",
        job_script_prologue=[],  # ["source /scratch/me/venv/bin/activate"]
        # --------------------------------------------------------------------------------------------------------------
    ) as cluster:
        cluster.scale(jobs=JOBS)
        yield cluster.scheduler_address


def main(arguments: list[str] | None = None) -> int:
    parser = prepare.make_parser("launch.dask_slurm", __doc__)
    options = parser.parse_args(arguments)
    if options.dask or options.workers:
        parser.error("--dask, --workers: the jobs that this starts make the archive; leave both out")
    options.dask = f"{JOBS} jobs of SLURM"
    return prepare.run(options, open_cluster)


if __name__ == "__main__":
    ends.run(main)
