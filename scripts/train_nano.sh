#!/usr/bin/env bash
# Train the nano backbones that ship with the package: OneVision, and Video-LLaVA with its joint-frame tower, in five
# stages each, each on one thread, both at the same time.
# usage: scripts/train_nano.sh [WORK]        default WORK: runs/nano_backbones
# environment: FAMILIES="onevision video_llava llama_vid"  OUT=longvid_train/assets  DEVICE=cpu|cuda
# llama_vid is LLaMA-VID's three stages and the variants of the paper's tables, on the CPU; it asks for OUT/nano_llama_vid* to be gone.
# Hardware: 2 CPU cores, about an hour, and two hours and a half for llama_vid; the same seed, device and threads give the same
# files.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-runs/nano_backbones}
out=${OUT:-longvid_train/assets}
export OMP_NUM_THREADS=1

train() {
    local family=$1 folder=$work/$1
    local recipe=(python -m longvid_train.training.nano.backbones "$family")
    local options=(--runs "$folder/logs" --device "${DEVICE:-cpu}")
    "${recipe[@]}" language --out "$folder/language" "${options[@]}"
    "${recipe[@]}" align --start "$folder/language" --out "$folder/align" "${options[@]}"
    "${recipe[@]}" couple --start "$folder/align" --out "$folder/couple" "${options[@]}"
    "${recipe[@]}" polish --start "$folder/couple" --out "$folder/polish" "${options[@]}"
    "${recipe[@]}" finish --start "$folder/polish" --out "$out/nano_$family" "${options[@]}"
}

for family in ${FAMILIES:-}; do
    case $family in
    onevision | video_llava | llama_vid) ;;
    *) echo "family '$family' is unknown; known are onevision, video_llava and llama_vid" >&2; exit 2 ;;
    esac
done
if [[ " ${FAMILIES:-} " == *" llama_vid "* ]]; then
    if [[ ${DEVICE:-cpu} != cpu ]]; then
        echo "DEVICE is '$DEVICE', but llama_vid is trained on the CPU; leave DEVICE out, or llama_vid" >&2
        exit 2
    fi
    for folder in "$out"/nano_llama_vid{,_stage2,_variants}; do
        if [[ -e $folder ]]; then
            echo "$folder exists; delete it, or name another folder with OUT" >&2
            exit 2
        fi
    done
    bash scripts/train_nano_llama_vid.sh "$work/llama_vid"
    bash scripts/train_llama_vid_variants.sh "$work/llama_vid_variants"
    python -m scripts.pack_llama_vid stages "$work/llama_vid" --out "$out"
    python -m scripts.pack_llama_vid variants "$work/llama_vid_variants" --out "$out"
fi

pids=()
for family in ${FAMILIES:-onevision video_llava}; do
    if [[ $family == llama_vid ]]; then continue; fi
    train "$family" &
    pids+=($!)
done
for pid in "${pids[@]}"; do
    wait "$pid"
done
