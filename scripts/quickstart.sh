#!/usr/bin/env bash
# From nothing to a trained long-video model on two CPU cores: set up, render a small world of real mp4 files, train the
# three stages of a nano LLaMA-VID on it, ask the result about a video it has not seen, write quickstart/report.html.
# Run it again and it goes on where it stopped; delete quickstart/ to start over.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh

out=quickstart
export WANDB_MODE=offline WANDB_SILENT=true DS_ACCELERATOR=cpu TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 PYTHONWARNINGS=ignore
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
$longvid predict --config configs/llama_vid/nano/features.yaml

for stage in 1 2 3; do
    if [[ ! -d $out/stage$stage/model ]]; then
        say "training stage $stage"
        resume=()
        if compgen -G "$out/stage$stage/checkpoints/last*.ckpt" > /dev/null; then resume=(--ckpt_path last); fi
        $longvid fit --config configs/llama_vid/nano/stage$stage.yaml --data.media.features $out/features "${resume[@]}"
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
