"""LLaMA-VID: an image is two tokens (arXiv:2311.17043). Importing this package registers it with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from longvid_train.models.llama_vid.configuration import LlamaVidConfig
from longvid_train.models.llama_vid.modeling import LlamaVidForConditionalGeneration


def register() -> None:
    """Make ``AutoConfig``, ``AutoModel`` and ``AutoModelForImageTextToText`` know ``llama_vid``; safe to call again."""
    AutoConfig.register(LlamaVidConfig.model_type, LlamaVidConfig, exist_ok=True)
    AutoModel.register(LlamaVidConfig, LlamaVidForConditionalGeneration, exist_ok=True)
    AutoModelForImageTextToText.register(LlamaVidConfig, LlamaVidForConditionalGeneration, exist_ok=True)


register()
