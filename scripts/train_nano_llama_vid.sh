#!/usr/bin/env bash
# Train the nano LLaMA-VID that ships: the quickstart's three stages on many more videos, and a finish of the third on new ones.
# The first two stages take one thread, the others two.
# usage: scripts/train_nano_llama_vid.sh [WORK]        default WORK: runs/nano_llama_vid
# environment: STAGES="stage1 stage2 stage3 finish" for some of them; LONGVID="longvid" for another command than the venv's
# Hardware: 2 CPU cores, about two hours and a half. Run it again and it goes on with what is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=${1:-runs/nano_llama_vid}
export OMP_NUM_THREADS=1 WANDB_MODE=offline WANDB_SILENT=true DS_ACCELERATOR=cpu HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONWARNINGS=ignore
longvid=${LONGVID:-.venv/bin/longvid}

# stage NAME CONFIG START MANIFESTS HELD_OUT OPTIONS... : encode its videos once, then train it; MANIFESTS with commas
stage() {
    local name=$1 config=configs/llama_vid/nano/$2.yaml start=$3 train=$4 held_out=$5
    shift 5
    local run=$work/$name features=$work/features_$name recipe
    recipe=$(sha256sum configs/world/nano_llama_vid{,_finish}.yaml "$config" && echo "$start $train $*")
    if [[ -f $run.recipe && $(<"$run.recipe") != "$recipe" ]]; then
        echo "$run was trained by another recipe than this script has now; delete $run and $run.recipe, or name another WORK" >&2
        exit 2
    fi
    if [[ -d $run/model ]]; then return; fi
    mkdir -p "$work" && echo "$recipe" > "$run.recipe"
    $longvid predict --config configs/llama_vid/nano/features.yaml --run_dir "$features" --model.model "$work/start" \
        --model.torch_threads 1 --data.manifests "[$train, $held_out]"
    local resume=() trains=$train
    if [[ $train == *,* ]]; then trains="[$train]"; fi
    if compgen -G "$run/checkpoints/last*.ckpt" > /dev/null; then resume=(--ckpt_path last); fi
    $longvid fit --config "$config" --run_dir "$run" --model.model "$start" --data.train "$trains" --data.test "$held_out" \
        --data.media.features "$features" "$@" "${resume[@]}"
}

stages=${STAGES:-stage1 stage2 stage3 finish}
for name in $stages; do
    case $name in
    stage1 | stage2 | stage3 | finish) ;;
    *) echo "stage '$name' is unknown; stages are stage1, stage2, stage3 and finish" >&2; exit 2 ;;
    esac
done
world=$work/world finish=$work/world_finish
$longvid world --config configs/world/nano_llama_vid.yaml --out "$world" --workers 2
if [[ ! -d $work/start ]]; then $longvid init --out "$work/start"; fi
batches=(--data.loading.batch_size 1 --data.loading.max_tokens_per_batch 2600) # eight rows of the longest videos, more of shorter ones
for name in $stages; do
    case $name in
    stage1) stage stage1 stage1 "$work/start" "$world/stage1/train/manifest.jsonl" "$world/stage1/val/manifest.jsonl" --model.torch_threads 1 ;;
    stage2)
        stage stage2 stage2 "$work/stage1/model" "$world/stage2/train/manifest.jsonl" "$world/stage2_heldout/val/manifest.jsonl" \
            --model.torch_threads 1 --trainer.max_epochs 4
        ;;
    stage3)
        stage stage3 stage3 "$work/stage2/model" "$world/stage3/train/manifest.jsonl" "$world/stage3_heldout/val/manifest.jsonl" \
            --model.torch_threads 2 --trainer.max_epochs 5 "${batches[@]}"
        ;;
    finish) # the window is extended already
        $longvid world --config configs/world/nano_llama_vid_finish.yaml --out "$finish" --workers 2
        stage finish stage3 "$work/stage3/model" "$finish/long/train/manifest.jsonl, $finish/short/train/manifest.jsonl" \
            "$world/stage3_heldout/val/manifest.jsonl" --model.torch_threads 2 --model.rope_scaling 1 --model.optimizer.lr 5e-4 \
            --trainer.max_epochs 2 "${batches[@]}"
        ;;
    esac
done
