"""``BackboneDataModule``: manifests to batches for a public backbone under an adaptation."""

from dataclasses import replace

from longvid_train.adaptation.reading import load_adaptation
from longvid_train.adaptation.settings import Adaptation
from longvid_train.data.budget import TokenBudget
from longvid_train.data.checkpoint_template import CheckpointTemplate
from longvid_train.data.conversation import ConversationOptions
from longvid_train.data.datamodule import ManifestDataModule, ManifestSource
from longvid_train.data.dataset import BadSamples, ManifestDataset
from longvid_train.data.loading import LoadingOptions
from longvid_train.data.manifest import ManifestRules
from longvid_train.data.media import MediaOptions
from longvid_train.data.processing import MultimodalProcessor
from longvid_train.errors import UserError
from longvid_train.models.backbones.load import read_facts
from longvid_train.models.backbones.planned import PLANNED, PlannedProcessor
from longvid_train.models.backbones.processing import BackboneProcessor
from longvid_train.types import ALL_PATCHES
from longvid_train.video import FramesPerSecond, Sampling, UniformFrames


class BackboneDataModule(ManifestDataModule):
    """`ManifestDataModule` for a public backbone: its own prompts and pixels, and the visual tokens of an adaptation.

    A video is sampled as the adaptation says (``frames``, ``fps``), else by ``media.sampling``, and shown as its plan
    says. An image is one frame with all its patches. Every row of every manifest is measured against the extended
    window when the stage is set up, before weights load.

    Attributes:
        adaptation: of the run; the training module extends the window by it, and an adapter stores it.
    """

    def __init__(
        self,
        processor: str,
        adaptation: str | None = None,
        prompt: str | None = None,
        train: str | list[str | ManifestSource] | None = None,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        conversation: ConversationOptions = ConversationOptions(media_per_turn="as_written"),  # noqa: B008 - frozen
        media: MediaOptions = MediaOptions(),  # noqa: B008 - frozen
        budget: TokenBudget = TokenBudget(),  # noqa: B008 - frozen
        bad_samples: BadSamples = BadSamples(),  # noqa: B008 - frozen
        rules: ManifestRules = ManifestRules(),  # noqa: B008 - frozen
        loading: LoadingOptions = LoadingOptions(),  # noqa: B008 - frozen
    ) -> None:
        """Keep the settings; the adaptation and the checkpoint's configuration and processor are read at once.

        Args:
            processor: folder of the backbone.
            adaptation: YAML file; None is the model as it is.
            prompt: instead of the checkpoint's chat template; see ``BackboneProcessor``.
            train: training manifest or manifests, with weights where wanted.
            val: validation manifest or manifests.
            test: test manifest or manifests.
            conversation: how conversations become tokens. Content grids are not used: the plan decides.
            media: how videos and images are read.
            budget: how rows longer than ``conversation.max_tokens`` are made to fit.
            bad_samples: what to do with rows that cannot be used.
            rules: what manifests must fulfil.
            loading: batches, workers, seed.

        Raises:
            UserError: no such backbone or adaptation, one that is for other backbones, or an option that backbones do
                not have.
        """
        self.adaptation: Adaptation = Adaptation() if adaptation is None else load_adaptation(adaptation)
        if self.adaptation.cache is not None:
            raise UserError(
                f"{adaptation}: training keeps no KV cache, so cache has no effect; leave it out, and ask with an "
                "adaptation that adds it"
            )
        if self.adaptation.zoom is not None:
            raise UserError(
                f"{adaptation}: training generates no answers to choose frames by; leave zoom out, and ask with an "
                "adaptation that adds it"
            )
        facts = read_facts(processor)
        self.adaptation.check_backbone(facts.model_type)
        _check_options(conversation, media, budget, loading, joint_frames=facts.grid.joint_frames)
        super().__init__(
            processor,
            train=train,
            val=val,
            test=test,
            conversation=replace(conversation, image_content_grid=ALL_PATCHES, video_content_grid=PLANNED),
            media=replace(media, sampling=adapted_sampling(self.adaptation, media.sampling)),
            budget=budget,
            bad_samples=bad_samples,
            rules=rules,
            loading=loading,
        )
        self._planned = PlannedProcessor(BackboneProcessor.load(processor, facts, prompt=prompt), self.adaptation)
        self.template = CheckpointTemplate(self._planned.checkpoint)

    @property
    def processor(self) -> MultimodalProcessor:
        """The checkpoint's under the adaptation."""
        return self._planned

    def setup(self, stage: str) -> None:
        """As `ManifestDataModule`, and measure every row of the manifests of the stage.

        Raises:
            UserError: a row is over the extended window, or as `ManifestDataModule`.
        """
        super().setup(stage)
        splits = {"fit": ("train", "val", "test"), "validate": ("val",), "test": ("test",), "predict": ("test",)}[stage]
        for split in splits:
            if self._paths[split]:
                self._check_rows(self.dataset(split))

    def _check_rows(self, dataset: ManifestDataset) -> None:
        for index in range(len(dataset)):
            plan = dataset.usable_plan(index)
            if plan is None:
                continue
            with dataset.named(index):
                visual = sum(self._planned.window_tokens(*showing) for showing in plan.showings)
                self._planned.check_window(visual, plan.tokens.total)


def _check_options(
    conversation: ConversationOptions,
    media: MediaOptions,
    budget: TokenBudget,
    loading: LoadingOptions,
    *,
    joint_frames: int,
) -> None:
    default = ConversationOptions()
    for name in ("image_content_grid", "video_content_grid"):
        if getattr(conversation, name) != getattr(default, name):
            raise UserError(
                f"conversation.{name} is {getattr(conversation, name)}, which backbones do not have; set the stride in "
                "the adaptation's plan"
            )
    if conversation.placeholder_position == "random":
        raise UserError(
            "conversation.placeholder_position is random, but a checkpoint's chat template shows media in front of the "
            "words; use first or as_written"
        )
    if media.features is not None:
        raise UserError("media.features is set, but features are those of a LLaMA-VID tower; leave it out")
    if loading.packing:
        raise UserError(
            "loading.packing is true, but each row of a backbone may have a window of its own; set it to false"
        )
    if "coarser_pooling" in budget.shorten:
        raise UserError(
            "budget.shorten has coarser_pooling, but the adaptation's plan decides the pooling; leave it out"
        )
    if "fewer_frames" in budget.shorten and joint_frames > 1:
        raise UserError(
            f"budget.shorten has fewer_frames, but this backbone reads {joint_frames} frames together; set the "
            "adaptation's frames instead"
        )


def adapted_sampling(adaptation: Adaptation, otherwise: Sampling) -> Sampling:
    """The adaptation's ``fps`` or ``frames``, else ``otherwise``."""
    if adaptation.fps is not None:
        return FramesPerSecond(fps=adaptation.fps, max_frames=adaptation.frames)
    return otherwise if adaptation.frames is None else UniformFrames(count=adaptation.frames)
