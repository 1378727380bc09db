"""Ask questions about a video or an image; the words after the first question are follow-ups in the same conversation.

examples:
  longvid ask clip.mp4 "What happens in the video?" --model quickstart/stage3/model
  longvid ask clip.mp4 "Which object comes first?" "And after it?" --frames 32
  longvid ask talk.mp4 "What was promised?" --subtitles talk.srt --start 60 --end 180 --fps 2 --json
  longvid ask photo.jpg "What is this?" --media other.jpg
  longvid ask clip.mp4 --stdin < questions.txt
  longvid ask clip.mp4 "What happens?" --adapter runs/stage2_lora/adapter
  longvid ask movie.mp4 "Who wins?" --model llava-hf/llava-onevision-qwen2-7b-ov-hf --frames 256
      --adaptation configs/adaptations/visual_yarn.yaml
  longvid ask movie.mp4 "Who wins?" --model MODEL --adaptation configs/adaptations/kv/kivi_g32.yaml --json
  longvid ask movie.mp4 "Describe the video." --model llava-hf/LLaVA-NeXT-Video-7B-hf --trace out
      --adaptation configs/adaptations/zoomvlm/clip_32.yaml

The answer streams to stdout; progress and numbers go to stderr. Without --frames and --fps an adaptation's own frames
are shown; without those a LLaMA-VID samples a video at 1 frame per second, or as densely as its window allows, and any
other model the frames it was trained on (said on stderr). Every medium stands in front of the question; "<video>" and
"<image>" in the first question place them elsewhere.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from longvid_train.commands.limits import add_limit_options, limits_of
from longvid_train.errors import UserError

if TYPE_CHECKING:
    from longvid_train.generate.answer import Answer, CacheUse
    from longvid_train.generate.chat import Conversation
    from longvid_train.generate.media import Medium, ReadOptions
    from longvid_train.generate.options import GenerationOptions
    from longvid_train.generate.prompting import Prompting
    from longvid_train.video import Sampling, VideoInfo

DEFAULT_MODEL = Path("quickstart/stage3/model")
DEFAULT_FPS = 1.0
DEFAULT_NEW_TOKENS = 256
STDIN_QUESTIONS = 4
"""Questions the default sampling leaves room for when more may come from standard input."""

PROGRESS_INTERVAL_S = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``longvid ask``."""
    add = parser.add_argument
    add("medium", metavar="VIDEO_OR_IMAGE", help="file to ask about")
    add("questions", metavar="QUESTION", nargs="*", help="first question, then follow-ups")
    add("--media", metavar="FILE", action="append", default=[], help="a further video or image (repeatable)")
    add("--stdin", action="store_true", help="read further questions from standard input, one a line")
    add("--model", metavar="MODEL", help=f"folder, or hub id of a backbone ({DEFAULT_MODEL} where it exists)")
    add("--adaptation", type=Path, metavar="YAML", help="how videos are shown, the window is extended, the cache coded")
    add("--adapter", type=Path, metavar="FOLDER", help="LoRA adapter; its record names the model if --model does not")
    add("--template", help="LLaMA-VID: vicuna_v1 or plain (the one the checkpoint was trained with)")
    add("--prompt", metavar="TEXT", help=r'other models: e.g. "USER: <video>\n{question} ASSISTANT:" (chat template)')
    density = parser.add_mutually_exclusive_group()
    density.add_argument("--frames", type=int, metavar="N", help="show N frames, evenly spaced")
    density.add_argument("--fps", type=float, metavar="F", help="show F frames per second (1, as far as they fit)")
    add("--start", type=float, metavar="S", default=0.0, help="first second to look at (0)")
    add("--end", type=float, metavar="S", help="second to stop at (the end)")
    add("--subtitles", metavar="FILE.srt", action="append", default=[], help="subtitles, once a video in their order")
    add("--device", default="auto", help="auto, cpu or cuda (auto)")
    add("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (auto: the checkpoint's)")
    add(
        "--features-on",
        default="device",
        metavar="PLACE",
        help="where frames wait once encoded: device or cpu (device)",
    )
    add("--prefill-chunk", type=int, metavar="N", help="tokens of the prompt that pass the model at once (1024)")
    add("--frame-chunk", type=int, metavar="N", help="frames that pass the vision tower at once (the model's own)")
    add("--max-new-tokens", type=int, metavar="N", help="longest answer (256, or what half the window leaves each)")
    add("--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest words (0)")
    add("--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest tokens of probability P (1)")
    add("--num-beams", type=int, default=1, metavar="N", help="beam search (1: none)")
    add("--seed", type=int, default=0, help="of the draws (0)")
    add("--reader", default="auto", help="auto, pyav or decord (auto)")
    add(
        "--trace",
        type=Path,
        metavar="FOLDER",
        help="write where the model looked, JSON and a page a question (LLaMA-VID, or an adaptation that zooms); a "
        "folder without traces",
    )
    add("--json", action="store_true", help="print one JSON object; the top level is the last answer, turns has all")
    add_limit_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Answer the questions and print the answers."""
    _check_words(arguments)
    limits = limits_of(arguments)
    if arguments.adapter is None:
        arguments.model = _model_source(arguments.model)
    # Importing torch takes seconds: mistakes above and --help do not pay for it.
    import transformers

    from longvid_train.adaptation.reading import load_adaptation
    from longvid_train.commands.tracing import Tracer, check_traceable
    from longvid_train.generate.chat import VideoChat, resolve_device, resolve_dtype
    from longvid_train.generate.engine import EngineOptions
    from longvid_train.generate.loading import read_prompting
    from longvid_train.generate.media import ReadOptions, check_frame_counts
    from longvid_train.generate.options import GenerationOptions
    from longvid_train.models.backbones.adapted import read_any_adapter
    from longvid_train.models.prefill import PREFILL_CHUNK

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    asked_tokens = arguments.max_new_tokens
    options = GenerationOptions(
        max_new_tokens=DEFAULT_NEW_TOKENS if asked_tokens is None else asked_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        num_beams=arguments.num_beams,
        seed=arguments.seed,
    )
    engine = EngineOptions(
        features_on=arguments.features_on,
        prefill_chunk=PREFILL_CHUNK if arguments.prefill_chunk is None else arguments.prefill_chunk,
        frame_chunk=arguments.frame_chunk,
        sentence_attention=arguments.trace is not None,
    )
    resolve_device(arguments.device)
    resolve_dtype(arguments.dtype)
    read = ReadOptions(reader=arguments.reader, isolated=not arguments.no_isolate, limits=limits)
    adaptation = None if arguments.adaptation is None else load_adaptation(arguments.adaptation)
    adapter = None if arguments.adapter is None else read_any_adapter(arguments.adapter)
    given = None if arguments.model is None else Path(arguments.model)
    source = arguments.model if adapter is None else adapter.base_folder(given)
    prompting = read_prompting(
        source, adaptation=adaptation, adapter=adapter, template=arguments.template, prompt=_prompt(arguments)
    )
    prompting.check_generation(options)
    if arguments.trace is not None:
        check_traceable(prompting, arguments.trace)
    if asked_tokens is None:
        options = replace(options, max_new_tokens=_default_new_tokens(prompting.window, _planned(arguments)))
    media = _media(arguments, read, prompting, options)
    check_frame_counts(media, read)
    if arguments.questions:
        _check_questions(arguments.questions, media, prompting, options)
    _say(f"loading {source}{'' if adapter is None else f' and {adapter.folder}'}")
    chat = VideoChat.load(
        source, adapter=adapter, prompting=prompting, device=arguments.device, dtype=arguments.dtype, engine=engine
    )
    talk = chat.open(media, read=read, on_progress=_Progress())
    tracer = None if arguments.trace is None else Tracer(chat, read, arguments.trace)
    reports = []
    for question in _questions(arguments):
        answer = _answered(talk, question, options, arguments.json)
        pages = [] if tracer is None else tracer.write(talk, answer)
        for page in pages:
            _say(f"trace: {page}")
        reports.append(_report(answer, pages))
    if not reports:
        raise UserError("standard input holds no question; write one a line")
    if arguments.json:
        print(json.dumps(_joined(reports), ensure_ascii=False))
    return 0


def _check_questions(
    questions: list[str], media: "list[Medium]", prompting: "Prompting", options: "GenerationOptions"
) -> None:
    """Refuse what does not fit or cannot be extended, before weights load."""
    from longvid_train.generate.prompting import unanswered

    layouts = [medium.layout for medium in media]
    turns = unanswered(questions, [medium.type for medium in media])
    prompting.check_window(turns, layouts, options.max_new_tokens)
    counts = prompting.token_counts(turns, layouts, options.max_new_tokens)
    if prompting.adaptation.window.extends:
        prompting.extension(prompting.skeleton(), counts)
    if prompting.compression is not None:
        prompting.check_cache(prompting.skeleton(), counts)


def _check_words(arguments: argparse.Namespace) -> None:
    if not arguments.questions and not arguments.stdin:
        raise UserError(f'no question: write one behind {arguments.medium}, e.g. "What happens?", or use --stdin')
    for question in arguments.questions:
        if not question.strip():
            raise UserError('the question is empty; write one, e.g. "What happens in the video?"')


def _planned(arguments: argparse.Namespace) -> list[str]:
    """The questions to leave room for; those of standard input are not known yet."""
    questions = [*arguments.questions]
    if arguments.stdin:
        questions += [questions[0] if questions else "?"] * max(1, STDIN_QUESTIONS - len(questions))
    return questions


def _default_new_tokens(window: int, questions: list[str]) -> int:
    """Tokens of an answer when none are asked for: half the window belongs to the questions and what they show."""
    room = max(1, window // 2 // len(questions))
    if room < DEFAULT_NEW_TOKENS:
        _say(f"answers have up to {room} tokens each: the language model's window is {window} (--max-new-tokens)")
    return min(DEFAULT_NEW_TOKENS, room)


def _model_source(given: str | None) -> str:
    if given is not None:
        return given
    if not DEFAULT_MODEL.is_dir():
        raise UserError(
            f"no --model given and {DEFAULT_MODEL} does not exist here; name a folder or a hub id, or train a small "
            "model with: bash scripts/quickstart.sh"
        )
    return str(DEFAULT_MODEL)


def _prompt(arguments: argparse.Namespace) -> str | None:
    r"""The prompt with its line ends, which a shell passes on as ``\n``."""
    return None if arguments.prompt is None else arguments.prompt.replace(r"\n", "\n")


def _questions(arguments: argparse.Namespace) -> Iterator[str]:
    yield from arguments.questions
    if arguments.stdin:
        for line in sys.stdin:
            if line.strip():
                yield line.strip()


def _media(
    arguments: argparse.Namespace, read: "ReadOptions", prompting: "Prompting", options: "GenerationOptions"
) -> "list[Medium]":
    """Open all files, in the order given, with the sampling asked for."""
    from longvid_train.generate.media import media_type, open_image, probe_video

    paths = [arguments.medium, *arguments.media]
    infos = {path: probe_video(path, read) for path in dict.fromkeys(paths) if media_type(path) == "video"}
    videos = [path for path in paths if path in infos]
    _check_video_options(arguments, len(videos))

    def opened(sampling: "Callable[[VideoInfo], Sampling]") -> "list[Medium]":
        from longvid_train.generate.media import open_video

        subtitles = iter(arguments.subtitles)
        return [
            open_video(infos[path], sampling(infos[path]), subtitles=next(subtitles, None), reader=read.reader)
            if path in infos
            else open_image(path)
            for path in paths
        ]

    if not videos:
        return [open_image(path) for path in paths]
    asked = _asked_sampling(arguments, prompting)
    if asked is not None:
        return opened(lambda info: _whole_groups(asked, info, prompting.joint_frames))
    if prompting.trained_frames is not None:
        return _trained_frames(arguments, prompting, opened)
    return _default_sampling(arguments, prompting, options, opened)


def _check_video_options(arguments: argparse.Namespace, videos: int) -> None:
    if len(arguments.subtitles) > videos:
        raise UserError(f"--subtitles {arguments.subtitles[-1]}: there are {videos} videos; give one file a video")
    given = {
        "--frames": arguments.frames is not None,
        "--fps": arguments.fps is not None,
        "--start": arguments.start != 0,
        "--end": arguments.end is not None,
    }
    for name, is_given in given.items():
        if is_given and not videos:
            raise UserError(f"{name} has no effect: {arguments.medium} is an image; leave it out")


def _asked_sampling(arguments: argparse.Namespace, prompting: "Prompting") -> "Sampling | None":
    """Of the command line, else of the adaptation."""
    from longvid_train.video import FramesPerSecond, UniformFrames

    frames, fps, most = arguments.frames, arguments.fps, None
    if frames is None and fps is None:
        adaptation = prompting.adaptation
        frames, fps = (adaptation.frames, None) if adaptation.fps is None else (None, adaptation.fps)
        most = adaptation.frames
    if frames is not None:
        return UniformFrames(count=frames, start_s=arguments.start, end_s=arguments.end)
    if fps is not None:
        return FramesPerSecond(fps=fps, max_frames=most, start_s=arguments.start, end_s=arguments.end)
    return None


def _whole_groups(sampling: "Sampling", info: "VideoInfo", joint_frames: int) -> "Sampling":
    """A rate gives any number of frames; a joint-frame tower takes the whole groups of them."""
    from longvid_train.video import FramesPerSecond, frame_count

    if joint_frames == 1 or not isinstance(sampling, FramesPerSecond):
        return sampling
    whole = frame_count(sampling, info) // joint_frames * joint_frames
    return replace(sampling, max_frames=whole) if whole else sampling


def _trained_frames(
    arguments: argparse.Namespace,
    prompting: "Prompting",
    opened: "Callable[[Callable[[VideoInfo], Sampling]], list[Medium]]",
) -> "list[Medium]":
    """The frames the model was trained on, or all of a shorter video, in whole groups."""
    from longvid_train.video import UniformFrames

    trained, step = prompting.trained_frames, prompting.joint_frames
    assert trained is not None
    every = UniformFrames(count=trained, at_most=True, start_s=arguments.start, end_s=arguments.end)
    found = min(len(medium.timestamps_s) for medium in opened(lambda info: every) if medium.type == "video")
    count = max(step, found // step * step)
    _say(f"showing {count} frames, evenly spaced: the model was trained on {trained} (--frames shows more)")
    sampling = UniformFrames(count=count, start_s=arguments.start, end_s=arguments.end)
    return opened(lambda info: sampling)


def _default_sampling(
    arguments: argparse.Namespace,
    prompting: "Prompting",
    options: "GenerationOptions",
    opened: "Callable[[Callable[[VideoInfo], Sampling]], list[Medium]]",
) -> "list[Medium]":
    """1 frame per second, or the most frames a video with which all questions fit the window, said on stderr."""
    from longvid_train.generate.prompting import largest
    from longvid_train.video import FramesPerSecond

    def sampled(cap: int | None) -> "list[Medium]":
        sampling = FramesPerSecond(fps=DEFAULT_FPS, max_frames=cap, start_s=arguments.start, end_s=arguments.end)
        return opened(lambda info: sampling)

    def fits(media: "list[Medium]") -> bool:
        return prompting.fits([m.layout for m in media], questions, options.max_new_tokens)

    questions = _planned(arguments)
    media = sampled(None)
    if fits(media):
        return media
    wanted = max(len(medium.timestamps_s) for medium in media if medium.type == "video")
    cap = largest(lambda count: fits(sampled(count)), wanted)
    if not cap:
        return media
    _say(
        f"{DEFAULT_FPS:g} frame per second would be {wanted} frames; the window of {prompting.window} tokens has room "
        f"for {cap} with {len(questions)} question{'s' if len(questions) > 1 else ''}: showing {cap}, evenly spaced"
    )
    return sampled(cap)


def _answered(talk: "Conversation", question: str, options: "GenerationOptions", as_json: bool) -> "Answer":
    def show(text: str) -> None:
        print(text, end="", flush=True)

    answer = talk.ask(question, options, on_text=None if as_json else show)
    if not as_json:
        print(flush=True)
    for note in answer.notes:
        _say(note)
    if answer.cache is not None:
        _say(_cache_words(answer.cache))
    _say(_numbers(answer))
    return answer


def _numbers(answer: "Answer") -> str:
    return (
        f"[{answer.frames} frames, {answer.visual_tokens} visual tokens of {answer.prompt_tokens} prompt tokens, "
        f"{answer.new_tokens} new tokens; decode {answer.decode_s:.2f} s, encode {answer.encode_s:.2f} s, "
        f"generate {answer.generate_s:.2f} s; peak {answer.peak_bytes / 2**20:.0f} MiB; {answer.dtype} on "
        f"{answer.device}]"
    )


def _cache_words(cache: "CacheUse") -> str:
    if not cache.coded_bytes:
        return f"cache {cache.name}: nothing is coded, the sink and recent windows hold the whole sequence"
    return (
        f"cache {cache.name}: {cache.bits_per_number:.2f} bits a number, {cache.coded_bytes / 2**20:.2f} MiB coded, "
        f"{cache.exact_bytes / 2**20:.2f} MiB exact, {cache.parameter_bytes / 2**20:.2f} MiB parameters, "
        f"{cache.total_bytes / 2**20:.2f} MiB in all"
    )


def _report(answer: "Answer", pages: list[Path]) -> dict[str, object]:
    """An answer as plain values; where a trace was written in its place."""
    values = asdict(replace(answer, trace=None))
    del values["trace"]
    return values | ({"trace_pages": [str(page) for page in pages]} if pages else {})


def _joined(turns: list[dict[str, object]]) -> dict[str, object]:
    return turns[-1] if len(turns) == 1 else {**turns[-1], "turns": turns}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class _Progress:
    """Lines on stderr: each file as it is opened, then the frames done, at most one line every few seconds."""

    def __init__(self) -> None:
        self._said_s = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done not in (0, total) and now - self._said_s < PROGRESS_INTERVAL_S:
            return
        self._said_s = now
        _say(f"{what}: {done}/{total} frames")
