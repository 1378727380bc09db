"""The shipped variants of nano LLaMA-VID: small, recorded, made from the shipped parts, each as it is named."""

import json
from pathlib import Path

import longvid_train
from longvid_train.evaluation.claims.llama_vid_answers import ComparedAnswers
from longvid_train.evaluation.claims.llama_vid_tokens import CLAIM as TOKENS
from longvid_train.evaluation.claims.llama_vid_tokens import held_out_stills
from longvid_train.evaluation.claims.llama_vid_variants import BERT_FILE, FOLDER, PART_FILES, VARIANTS
from longvid_train.files import sha256_file

ROOT = Path(__file__).parents[2]
ASSETS = Path(longvid_train.__file__).parent / "assets"


def test_variants_are_small_and_made_from_the_shipped_parts_by_one_commit() -> None:
    folder = ASSETS / FOLDER
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 5_000_000
    assert sorted(path.name for path in folder.iterdir()) == sorted([*VARIANTS, BERT_FILE])
    assert (folder / BERT_FILE).read_text() == (ROOT / "configs" / "llama_vid" / "nano" / BERT_FILE).read_text()
    parts = {part: sha256_file(ASSETS / "nano" / file) for part, file in PART_FILES.items()}
    commits = set()
    for name, variant in VARIANTS.items():
        record = json.loads((folder / name / "provenance.json").read_text())
        assert record["parts"] == parts
        command = record["stages"]["stage2"]["command"]
        assert f"--data.conversation.image_content_grid {variant.content_grid} " in command
        assert ("context_attention" in command, "text_decoder.qformer" in command) == (
            variant.text_decoder != "none",
            variant.text_decoder == "qformer",
        )
        assert ("content_projector" in command) == variant.content
        commits.add(record["commit"])
    assert len(commits) == 1 and len(commits.pop()) == 40


def test_a_variant_answers_and_takes_the_tokens_it_is_named_after() -> None:
    assert TOKENS.compared is not None
    TOKENS.compared.check(ASSETS)
    answers = ComparedAnswers(TOKENS.compared, ASSETS, lambda frames, seed: held_out_stills(10, frames, seed))
    methods = {method.name: method for method in TOKENS.grid.methods}
    tokens = {"content": 1, "context": 1, "both": 2, "bert": 2, "both_4": 5, "both_9": 10, "all": 37, "all_content": 36}
    for name in VARIANTS:
        rows = answers(methods[name], 1, 40)
        assert {row.visual_tokens for row in rows} == {tokens[name]}
        needles = [row.score for row in rows if row.kind == "needle"]
        assert sum(needles) / len(needles) > 0.4, f"{name}: chance is 1 of 6"
