#!/usr/bin/env bash
# Train the LLaMA-VID variants of the paper's Tables 4, 5 and 6 on still images of the world: two stages each, on one thread.
# usage: scripts/train_llama_vid_variants.sh [WORK]        default WORK: runs/llama_vid_variants
# environment: VARIANTS="both content ..." for some of them; LONGVID="longvid" for another command than the venv's
# Hardware: 1 CPU core, about a minute and a half a variant. Run it again and it goes on with what is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=${1:-runs/llama_vid_variants}
export OMP_NUM_THREADS=1 WANDB_MODE=offline WANDB_SILENT=true DS_ACCELERATOR=cpu HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONWARNINGS=ignore
longvid=${LONGVID:-.venv/bin/longvid}

# variant NAME CONTENT_GRID INIT_OPTIONS... : content grid 0 keeps every patch, n pools to n x n
variant() {
    local name=$1 grid=$2
    shift 2
    local init=("$@") full="context_attention, content_projector" targets="language_model.model, text_decoder.qformer"
    case "${init[*]}" in
    *--no-text-decoder*) full="content_projector" targets="language_model.model" ;;
    *--no-content*) full="context_attention" ;;
    *--text-decoder*) full="$full, text_decoder" targets="language_model.model" ;; # fresh: it trains in full, as in the paper
    esac
    local folder=$work/$name shared=(--data.conversation.image_content_grid "$grid" --model.stage.trainable "[$full]")
    if [[ ! -d $folder/start ]]; then $longvid init --out "$folder/start" "${init[@]}"; fi
    if [[ ! -d $folder/stage1/model ]]; then
        $longvid fit --config configs/llama_vid/variants/stage1.yaml --run_dir "$folder/stage1" --model.model "$folder/start" \
            --data.train "$work/world/stage1/train/manifest.jsonl" "${shared[@]}"
    fi
    if [[ ! -d $folder/stage2/adapter ]]; then
        $longvid fit --config configs/llama_vid/variants/stage2.yaml --run_dir "$folder/stage2" --model.model "$folder/stage1/model" \
            --data.train "$work/world/stage2/train/manifest.jsonl" --model.lora.target_modules "[$targets]" "${shared[@]}"
    fi
}

# Content grid and options of longvid init, by variant.
declare -A variants=(
    [both]="1" [content]="1 --no-text-decoder" [context]="1 --no-content"
    [bert]="1 --text-decoder configs/llama_vid/nano/bert.json" [both_4]="2" [both_9]="3" [all]="0" [all_content]="0 --no-text-decoder"
)
names=${VARIANTS:-both content context bert both_4 both_9 all all_content}
for name in $names; do
    if [[ ! -v variants[$name] ]]; then
        echo "variant '$name' is unknown; known are ${!variants[*]}" >&2
        exit 2
    fi
done
$longvid world --config configs/world/llama_vid_variants.yaml --out "$work/world" --workers 2
for name in $names; do
    read -ra options <<< "${variants[$name]}"
    variant "$name" "${options[@]}"
done
