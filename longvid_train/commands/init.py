"""Assemble an untrained LLaMA-VID from pretrained parts: stage 1 starts from the folder this writes.

The tower, the text decoder and the language model keep their weights; the context attention and the content projector
are fresh, drawn from --seed. Without options the nano parts that ship with the package are used. --vision and
--language take checkpoints of transformers: a folder, or a hub id, which is downloaded.

examples:
  longvid init --out runs/nano/start
  longvid init --out runs/content_only --no-text-decoder
  longvid init --out runs/bert/start --text-decoder configs/llama_vid/nano/bert.json
  longvid init --out models/7b-start --vision Salesforce/instructblip-vicuna-7b --language lmsys/vicuna-7b-v1.5 \\
      --dtype float16
"""

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvid_train.errors import UserError

NANO_PARTS = Path(__file__).parents[1] / "assets" / "nano"
VISUAL_TOKEN = "<visual>"
DTYPES = ("float32", "bfloat16", "float16")
FRESH_PARTS = ("context_attention.", "content_projector.")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``longvid init``."""
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to write: model and processor")
    add("--vision", help="InstructBLIP checkpoint: its tower, Q-Former and prompt tokenizer")
    add("--tower", type=Path, help="InstructBlipVisionModel or CLIPVisionModel folder (--vision's, else nano)")
    decoder = parser.add_mutually_exclusive_group()
    decoder.add_argument(
        "--text-decoder",
        type=Path,
        help="folder of a pretrained text decoder, or a JSON config of a fresh one (--vision's, else nano)",
    )
    decoder.add_argument("--no-text-decoder", action="store_true", help="content tokens only")
    language = parser.add_mutually_exclusive_group()
    language.add_argument("--language", help="Llama checkpoint (Vicuna) with its tokenizer")
    language.add_argument("--language-model", type=Path, help="LlamaForCausalLM folder without tokenizer (nano)")
    add("--tokenizer", type=Path, help="the language model's tokenizer folder (--language's, else nano)")
    add("--prompt-tokenizer", type=Path, help="the text decoder's (--vision's, else the language model's)")
    add("--no-content", action="store_true", help="context tokens only")
    add("--dtype", choices=DTYPES, default="float32", help="of the written weights")
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
    if arguments.no_text_decoder and arguments.no_content:
        raise UserError("--no-text-decoder and --no-content: a frame would have no token; leave one of them out")
    import pytorch_lightning as pl
    import torch
    import transformers

    from longvid_train.models.llama_vid import LlamaVidProcessor, build_llama_vid
    from longvid_train.models.llama_vid.public_names import compact
    from longvid_train.training.checkpoint import save_folder

    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    pl.seed_everything(arguments.seed, verbose=False)
    tokenizer, prompts = _tokenizers(arguments)
    parts = _parts(arguments)
    model = build_llama_vid(
        vision_tower=parts.tower,
        text_decoder=parts.text_decoder,
        language_model=parts.language_model,
        visual_token_id=_visual_token_id(tokenizer),
        use_content=not arguments.no_content,
        image_size=arguments.image_size,
        dtype=getattr(torch, arguments.dtype),
    )
    processor = LlamaVidProcessor.for_model(model.config, tokenizer, None if arguments.no_text_decoder else prompts)
    save_folder(arguments.out, model, processor)
    fresh = [name for name, _ in model.named_parameters() if name.startswith((*FRESH_PARTS, *parts.fresh))]
    print(f"newly initialised: {compact(fresh)}")
    print(f"{arguments.out}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    return 0


@dataclass(frozen=True)
class _Parts:
    """What ``build_llama_vid`` is given, and the name prefixes in it that no checkpoint has."""

    tower: Any
    text_decoder: Any
    language_model: Any
    fresh: tuple[str, ...]


def _parts(arguments: argparse.Namespace) -> _Parts:
    """Resolve the options to parts: the option of a part itself, else the checkpoint it is in, else nano."""
    tower: Any = arguments.tower or NANO_PARTS / "tower"
    decoder: Any = (
        None if arguments.no_text_decoder else _text_decoder(arguments.text_decoder or NANO_PARTS / "qformer")
    )
    fresh = () if decoder is None or isinstance(decoder, Path) else ("text_decoder.",)
    if arguments.vision:
        own_decoder = arguments.text_decoder or arguments.no_text_decoder
        if arguments.tower and own_decoder:
            raise UserError(
                f"--vision {arguments.vision} would give nothing: --tower replaces its tower, and --text-decoder or "
                "--no-text-decoder its Q-Former; leave one of them out"
            )
        from longvid_train.models.llama_vid.instructblip import load_eyes, text_decoder_of, tower_of
        from longvid_train.models.llama_vid.parts import load_tower

        eyes = load_eyes(_source("--vision", arguments.vision))
        tower = load_tower(arguments.tower) if arguments.tower else tower_of(eyes)
        if not own_decoder:
            decoder, fresh = text_decoder_of(eyes, tower.config.hidden_size), ("text_decoder.vision_projector.",)
    return _Parts(tower, decoder, _language_model(arguments), fresh)


def _language_model(arguments: argparse.Namespace) -> Any:
    if not arguments.language:
        return arguments.language_model or NANO_PARTS / "language_model"
    from longvid_train.models.llama_vid.parts import load_language_model

    return load_language_model(_source("--language", arguments.language))


def _tokenizers(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The language model's tokenizer and the text decoder's."""
    from longvid_train.models.llama_vid.instructblip import PROMPT_TOKENIZER_SUBFOLDER
    from longvid_train.models.llama_vid.tokenizers import load_tokenizer

    if arguments.tokenizer or not arguments.language:
        tokenizer = load_tokenizer(arguments.tokenizer or NANO_PARTS / "tokenizer")
    else:
        tokenizer = load_tokenizer(_source("--language", arguments.language))
    if arguments.prompt_tokenizer:
        return tokenizer, load_tokenizer(arguments.prompt_tokenizer)
    if arguments.vision:
        source = _source("--vision", arguments.vision)
        return tokenizer, load_tokenizer(source, subfolder=PROMPT_TOKENIZER_SUBFOLDER)
    return tokenizer, tokenizer


def _source(option: str, value: str) -> Path | str:
    """A folder that exists as a ``Path``; what is written like a hub id as it is."""
    if Path(value).is_dir():
        return Path(value)
    if not _HUB_ID.fullmatch(value):
        raise UserError(f"{option} {value}: no such folder, and not a hub id like 'owner/name'")
    return value


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
