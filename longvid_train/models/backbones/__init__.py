"""Public video and image models behind one protocol: transformers' own classes, cut where token plans act."""

from longvid_train.models.backbones.language import generate, multimodal_embeddings, video_logits
from longvid_train.models.backbones.load import backbone_skeleton, load_backbone, read_facts
from longvid_train.models.backbones.processing import BackboneProcessor
from longvid_train.models.backbones.protocol import Backbone, BackboneFacts
from longvid_train.models.backbones.video import streamed_tokens, video_tokens

__all__ = [
    "Backbone",
    "BackboneFacts",
    "BackboneProcessor",
    "backbone_skeleton",
    "generate",
    "load_backbone",
    "multimodal_embeddings",
    "read_facts",
    "streamed_tokens",
    "video_logits",
    "video_tokens",
]
