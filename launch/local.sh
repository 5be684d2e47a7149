#!/usr/bin/env bash
# Several processes of one run on this machine, as if they were several hosts:
#
#   launch/local.sh 2 python -m experiments.train --config=quickstart --workdir=runs/two
#
# Every process learns its place from three variables (weathermixer/parallel/distributed.py) and takes its share of the GPUs. On a
# machine without GPUs, JAX_NUM_CPU_DEVICES=4 gives each of them four simulated devices. Ctrl-C and SIGTERM reach all;
# where one fails, the others are stopped, and its exit status is this script's. Needs bash 5.1.
set -euo pipefail

if (($# < 2)) || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: $0 NUMBER_OF_PROCESSES COMMAND [ARGUMENT ...]" >&2
  exit 2
fi
export JAX_NUM_PROCESSES=$1
shift
port=$(python -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
export JAX_COORDINATOR_ADDRESS=${JAX_COORDINATOR_ADDRESS:-localhost:$port}

gpus=0
if [[ ${JAX_PLATFORMS:-} != cpu ]] && command -v nvidia-smi >/dev/null; then
  gpus=$(tr ',' '\n' <<<"${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader)}" | grep -c .) || true
fi
if ((gpus % JAX_NUM_PROCESSES)); then
  echo "$gpus GPUs cannot be shared by $JAX_NUM_PROCESSES processes evenly" >&2
  exit 2
fi
share=$((gpus / JAX_NUM_PROCESSES))

processes=()
for ((i = 0; i < JAX_NUM_PROCESSES; i++)); do
  ((gpus)) && export JAX_LOCAL_DEVICE_IDS=$(seq -s, $((i * share)) $((i * share + share - 1)))
  JAX_PROCESS_ID=$i PYTHONUNBUFFERED=1 "$@" &
  processes+=($!)
done
trap 'kill -TERM "${processes[@]}" 2>/dev/null || true' INT TERM

status=0
for ((left = JAX_NUM_PROCESSES; left > 0; )); do
  code=0
  wait -n -p finished || code=$?
  [[ ${finished:-} ]] || continue # it was a signal, which the trap has passed on
  ((left--)) || true
  if ((code && !status)); then
    status=$code
    kill -TERM "${processes[@]}" 2>/dev/null || true
  fi
done
exit "$status"
