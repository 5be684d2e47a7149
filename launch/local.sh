#!/usr/bin/env bash
# Several processes of one run on this machine, as if they were several hosts:
#
#   launch/local.sh 2 python -m experiments.train --config=quickstart --workdir=runs/two
#
# Every process learns its place from three variables (weathermixer/parallel/distributed.py) and takes its share of the
# GPUs. On a machine without GPUs, JAX_NUM_CPU_DEVICES=4 gives each of them four simulated devices. Ctrl-C and SIGTERM
# reach all. Where one fails, the others are sent SIGTERM, and its exit status is this script's. What has not ended
# GRACE_SECONDS (120) later, or at a second Ctrl-C, is killed. None outlives this script, however that ends.
set -euo pipefail
set -m # a process and what it starts are a group, and end together

if (($# < 2)) || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
  echo -e "usage: $0 NUMBER_OF_PROCESSES COMMAND [ARGUMENT ...], as\n  $0 2 python -m experiments.train --config=quickstart --workdir=runs/two" >&2
  exit 2
fi
export JAX_NUM_PROCESSES=$1
shift
port=$(python -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
export JAX_COORDINATOR_ADDRESS=${JAX_COORDINATOR_ADDRESS:-localhost:$port}
grace=${GRACE_SECONDS:-120}

gpus=0
if [[ ${JAX_PLATFORMS:-} != cpu ]] && command -v nvidia-smi >/dev/null; then
  gpus=$(tr ',' '\n' <<<"${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader)}" | grep -c .) || true
fi
if ((gpus % JAX_NUM_PROCESSES)); then
  echo "$gpus GPUs cannot be shared by $JAX_NUM_PROCESSES processes evenly" >&2
  exit 2
fi
share=$((gpus / JAX_NUM_PROCESSES))

running=()
# send SIGNAL: to every group that is left; false where none is
send() {
  local pid any=1
  for pid in ${running[@]+"${running[@]}"}; do
    kill "-$1" -- "-$pid" 2>/dev/null && any=0
  done
  return "$any"
}
# stop: asks all to end, and notes when to stop asking; the second time asks no longer
deadline=
stop() {
  if [[ $deadline ]]; then deadline=0; else deadline=$((SECONDS + grace)); fi
  send TERM || true
}
trap stop INT TERM HUP

for ((i = 0; i < JAX_NUM_PROCESSES; i++)); do
  if ((gpus)); then
    JAX_LOCAL_DEVICE_IDS=$(seq -s, $((i * share)) $((i * share + share - 1)))
    export JAX_LOCAL_DEVICE_IDS
  fi
  JAX_PROCESS_ID=$i PYTHONUNBUFFERED=1 "$@" &
  running+=($!)
done

# Ends what is left where this script was killed: it sees this script's end of a pipe close without a word.
end_what_is_left() {
  trap '' INT TERM HUP
  read -r _ && return
  send TERM || return 0
  for ((i = 0; i < grace; i++)); do
    sleep 1
    send 0 || return 0
  done
  send KILL || true
}
exec 9> >(end_what_is_left)

status=0
while ((${#running[@]})); do
  left=()
  for pid in "${running[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      left+=("$pid")
      continue
    fi
    code=0
    wait "$pid" || code=$?
    if ((code && !status)); then
      status=$code
      kill -KILL -- "-$pid" 2>/dev/null || true # what it started
      [[ $deadline ]] || stop
    fi
  done
  running=(${left[@]+"${left[@]}"})
  if [[ $deadline ]] && ((SECONDS >= deadline)); then send KILL || true; fi
  sleep 0.2 9>&- &
  wait $! || true # a signal ends the wait at once
done
echo ended >&9
exit "$status"
