"""The entry point of group ``lmms_eval.models``: what lmms-eval lists and how it finds the classes."""

from typing import Any

MODEL_ID = "longvid"


def models() -> list[Any]:
    """lmms-eval's manifests of our models; the classes load only when one is chosen."""
    from lmms_eval.models.registry_v2 import ModelManifest

    place = "longvid_train.evaluation.harness.model"
    return [
        ModelManifest(
            model_id=MODEL_ID, simple_class_path=f"{place}.LongvidSimple", chat_class_path=f"{place}.LongvidChat"
        )
    ]
