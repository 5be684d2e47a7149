"""Packaging of WeatherMixer; tool settings are in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "weathermixer" / "__init__.py").read_text()).group(1)

DASK = ["distributed>=2025.2"]
REGRID = ["xarray-regrid>=0.4.2"]
NOTEBOOKS = ["nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29"]
TRACKERS = ["wandb>=0.25", "mlflow-skinny>=3.5"]
GRIB = ["cfgrib>=0.9.15", "eccodes>=2.40"]
CLOUD = ["fsspec>=2025.2", "aiohttp>=3.10", "gcsfs>=2025.2", "s3fs>=2025.2"]

setup(
    name="weathermixer",
    version=VERSION,
    description="All-MLP global weather models in JAX, trained on a (data, domain, tensor) mesh of any shape",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="weather forecast jax flax mlp-mixer model-parallel zarr",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Atmospheric Science",
    ],
    packages=find_packages(include=["weathermixer", "weathermixer.*", "experiments", "experiments.*"]),
    package_data={"experiments": ["report.html"]},
    python_requires=">=3.11",
    install_requires=[
        # 0.11.0 and 0.11.1 have quadratic loops on the CPU and drop explicit mesh axes of size one
        "jax>=0.10.2,!=0.11.0,!=0.11.1",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.4",
        "tensorstore>=0.1.86",
        "zarr>=3.1.6",
        "numcodecs>=0.14",
        "google-crc32c>=1.5",
        "xarray>=2026.2",
        "pandas>=2.2.3",
        "dinosaur>=1.5.1",
        "jaxtyping>=0.3.3",
        "pydantic>=2.10",
        "ml_collections>=1.1.0",
        "numpy>=2.0",
        "netCDF4>=1.7.2",
        "pint>=0.25",
        "matplotlib>=3.10",
        "tensorboardX>=2.6.4",
        "tqdm>=4.67",
    ],
    extras_require={
        "gpu": ["jax[cuda13]"],
        "gpu-cuda12": ["jax[cuda12]"],
        "notebooks": NOTEBOOKS,
        "grib": GRIB,
        "cloud": CLOUD,
        "dask": DASK,
        "regrid": REGRID,
        "maps": ["cartopy>=0.25"],  # coastlines, of Natural Earth's files where it has fetched them
        "trackers": TRACKERS,
        "test": [
            "pytest>=8.4",
            "pytest-timeout>=2.4",
            "pytest-xdist>=3.8",
            "beartype>=0.21",
            "ruff>=0.15",
            "PyYAML>=6.0",
            "playwright>=1.50",  # drives a browser that is there, as Debian's chromium; brings none
            "dask-jobqueue>=0.9",
            "moto>=5.1",
            "flask>=3.0",  # with flask-cors what moto's server needs; its [server] extra brings forty packages more
            "flask-cors>=4.0",
            "aiobotocore[boto3]>=3.0",  # the boto3 that s3fs's aiobotocore goes with: pip does not find it by itself
            *GRIB,
            *CLOUD,
            *DASK,
            *TRACKERS,
            *REGRID,
            *NOTEBOOKS,
        ],
    },
)
