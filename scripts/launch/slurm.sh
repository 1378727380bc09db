#!/usr/bin/env bash
# longvid fit under SLURM. A job that is pre-empted or runs out of time finishes its step, saves, goes back to the queue
# and continues from there.
#
#   RUN_DIR=runs/a sbatch --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 --time 24:00:00 \
#       scripts/launch/slurm.sh --config A.yaml --config configs/deepspeed/zero2.yaml
#
# One task for each GPU. SLURM sends SIGTERM to the tasks five minutes before the time is over.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
set -euo pipefail

readonly STOPPED=143 # what longvid fit exits with after a SIGTERM

for name in RUN_DIR SLURM_JOB_ID SLURM_NNODES SLURM_NTASKS_PER_NODE; do
    if [[ -z ${!name:-} ]]; then
        echo "longvid: slurm.sh: $name is not set; call it as RUN_DIR=runs/a sbatch --nodes N --ntasks-per-node M $0" >&2
        exit 2
    fi
done

continued=()
if compgen -G "$RUN_DIR/checkpoints/*.ckpt" >/dev/null; then
    continued=(--ckpt_path last)
fi
# srun reports on its tasks in many lines: the rank that failed writes status and cause here, on the first host.
LONGVID_CAUSE_FILE=$(mktemp)
export LONGVID_CAUSE_FILE
trap 'rm -f "$LONGVID_CAUSE_FILE"' EXIT
status=0
srun --kill-on-bad-exit=1 longvid fit "$@" --run_dir "$RUN_DIR" --trainer.num_nodes "$SLURM_NNODES" \
    --trainer.devices "$SLURM_NTASKS_PER_NODE" "${continued[@]}" || status=$?
if [[ -s $LONGVID_CAUSE_FILE ]]; then
    read -r status cause <"$LONGVID_CAUSE_FILE"
    echo "longvid: $cause" >&2
fi
if [[ $status == "$STOPPED" ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
