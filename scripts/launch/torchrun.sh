#!/usr/bin/env bash
# longvid fit on one or several hosts without a scheduler: the same line on each host, with its own NODE_RANK.
#
#   NPROC=8 bash scripts/launch/torchrun.sh --config A.yaml --config configs/deepspeed/zero2.yaml
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=host0 NPROC=8 bash scripts/launch/torchrun.sh --config A.yaml
#
# NPROC is the number of processes on this host, one for each GPU. Everything else is in the configs.
set -euo pipefail

need() {
    if [[ -z ${!1:-} ]]; then
        echo "longvid: torchrun.sh: $1 is not set; $2" >&2
        exit 2
    fi
}

need NPROC "set it to the processes on this host, e.g. NPROC=8"
nodes=${NNODES:-1}
if [[ $nodes != 1 ]]; then
    need NODE_RANK "set it to this host's number, 0 on the first of $nodes"
    need MASTER_ADDR "set it to the name of host 0, the same on all $nodes"
fi

# torchrun ends with a report of its own and status 1, whatever failed: the rank that failed writes status and cause here.
LONGVID_CAUSE_FILE=$(mktemp)
export LONGVID_CAUSE_FILE
trap 'rm -f "$LONGVID_CAUSE_FILE"' EXIT

"${TORCHRUN:-torchrun}" --nnodes "$nodes" --node-rank "${NODE_RANK:-0}" --nproc-per-node "$NPROC" \
    --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${MASTER_PORT:-29500}" \
    --module longvid_train.cli fit "$@" --trainer.num_nodes "$nodes" --trainer.devices "$NPROC" &
readonly job=$!
trap 'kill -TERM "$job" 2>/dev/null || true' TERM INT
status=0
wait "$job" || status=$?
while kill -0 "$job" 2>/dev/null; do # a signal ended the wait, not the job
    status=0
    wait "$job" || status=$?
done
if [[ -s $LONGVID_CAUSE_FILE ]]; then
    read -r status cause <"$LONGVID_CAUSE_FILE"
    echo "longvid: $cause" >&2
fi
exit "$status"
