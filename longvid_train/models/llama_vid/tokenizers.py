"""Tokenizers of the language model and the text decoder, from a local folder or (where asked for) a hub id."""

from pathlib import Path

from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerBase

from longvid_train.errors import UserError


def load_tokenizer(source: str | Path, *, subfolder: str = "") -> PreTrainedTokenizerBase:
    """Load a tokenizer; without a padding token it pads with its unknown token, as the public code does for Vicuna.

    A folder with a ``tokenizer.model`` alone is Llama's. ``AutoTokenizer`` goes by ``config.json``, which in public
    LLaMA-VID folders says ``llava``, and then leaves out the space that Llama puts in front.

    Args:
        source: a folder, or a hub id (a ``str``).
        subfolder: of ``source``.

    Raises:
        UserError: there is no tokenizer that transformers can read.
    """
    local = isinstance(source, Path)
    if isinstance(source, Path) and not (source / subfolder).is_dir():
        raise UserError(f"{source / subfolder} is not a folder; name the folder of a saved tokenizer")
    llama = local and _is_sentencepiece_alone(Path(source) / subfolder)
    try:
        tokenizer = (LlamaTokenizer if llama else AutoTokenizer).from_pretrained(
            source, subfolder=subfolder, local_files_only=local
        )
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{source}{'/' if subfolder else ''}{subfolder} holds no tokenizer that transformers can read; "
            "name a saved one's folder"
        ) from error
    if tokenizer.pad_token is None and tokenizer.unk_token is not None:
        tokenizer.pad_token = tokenizer.unk_token
    return tokenizer


def _is_sentencepiece_alone(folder: Path) -> bool:
    return (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file()
