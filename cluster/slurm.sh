#!/usr/bin/env bash
# A run on Slurm's nodes: sbatch cluster/slurm.sh --config demo --out /shared/runs/demo
# Everything after the script's name goes to `inril train`. The run directory is on storage that all nodes share.
#
# Two minutes before the time limit, and when Slurm takes the nodes back, Slurm signals this script alone (B:), and the
# script passes SIGTERM to the driver alone: were every process signalled, Ray would be gone before the checkpoint is
# written. The driver ends its iteration, saves and exits, and the job queues again; the same command resumes.
#SBATCH --job-name=inril
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
# For a learner on a GPU add --gpus-per-node=1. --exclusive, because `ray symmetric-run` ends with `ray stop`, which ends
# every Ray process of yours on the node.
set -euo pipefail

[[ " $* " == *" --out /"* ]] || {
  echo "slurm.sh: give --out with an absolute path on storage that all nodes share" >&2
  exit 2
}

# One token for this cluster: without it anyone who reaches the nodes could run code as you. srun hands it on.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

# This script runs on the first node. Ray's head and the driver do as well, so that they can be signalled from here.
address="$(hostname --ip-address | cut -d' ' -f1):$((20000 + SLURM_JOB_ID % 10000))"
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT

# shellcheck disable=SC2016 # expanded by the inner shell, on the head node
srun ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus="$SLURM_CPUS_PER_TASK" --dashboard-host=127.0.0.1 -- \
  bash -c 'RAY_ADDRESS=$0 inril train "${@:2}" & echo $! >"$1/driver"; wait $!; echo $? >"$1/status"; exit "$(<"$1/status")"' \
  "$address" "$here" "$@" &
step=$!

asked=
trap 'asked=yes; kill -TERM "$(<"$here/driver")" || kill -TERM "$step"' TERM # without a driver there is nothing to save

while kill -0 "$step" 2>/dev/null && [[ ! -s $here/status ]]; do sleep 1; done
status=$(cat "$here/status" 2>/dev/null || echo 1)
if [[ $asked ]] && ((status != 0)); then
  scontrol requeue "$SLURM_JOB_ID" # now: the other nodes may take a minute to see that the head is gone
fi
wait "$step" || true
exit "$status"
