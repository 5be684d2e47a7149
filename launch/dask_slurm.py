"""Prepares an archive on nodes of a SLURM cluster: dask-jobqueue submits jobs of workers, shards are given out here.

  pip install 'weathermixer[dask]' dask-jobqueue
  python launch/dask_slurm.py era5.zarr /scratch/me/era5.archive --channels=era5 --crop-south-pole --domain=8

The arguments are those of experiments.prepare. Source and archive lie where all nodes see them. Run it where a process
may live for some hours, in a small job of its own for one. Jobs that end early are no harm; when this process ends
early, the same command goes on.
"""

import sys

from dask_jobqueue import SLURMCluster

from experiments import ends, prepare

JOBS = 4  # nodes at a time


def main(arguments: list[str] | None = None) -> int:
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
        arguments = sys.argv[1:] if arguments is None else arguments
        return prepare.main([*arguments, f"--dask={cluster.scheduler_address}"])


if __name__ == "__main__":
    ends.run(main)
