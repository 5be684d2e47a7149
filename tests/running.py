"""Runs of the training program as processes of their own, small ones, which tests then disturb."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import xarray as xr

from tests.archives import make_archive, make_grid
from weathermixer.fields.variables import ChannelSet

ROOT = Path(__file__).parent.parent
TIMES = np.datetime64("2000-01-01T00", "ns") + np.arange(40) * np.timedelta64(6, "h")
CONFIG = """
from experiments.configs import base

def get_config():
    config = base.get_config()
    config.data.train, config.data.validation = ("2000-01-01", "2000-01-07"), ("2000-01-08", "2000-01-09")
    config.data.test = ("2000-01-08", "2000-01-10")
    config.mesh.data = 1
    config.model.update(patch=(1, 4), embed=16, token_hidden=16, embed_hidden=16, blocks=1)
    config.training.update(batch_size=4, steps=40, log_every=1, checkpoint_every=5)
    config.evaluation.update(every=0, batches=1)
    return config
"""


def make_data(folder: Path) -> Path:
    """A new folder with config.py, archive (ten days on 8 x 16 points, four shards) and source.zarr, two channels."""
    folder.mkdir(exist_ok=True)
    channels = ChannelSet.from_names(["2m_temperature", "geopotential_500", "geopotential_850"], ["land_sea_mask"])
    rng = np.random.default_rng(0)
    fields = rng.standard_normal((len(TIMES), 3, 8, 16)).cumsum(axis=0).astype(np.float32)
    static = {"land_sea_mask": rng.random((8, 16)).astype(np.float32)}
    make_archive(folder / "archive", fields, times=TIMES, channel_set=channels, static=static, dtype="float16")
    grid = make_grid(8, 16)
    dims = dict(time=TIMES, latitude=grid.latitude, longitude=grid.longitude)
    variables = {"2m_temperature": 280 + fields[:, 0], "10m_u_component_of_wind": fields[:, 1]}
    source = xr.Dataset({name: (tuple(dims), values) for name, values in variables.items()}, dims)
    source.to_zarr(folder / "source.zarr", zarr_format=2)
    (folder / "config.py").write_text(CONFIG)
    return folder


def train(data: Path, workdir: Path, *options: str, processes: int = 1, before: str = "", **environment: str):
    """Starts the training program, in as many processes as launch/local.sh starts; `before` is a line of shell."""
    command = [sys.executable, "-u", "-m", "experiments.train", f"--config={data / 'config.py'}"]
    command += [
        f"--workdir={workdir}",
        *([] if any("data.source" in o for o in options) else [f"--data={data}/archive"]),
    ]
    command = ["bash", "-c", f'{before}\nexec "$@"', "bash", *command, *options]
    if processes > 1:
        command = ["bash", str(ROOT / "launch/local.sh"), str(processes), *command]
    environment = os.environ | {
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        **environment,
    }
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, env=environment, **pipes)


def read_until(run, text: str) -> str:
    """What a process says until it has said something."""
    said = ""
    while text not in said:
        line = run.stdout.readline()
        assert line, f"{text!r} was not said in:\n{said}"
        said += line
    return said
