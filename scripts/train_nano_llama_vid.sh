#!/usr/bin/env bash
# Train the nano LLaMA-VID that ships: the quickstart's three stages on many more videos.
# The first two stages take one thread, the third two.
# usage: scripts/train_nano_llama_vid.sh [WORK]        default WORK: runs/nano_llama_vid
# environment: STAGES="1 2 3" for some of them; LONGVID="longvid" for another command than the venv's
# Hardware: 2 CPU cores, about two hours. Run it again and it goes on with what is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=${1:-runs/nano_llama_vid}
export OMP_NUM_THREADS=1 WANDB_MODE=offline WANDB_SILENT=true DS_ACCELERATOR=cpu HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONWARNINGS=ignore
longvid=${LONGVID:-.venv/bin/longvid}

# stage NUMBER START HELD_OUT OPTIONS... : encode its videos once, then train it
stage() {
    local number=$1 start=$2 held_out=$3
    shift 3
    local run=$work/stage$number features=$work/features$number
    local train=$work/world/stage$number/train/manifest.jsonl test=$work/world/$held_out/val/manifest.jsonl
    local recipe
    recipe=$(sha256sum configs/world/nano_llama_vid.yaml "configs/llama_vid/nano/stage$number.yaml" && echo "$start $*")
    if [[ -f $run.recipe && $(<"$run.recipe") != "$recipe" ]]; then
        echo "$run was trained by another recipe than this script has now; delete $run and $run.recipe, or name another WORK" >&2
        exit 2
    fi
    if [[ -d $run/model ]]; then return; fi
    mkdir -p "$work" && echo "$recipe" > "$run.recipe"
    $longvid predict --config configs/llama_vid/nano/features.yaml --run_dir "$features" --model.model "$work/start" \
        --model.torch_threads 1 --data.manifests "[$train, $test]"
    local resume=()
    if compgen -G "$run/checkpoints/last*.ckpt" > /dev/null; then resume=(--ckpt_path last); fi
    $longvid fit --config "configs/llama_vid/nano/stage$number.yaml" --run_dir "$run" --model.model "$start" \
        --data.train "$train" --data.test "$test" --data.media.features "$features" "$@" "${resume[@]}"
}

for number in ${STAGES:-1 2 3}; do
    [[ $number == [123] ]] || { echo "stage '$number' is unknown; stages are 1, 2 and 3" >&2; exit 2; }
done
$longvid world --config configs/world/nano_llama_vid.yaml --out "$work/world" --workers 2
if [[ ! -d $work/start ]]; then $longvid init --out "$work/start"; fi
for number in ${STAGES:-1 2 3}; do
    case $number in
    1) stage 1 "$work/start" stage1 --model.torch_threads 1 ;;
    2) stage 2 "$work/stage1/model" stage2_heldout --model.torch_threads 1 --trainer.max_epochs 4 ;;
    3) # eight rows of the longest videos in a step, more of shorter ones
        stage 3 "$work/stage2/model" stage3_heldout --model.torch_threads 2 --trainer.max_epochs 5 --data.loading.batch_size 1 \
            --data.loading.max_tokens_per_batch 2600
        ;;
    esac
done
