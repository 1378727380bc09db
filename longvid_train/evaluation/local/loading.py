"""The model that settings name: what can be read without its weights, and the loaded model."""

from dataclasses import dataclass
from pathlib import Path

from longvid_train.adaptation.reading import load_adaptation
from longvid_train.errors import UserError
from longvid_train.evaluation.local.settings import EvaluationSettings
from longvid_train.generate.chat import VideoChat
from longvid_train.generate.engine import EngineOptions
from longvid_train.generate.loading import read_prompting
from longvid_train.generate.prompting import Prompting
from longvid_train.models.adapter import Adapter
from longvid_train.models.backbones.adapted import BackboneAdapter, read_any_adapter
from longvid_train.models.prefill import PREFILL_CHUNK


@dataclass(frozen=True)
class NamedModel:
    """A model before its weights.

    Attributes:
        source: folder or hub id of the base model.
        adapter: in force.
        prompting: how it is asked under its adaptation.
    """

    source: str | Path
    adapter: Adapter | BackboneAdapter | None
    prompting: Prompting

    def load(self, settings: EvaluationSettings, *, device: str) -> VideoChat:
        """Load the weights.

        Raises:
            UserError: they do not fit, or there is no such device or dtype.
        """
        return VideoChat.load(
            self.source,
            adapter=self.adapter,
            prompting=self.prompting,
            device=device,
            dtype=settings.dtype,
            engine=engine_options(settings),
        )


def read_model(settings: EvaluationSettings) -> NamedModel:
    """Read configuration, processor, adapter and adaptation.

    Raises:
        UserError: no model is named, or the parts do not go together.
    """
    if settings.model is None and settings.adapter is None:
        raise UserError("no model is named; write model: FOLDER, or give --model FOLDER")
    adaptation = None if settings.adaptation is None else load_adaptation(settings.adaptation)
    adapter = None if settings.adapter is None else read_any_adapter(settings.adapter)
    source: str | Path | None = settings.model
    if adapter is not None:
        source = adapter.base_folder(None if settings.model is None else Path(settings.model))
    assert source is not None
    prompting = read_prompting(
        source, adaptation=adaptation, adapter=adapter, template=settings.template, prompt=settings.prompt
    )
    return NamedModel(source, adapter, prompting)


def engine_options(settings: EvaluationSettings) -> EngineOptions:
    """Memory against time.

    Raises:
        UserError: a value has no meaning.
    """
    return EngineOptions(
        features_on=settings.features_on,
        prefill_chunk=PREFILL_CHUNK if settings.prefill_chunk is None else settings.prefill_chunk,
        frame_chunk=settings.frame_chunk,
        sentence_attention=False,
    )
