"""A checkpoint says how it was trained, and questions are asked that way: no mismatch of template or content tokens."""

import shutil
from pathlib import Path

from longvid_train.generate.chat import ImageRequest, VideoChat
from longvid_train.generate.llama_vid_prompting import LlamaVidPrompting
from longvid_train.generate.options import GenerationOptions
from longvid_train.models.llama_vid import LlamaVidProcessor


def test_template_and_grids_come_from_the_checkpoint(checkpoint: Path, files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "trained"
    shutil.copytree(checkpoint, folder)
    processor = LlamaVidProcessor.from_pretrained(folder)
    assert LlamaVidPrompting.from_folder(folder).template.name == "vicuna_v1"
    all_patches = processor.visual_grid**2
    processor.trained_with(template="plain", image_content_grid=1, video_content_grid=2).save_pretrained(folder)

    prompting = LlamaVidPrompting.from_folder(folder)
    assert prompting.template.name == "plain"
    assert (prompting.options.image_content_grid, prompting.options.video_content_grid) == (1, 2)
    tokens = {
        name: VideoChat.load(path, device="cpu")
        .open([ImageRequest(files / "picture.png")])
        .ask("What is this?", GenerationOptions(max_new_tokens=1))
        .visual_tokens
        for name, path in (("before", checkpoint), ("after", folder))
    }
    assert tokens == {"before": 1 + all_patches, "after": 2}
