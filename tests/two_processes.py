"""Run by test_distributed.py in two processes: joins, adds over both, saves, stops with the other one on SIGTERM."""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from weathermixer.parallel.distributed import describe, initialize, mind_signals, preempted
from weathermixer.parallel.mesh import make_mesh, sharding, use_mesh
from weathermixer.training.checkpoint import Checkpoints
from weathermixer.training.phases import Phases
from weathermixer.training.telemetry import RunLog


def say(text: str) -> None:
    sys.stdout.write(text + "\n")  # in one piece, so that two processes' lines do not mix
    sys.stdout.flush()


def main(workdir: str) -> None:
    initialize()
    mind_signals()
    mesh = make_mesh(1, 4, 1)
    say(f"joined: {describe()}")
    with (
        use_mesh(mesh),
        RunLog(workdir, Phases(), last_step=1_000_000, every=100_000) as log,
        Checkpoints(f"{workdir}/checkpoints", keep=2, say=lambda text: None) as checkpoints,
    ):
        values = np.arange(8, dtype=np.float32)
        x = jax.make_array_from_callback((8,), sharding(mesh, "lat"), lambda box: values[box])
        add = jax.jit(lambda x: (x + 1, jnp.sum(x)))
        for step in range(1, 1_000_000):
            x, total = add(x)
            log.step(step, {"total": total})
            assert float(total) == 28 + 8 * (step - 1)
            if preempted(step):
                checkpoints.save(step, {"x": x}, {})
                say(f"stopped at {step}")
                return
            if step == 2:
                checkpoints.save(step, {"x": x}, {})
                checkpoints.wait()
                say("saved")
            jax.block_until_ready(x)


if __name__ == "__main__":
    main(sys.argv[1])
