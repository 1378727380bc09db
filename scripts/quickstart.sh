#!/usr/bin/env bash
# From nothing to a trained long-video model on two CPU cores: set up, render a small world of real mp4 files, train the
# three stages of a nano LLaMA-VID on it, ask the result about a video it has not seen, write quickstart/report.html.
# Run it again and it goes on where it stopped; delete quickstart/ to start over.
#
#   bash scripts/quickstart.sh                                      one process
#   bash scripts/quickstart.sh --strategy zero2 --devices cpu:2     two processes, DeepSpeed ZeRO-2
#   bash scripts/quickstart.sh --strategy zero2 --devices gpu:8     the same on eight GPUs
#   --strategy    ddp, or a ZeRO overlay of configs/deepspeed: zero1, zero2, zero3, zero2_offload ...
#   --devices     cpu:N or gpu:N; an optimiser step has the same rows whatever N is
#   --steps N     at most N optimiser steps a stage: a look at the machinery, not a trained model
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mistake() {
    echo "quickstart: $1" >&2
    exit 2
}
strategy="" devices=cpu:1 steps=""
while (($#)); do
    case $1 in
        --strategy | --devices | --steps) [[ $# -ge 2 ]] || mistake "$1 needs a value" ;;&
        --strategy) strategy=$2 ;;
        --devices) devices=$2 ;;
        --steps) steps=$2 ;;
        -h | --help)
            sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
            exit 0
            ;;
        *) mistake "'$1' is not an option; --strategy, --devices and --steps are (--help)" ;;
    esac
    shift 2
done
[[ $devices =~ ^(cpu|gpu):([1-9][0-9]*)$ ]] || mistake "--devices is '$devices'; it must be cpu:N or gpu:N, e.g. cpu:2"
accelerator=${BASH_REMATCH[1]} processes=${BASH_REMATCH[2]}
[[ -z $steps || $steps =~ ^[1-9][0-9]*$ ]] || mistake "--steps is '$steps'; it must be a number of at least 1"

spread=() # how the work is spread over processes
if ((processes > 1)) || [[ $accelerator == gpu ]]; then
    spread+=(--trainer.accelerator "$accelerator" --trainer.devices "$processes")
fi
if [[ $strategy == ddp ]]; then
    spread+=(--trainer.strategy ddp)
elif [[ $strategy == zero* && -f configs/deepspeed/$strategy.yaml ]]; then
    spread=(--config "configs/deepspeed/$strategy.yaml" "${spread[@]}")
elif [[ -n $strategy ]]; then
    known=$(cd configs/deepspeed && echo zero*.yaml)
    mistake "--strategy is '$strategy'; it must be ddp or one of ${known//.yaml/}"
fi
if [[ $accelerator == gpu ]]; then
    spread+=(--trainer.deterministic false) # not every CUDA kernel has a deterministic twin
else
    export DS_ACCELERATOR=cpu
    cores=$(nproc)
    if ((processes > 1)); then spread+=(--model.torch_threads $((cores > processes ? cores / processes : 1))); fi
fi
bash scripts/setup.sh

out=quickstart
export WANDB_MODE=offline WANDB_SILENT=true TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 PYTHONWARNINGS=ignore
longvid=.venv/bin/longvid
start=$SECONDS
say() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - start)) >&2; }

say "rendering the world: videos, images, subtitles and questions"
$longvid world --config configs/world/quickstart.yaml --out $out/world --workers 2

if [[ ! -d $out/start ]]; then
    say "assembling a LLaMA-VID from the pretrained nano parts"
    $longvid init --out $out/start
fi

say "encoding every frame once: the vision tower is frozen in all stages"
$longvid predict --config configs/llama_vid/nano/features.yaml "${spread[@]}"

for stage in 1 2 3; do
    if [[ ! -d $out/stage$stage/model ]]; then
        say "training stage $stage"
        resume=()
        if compgen -G "$out/stage$stage/checkpoints/last*.ckpt" > /dev/null; then resume=(--ckpt_path last); fi
        config=configs/llama_vid/nano/stage$stage.yaml
        divided=("${spread[@]}")
        if ((processes > 1)); then
            rows=$(awk '$1 == "batch_size:" {print $2}' $config)
            ((rows % processes == 0)) || mistake "$rows rows of a step of stage $stage cannot be divided over $processes processes"
            divided+=(--data.loading.batch_size $((rows / processes)) --data.loading.global_batch_size "$rows")
        fi
        if [[ -n $steps ]]; then divided+=(--trainer.max_steps "$steps"); fi
        $longvid fit --config $config --data.media.features $out/features "${divided[@]}" "${resume[@]}"
    fi
done

say "asking about a held-out video"
held_out=$out/world/stage3_heldout/val
mapfile -t drawn < <(.venv/bin/python - $held_out/manifest.jsonl <<'PICK'
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
row = rows[0]
same = [other for other in rows if other["media"] == row["media"]][:3]
print(row["media"][0]["path"], row["media"][0]["subtitles"], sep="\n")
for other in same:
    print(other["conversation"][0]["text"].removeprefix("<video>\n"))
print("the right answers:", ", ".join(other["meta"]["answer"] for other in same), file=sys.stderr)
PICK
)
asked=()
for number in "${!drawn[@]}"; do
    if ((number < 2)); then continue; fi
    asked+=("$out/asked_$((number - 1)).json")
    $longvid ask "$held_out/${drawn[0]}" "${drawn[number]}" --subtitles "$held_out/${drawn[1]}" --fps 1 \
        --max-new-tokens 16 --model $out/stage3/model --json > "${asked[-1]}"
    .venv/bin/python -c 'import json, sys; row = json.load(open(sys.argv[1])); print(row["question"], "->", row["answer"])' \
        "${asked[-1]}"
done

say "writing the report"
$longvid report $out/stage1 $out/stage2 $out/stage3 --asked "${asked[@]}" --samples 6 --pictures $out/pictures --out $out/report.html
say "done: open $out/report.html"
