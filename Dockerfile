# An image of this package with what it needs on NVIDIA GPUs, for launch/kubernetes.yaml, or for a cluster by Apptainer:
#
#   docker build --tag=weathermixer .
#   docker run --gpus=all --volume=/data:/data weathermixer python -m experiments.train --config=quickstart --workdir=/data/runs/quickstart
#
# --build-arg=EXTRAS=cloud,grib leaves CUDA out.
FROM python:3.13-slim

ARG EXTRAS=gpu,cloud,grib
COPY setup.py pyproject.toml README.md LICENSE /source/
COPY weathermixer /source/weathermixer
COPY experiments /source/experiments
RUN pip install --no-cache-dir "/source[$EXTRAS]" && rm -r /source

# who runs it writes to /data alone
RUN useradd --uid=1000 --create-home weather && mkdir /data && chown 1000 /data
USER 1000
WORKDIR /data
CMD ["python", "-m", "experiments.train", "--help"]
