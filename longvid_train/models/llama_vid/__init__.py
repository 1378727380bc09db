"""LLaMA-VID: an image is two tokens (arXiv:2311.17043). Importing it registers it with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from longvid_train.models.llama_vid.configuration import LlamaVidConfig
from longvid_train.models.llama_vid.loading import load_llama_vid
from longvid_train.models.llama_vid.modeling import LlamaVidForConditionalGeneration, LlamaVidOutput
from longvid_train.models.llama_vid.parts import build_llama_vid, load_text_decoder, save_text_decoder
from longvid_train.models.llama_vid.processing import LlamaVidProcessor, ProcessorSettings
from longvid_train.models.llama_vid.text_decoder_bert import BertTextDecoder
from longvid_train.models.llama_vid.text_decoder_qformer import QFormerTextDecoder
from longvid_train.models.llama_vid.vision_tower import ClipVisionTower, EvaVisionTower

__all__ = [
    "BertTextDecoder",
    "ClipVisionTower",
    "EvaVisionTower",
    "LlamaVidConfig",
    "LlamaVidForConditionalGeneration",
    "LlamaVidOutput",
    "LlamaVidProcessor",
    "ProcessorSettings",
    "QFormerTextDecoder",
    "build_llama_vid",
    "load_llama_vid",
    "load_text_decoder",
    "register",
    "save_text_decoder",
]


def register() -> None:
    """Make ``AutoConfig``, ``AutoModel`` and ``AutoModelForImageTextToText`` know ``llama_vid``; safe to call again."""
    AutoConfig.register(LlamaVidConfig.model_type, LlamaVidConfig, exist_ok=True)
    AutoModel.register(LlamaVidConfig, LlamaVidForConditionalGeneration, exist_ok=True)
    AutoModelForImageTextToText.register(LlamaVidConfig, LlamaVidForConditionalGeneration, exist_ok=True)


register()
