"""Answer the questions of evaluation manifests with any model under any adaptation, and score the answers.

examples:
  longvid evaluate --config configs/evaluation/nano_world.yaml --out runs/evaluate/nano
  longvid evaluate --config configs/evaluation/msvd_qa.yaml --model llava-hf/llava-onevision-qwen2-7b-ov-hf
      --adaptation configs/adaptations/visual_yarn.yaml --frames 64 --batch-size 8
  longvid evaluate --config configs/evaluation/msvd_qa.yaml --processes 8 --max-left-out 3
  torchrun --nproc-per-node 8 -m longvid_train.cli evaluate --config configs/evaluation/msvd_qa.yaml
  longvid evaluate --rescore runs/evaluate/msvd_qa --category type

Options replace what the config says. --out (runs/evaluate/NAME of the config) gets predictions.jsonl, scores.jsonl,
metrics.json and table.md. An interrupted run goes on when the command is given again; a folder of another model,
manifest or setting is refused. A judge in the config is asked behind the scores. --rescore scores (and judges) the
predictions of a folder again, without a model; tables are those of the run where neither config nor options say other.
"""

import argparse
import json
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvid_train.errors import UserError

if TYPE_CHECKING:
    from longvid_train.evaluation.local.settings import EvaluationSettings

DEFAULT_FOLDER = Path("runs/evaluate")
_LISTS = {"manifest": "manifests", "category": "categories"}
"""Options that may be repeated -> the setting they fill."""
_SETTINGS = (
    "model",
    "adapter",
    "adaptation",
    "frames",
    "fps",
    "max_new_tokens",
    "batch_size",
    "limit",
    "max_left_out",
    "device",
    "dtype",
    "processes",
)
"""Options that are settings of the same name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``longvid evaluate``."""
    absent = argparse.SUPPRESS
    add = parser.add_argument
    add("--config", type=Path, metavar="YAML", help="settings; every field of EvaluationSettings is a key")
    add("--out", type=Path, metavar="DIR", help=f"folder of the results ({DEFAULT_FOLDER}/NAME of the config)")
    add("--rescore", type=Path, metavar="DIR", help="only score the predictions in DIR again")
    add("--manifest", action="append", metavar="JSONL", default=absent, help="evaluation set (repeatable)")
    add("--model", metavar="MODEL", default=absent, help="folder, or hub id of a backbone")
    add("--adapter", metavar="FOLDER", default=absent, help="LoRA adapter")
    add("--adaptation", metavar="YAML", default=absent, help="how videos are shown and how the window is extended")
    add("--frames", type=int, metavar="N", default=absent, help="frames of a video; all of a shorter one")
    add("--fps", type=float, metavar="F", default=absent, help="frames a second, at most --frames of them")
    add("--max-new-tokens", type=int, metavar="N", default=absent, help="longest answer (32)")
    add("--batch-size", type=int, metavar="N", default=absent, help="questions answered at once (1)")
    add("--limit", type=int, metavar="N", default=absent, help="only the first N rows of each manifest")
    add("--max-left-out", type=int, metavar="N", default=absent, help="rows that may be left out by name (0)")
    add("--device", default=absent, help="auto, cpu or cuda (auto)")
    add("--dtype", default=absent, help="auto, float32, bfloat16 or float16 (auto: the checkpoint's)")
    add("--processes", type=int, metavar="N", default=absent, help="processes, each with a copy of the model (1)")
    add("--category", action="append", metavar="FIELD", default=absent, help="field of meta for a table (repeatable)")
    add("--json", action="store_true", help="print one JSON object on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Answer, score and print the table."""
    if arguments.rescore is not None:
        return _rescore(arguments)
    from longvid_train.evaluation.local.settings import EvaluationSettings, read_settings

    settings = EvaluationSettings() if arguments.config is None else read_settings(arguments.config)
    settings = replace(settings, **_given(arguments))
    settings.check_runnable()
    if arguments.out is None and arguments.config is None:
        raise UserError("--out is missing; without --config the results have no name")
    out = arguments.out or DEFAULT_FOLDER / arguments.config.stem
    # Importing torch takes seconds: mistakes above and --help do not pay for it.
    import transformers

    from longvid_train.evaluation.local.run import answer_all, torchrun_rank

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    answer_all(settings, out, command=shlex.join(sys.argv))
    rank = torchrun_rank()
    if rank is None or rank.number == 0:
        _report(settings, out, as_json=arguments.json)
    return 0


def _rescore(arguments: argparse.Namespace) -> int:
    from longvid_train.evaluation.local.identity import RECORD_FILE, read_asked
    from longvid_train.evaluation.local.settings import read_settings, settings_of

    given = _given(arguments)
    without_effect = [name for name in given if name != "categories"]
    if without_effect or arguments.out is not None:
        name = without_effect[0].replace("_", "-") if without_effect else "out"
        raise UserError(f"--{name} has no effect with --rescore, which asks no model; leave one of them out")
    asked = read_asked(arguments.rescore)
    tables = {"categories": list(asked.categories), "duration_edges_s": list(asked.duration_edges_s)}
    if arguments.config is None:
        settings = settings_of(tables, where=str(arguments.rescore / RECORD_FILE))
    else:
        settings = read_settings(arguments.config, tables)
    _report(replace(settings, **given), arguments.rescore, as_json=arguments.json)
    return 0


def _report(settings: "EvaluationSettings", out: Path, *, as_json: bool) -> None:
    """Score, ask the judge if there is one, and print. The scores are on disk before the judge is asked."""
    from longvid_train.evaluation.judging.judge import judge_folder
    from longvid_train.evaluation.local.scoring import score_folder
    from longvid_train.evaluation.local.tables import summary_table

    summary = score_folder(out, categories=settings.categories, duration_edges_s=settings.duration_edges_s)
    if not as_json:
        print(summary_table(summary), flush=True)
    judged = [] if settings.judge is None or not summary.answered else judge_folder(out, settings.judge)
    if as_json:
        judges = {"judged": {one.rubric: asdict(one) for one in judged}} if judged else {}
        print(json.dumps({"out": str(out), **summary.values(), **judges}))
    for one in () if as_json else judged:
        print(f"\n{one.table()}")


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings of the command line."""
    given = {name: getattr(arguments, name) for name in _SETTINGS if hasattr(arguments, name)}
    return given | {
        setting: tuple(getattr(arguments, option)) for option, setting in _LISTS.items() if hasattr(arguments, option)
    }
