"""Assemble an untrained LLaMA-VID from pretrained parts: stage 1 starts from the folder this writes.

The tower, the text decoder and the language model keep their weights; the context attention and the content projector
are fresh, drawn from --seed. Without options the nano parts that ship with the package are used.

examples:
  longvid init --out runs/nano/start
  longvid init --out runs/content_only --no-text-decoder
  longvid init --out runs/bert/start --text-decoder configs/llama_vid/nano/bert.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

from longvid_train.errors import UserError

NANO_PARTS = Path(__file__).parents[1] / "assets" / "nano"
VISUAL_TOKEN = "<visual>"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``longvid init``."""
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to write: model and processor")
    add("--tower", type=Path, default=NANO_PARTS / "tower", help="InstructBlipVisionModel or CLIPVisionModel folder")
    decoder = parser.add_mutually_exclusive_group()
    decoder.add_argument(
        "--text-decoder",
        type=Path,
        default=NANO_PARTS / "qformer",
        help="folder of a pretrained text decoder, or a JSON config of a fresh one",
    )
    decoder.add_argument("--no-text-decoder", action="store_true", help="content tokens only")
    add("--language-model", type=Path, default=NANO_PARTS / "language_model", help="LlamaForCausalLM folder")
    add("--tokenizer", type=Path, default=NANO_PARTS / "tokenizer", help="the language model's tokenizer folder")
    add("--prompt-tokenizer", type=Path, help="the text decoder's tokenizer folder (the language model's)")
    add("--no-content", action="store_true", help="context tokens only")
    add("--image-size", type=int, help="pixels a side, if not the tower's own")
    add("--seed", type=int, default=0, help="of the fresh parts")


def run(arguments: argparse.Namespace) -> int:
    """Write the folder and print its size in parameters."""
    if arguments.out.exists() and not arguments.out.is_dir():
        raise UserError(f"{arguments.out}: --out must be a folder, and this is a file")
    if arguments.out.exists() and any(arguments.out.iterdir()):
        raise UserError(f"{arguments.out}: the folder is not empty; choose another --out or delete it")
    if arguments.image_size is not None and arguments.image_size < 1:
        raise UserError(f"--image-size is {arguments.image_size}; it must be a number of pixels, at least 1")
    if not 0 <= arguments.seed < 2**32:
        raise UserError(f"--seed is {arguments.seed}; it must be 0 or more and below 2**32")
    import pytorch_lightning as pl

    from longvid_train.models.llama_vid import LlamaVidProcessor, build_llama_vid
    from longvid_train.training.checkpoint import save_folder

    pl.seed_everything(arguments.seed, verbose=False)
    tokenizer = _tokenizer(arguments.tokenizer)
    prompts = tokenizer if arguments.prompt_tokenizer is None else _tokenizer(arguments.prompt_tokenizer)
    model = build_llama_vid(
        vision_tower=arguments.tower,
        text_decoder=None if arguments.no_text_decoder else _text_decoder(arguments.text_decoder),
        language_model=arguments.language_model,
        visual_token_id=_visual_token_id(tokenizer),
        use_content=not arguments.no_content,
        image_size=arguments.image_size,
    )
    processor = LlamaVidProcessor.for_model(model.config, tokenizer, None if arguments.no_text_decoder else prompts)
    save_folder(arguments.out, model, processor)
    print(f"{arguments.out}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    return 0


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name the folder of a saved tokenizer")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no tokenizer that transformers can read; name a saved one's folder") from error


def _visual_token_id(tokenizer: Any) -> int:
    """The tokenizer's own visual token, or the first id behind its vocabulary."""
    known = tokenizer.get_vocab().get(VISUAL_TOKEN)
    return len(tokenizer) if known is None else int(known)


def _text_decoder(path: Path) -> Any:
    """A folder of weights as it is; a JSON file as the configuration of a fresh decoder."""
    if path.is_dir():
        return path
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a text decoder's folder or the JSON config of a fresh one")
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(**json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a text decoder's configuration: {error}") from None
