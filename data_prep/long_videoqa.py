r"""Stage 3 questions: LLaMA-VID's Long-VideoQA, written by a teacher model from the synopses and scripts of movies.

For every movie of --movies (rows of data_prep.movienet --rows index, or your own: media, and meta.synopsis_file and
meta.script_file relative to that manifest): two summaries, 5 plot and 5 character pairs from the synopsis, 5 reasoning
and 5 detail pairs from the script; one row each, about the whole movie with its subtitles. The teacher is any model
behind an OpenAI-compatible endpoint; the prompts are data_prep/prompts/*.txt. Replies are parsed strictly, asked for
again when they are off format, and kept in the cache: a run that was stopped goes on for free. --skip-bad LIMIT allows
so many tasks of movies without a usable reply. What it cost is printed, and written to NAME.teacher.json.

examples:
  export OPENAI_API_KEY=...
  python -m data_prep.long_videoqa --movies data/movienet/movies.jsonl --out data/movienet/manifest.jsonl \
      --teacher-base-url https://api.openai.com/v1 --teacher-model gpt-4o --teacher-cache teacher_cache \
      --teacher-requests-per-minute 60 --teacher-usd-per-million-prompt-tokens 2.5 \
      --teacher-usd-per-million-completion-tokens 10 --teacher-max-cost-usd 50
  python -m data_prep.long_videoqa --movies movies.jsonl --out long_videoqa.jsonl --tasks summary,plot \
      --teacher-base-url http://127.0.0.1:8000/v1 --teacher-model local --teacher-cache cache --teacher-api-key-env ''
"""

import argparse
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.command_line import positive, run_source
from data_prep.outcome import BadRecordError, DroppedError
from data_prep.reading.inputs import InputFile
from data_prep.reading.item import Item
from data_prep.receipt import beside
from data_prep.shard import Shard
from data_prep.source import Origin
from data_prep.teaching.prompts import prompt_digest
from data_prep.teaching.tasks import TASKS, Task, Taught
from longvid_train.console import argument
from longvid_train.data.manifest import Manifest, ManifestRules, Media, Sample, Turn, read_manifest
from longvid_train.endpoint import ChatClient, EndpointSettings, Failure, Spending
from longvid_train.endpoint.arguments import add_endpoint_arguments, endpoint_settings
from longvid_train.errors import UserError, nearest
from longvid_train.files import write_json

ORIGIN = Origin(source="long_videoqa", license="", version="1")
TOLD_EVERY = 50
"""Tasks between two lines about how far the teacher is and what it has cost."""

DEFAULT_CHARACTERS = 200_000
"""About 50,000 tokens of English: most scripts in one piece."""

SUMMARY_QUESTIONS = {
    "brief": (
        "Summarise this movie in one paragraph.",
        "Give me the main thread of this movie in a few sentences.",
        "What is this movie about, in short?",
    ),
    "detailed": (
        "Tell the whole story of this movie in detail.",
        "Summarise this movie from beginning to end, with who does what and why.",
        "Give me a detailed account of the plot of this movie.",
    ),
}


@dataclass(frozen=True)
class TaughtSource:
    """One record a movie and task; its rows are what the teacher wrote.

    Attributes:
        origin: the data set.
        movies: the manifest of movies.
        out: the manifest to write: paths in rows are seen from its folder.
        shard: whose questions are asked; those of other shards are not paid for.
        teacher: the endpoint.
        tasks: names of `TASKS`.
        most_characters: of a text in one request.
        text_encoding: of synopses and scripts.
        seed: decides how summaries are asked for.
    """

    origin: Origin
    movies: Path
    out: Path
    shard: Shard
    teacher: EndpointSettings
    tasks: tuple[str, ...]
    most_characters: int
    text_encoding: str
    seed: int

    def inputs(self) -> Sequence[InputFile]:
        """The manifest of movies, and every synopsis and script."""
        manifest = self._manifest()
        texts = {
            path
            for sample in manifest
            for kind in ("synopsis", "script")
            if (path := _text_path(manifest, sample, kind))
        }
        return [InputFile(self.movies), *(InputFile(path) for path in sorted(texts) if path.is_file())]

    def settings(self) -> Mapping[str, Any]:
        """What the rows depend on: not how fast the endpoint is asked, nor where it is."""
        prompts = sorted({prompt for name in self.tasks for prompt in TASKS[name].prompts})
        return {
            "teacher": self.teacher.model,
            "parameters": dict(self.teacher.parameters),
            "format_tries": self.teacher.format_tries,
            "prompts": prompt_digest(*prompts),
            "tasks": list(self.tasks),
            "most_characters": self.most_characters,
            "text_encoding": self.text_encoding,
            "seed": self.seed,
        }

    def read(self) -> Iterator[Item]:
        """Every movie and task with the teacher's reply; tasks of other shards come without one."""
        manifest = self._manifest()
        records = [
            (manifest.line_number(index), sample, name) for index, sample in enumerate(manifest) for name in self.tasks
        ]
        with ChatClient(self.teacher) as client:
            try:
                jobs = (partial(self._taught, client, manifest, sample, name) for _, sample, name in records)
                replies = zip(records, client.run_all(jobs), strict=True)
                for number, ((line, sample, name), taught) in enumerate(replies, start=1):
                    if number % TOLD_EVERY == 0:
                        print(f"{number} of {len(records)} tasks; {self._told(client.spending)}", file=sys.stderr)
                    yield Item(
                        file=str(self.movies), line=line, value={"movie": sample, "task": name, "taught": taught}
                    )
            finally:
                self._report(client.spending)

    def key(self, value: Any) -> str:
        """Movie and task."""
        return _key(value["movie"], value["task"])

    def convert(self, value: Any, row_id: str) -> Sequence[Sample]:
        """One row a pair."""
        taught = value["taught"]
        if isinstance(taught, DroppedError | BadRecordError):
            raise taught
        if isinstance(taught, Failure):
            raise BadRecordError(
                f"the teacher gave no usable reply ({taught.reason})",
                f"{taught.tries} tries, the last: {taught.detail}",
            )
        return list(self._rows(value["movie"], value["task"], taught, row_id))

    def _manifest(self) -> Manifest:
        return read_manifest(self.movies, ManifestRules(require_answer=False))

    def _taught(
        self, client: ChatClient, manifest: Manifest, sample: Sample, name: str
    ) -> Taught | Failure | DroppedError | BadRecordError | None:
        if not self.shard.holds(_key(sample, name)):
            return None
        task = TASKS[name]
        try:
            text = _text(manifest, sample, task, self.text_encoding)
        except (DroppedError, BadRecordError) as error:
            return error
        return task.ask(client, text, self.most_characters)

    def _rows(self, movie: Sample, name: str, taught: Taught, row_id: str) -> Iterator[Sample]:
        media = tuple(self._seen_from_out(medium) for medium in movie.media)
        shown = "".join(f"<{medium.type}>\n" for medium in media)
        known = {key: movie.meta[key] for key in ("imdb_id", "title", "duration_s") if key in movie.meta}
        made = {"teacher": taught.model or self.teacher.model, "prompts": prompt_digest(*TASKS[name].prompts)}
        for number, (kind, pair) in enumerate(taught.pairs, start=1):
            this_id = f"{row_id}/{number}"
            question = pair.question or random.Random(f"{self.seed} {this_id}").choice(SUMMARY_QUESTIONS[kind])
            yield Sample(
                id=this_id,
                conversation=(Turn("user", f"{shown}{question}"), Turn("assistant", pair.answer)),
                media=media,
                license=f"{movie.license}; questions and answers by {made['teacher']}, under the terms of its provider",
                meta={"kind": kind, "answer": pair.answer, **known, **made},
            )

    def _seen_from_out(self, medium: Media) -> Media:
        home, start = self.out.absolute().parent, self.movies.absolute().parent
        subtitles = None if medium.subtitles is None else _relative(start / medium.subtitles, home)
        return replace(medium, path=_relative(start / medium.path, home), subtitles=subtitles)

    def _report(self, spending: Spending) -> None:
        print(self._told(spending), file=sys.stderr)
        write_json(beside(self.shard.path(self.out), "teacher.json"), spending.as_json())

    def _told(self, spending: Spending) -> str:
        cost = "" if spending.cost_usd is None else f", {spending.cost_usd:.4f} USD"
        tokens = f"{spending.prompt_tokens} + {spending.completion_tokens} tokens"
        failed = f", {sum(spending.failures.values())} failed" if spending.failures else ""
        replies = f"{spending.sent} replies ({tokens}{cost}), {spending.from_cache} from the cache{failed}"
        return f"teacher {self.teacher.model}: {replies}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this source."""
    add = parser.add_argument
    add("--movies", type=Path, required=True, help="manifest of movies: see above")
    add("--tasks", type=argument(_tasks), default=tuple(TASKS), help=f"some of {','.join(TASKS)} (all)")
    add(
        "--max-characters",
        type=argument(positive),
        default=DEFAULT_CHARACTERS,
        help=f"of a text in one request; longer ones go in parts ({DEFAULT_CHARACTERS})",
    )
    add("--text-encoding", default="utf-8-sig", help="encoding of synopses and scripts, e.g. cp1252 (UTF-8)")
    add("--seed", type=int, default=0, help="decides how summaries are asked for (0)")
    add_endpoint_arguments(parser, "teacher")


def make_source(arguments: argparse.Namespace) -> TaughtSource:
    """The source that the options describe."""
    return TaughtSource(
        origin=ORIGIN,
        movies=arguments.movies,
        out=arguments.out,
        shard=arguments.shard,
        teacher=endpoint_settings(arguments, "teacher"),
        tasks=arguments.tasks,
        most_characters=arguments.max_characters,
        text_encoding=arguments.text_encoding,
        seed=arguments.seed,
    )


def _tasks(text: str) -> tuple[str, ...]:
    names = text.split(",")
    for name in names:
        if name not in TASKS:
            raise UserError(f"'{name}' is no task; there are {', '.join(TASKS)}{nearest(name, list(TASKS))}")
    return tuple(name for name in TASKS if name in names)


def _key(movie: Sample, task: str) -> str:
    return f"{movie.id}/{task}"


def _text_path(manifest: Manifest, movie: Sample, kind: str) -> Path | None:
    name = movie.meta.get(f"{kind}_file")
    return manifest.resolve(name) if isinstance(name, str) else None


def _text(manifest: Manifest, movie: Sample, task: Task, encoding: str) -> str:
    path = _text_path(manifest, movie, task.text)
    if path is None:
        raise DroppedError(f"the movie has no {task.text}")
    try:
        text = path.read_text(encoding=encoding)
    except OSError as error:
        raise BadRecordError(f"the {task.text} cannot be read", f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, LookupError) as error:
        raise BadRecordError(f"the {task.text} cannot be read", f"{path}: {error}; name its --text-encoding") from error
    if not text.strip():
        raise BadRecordError(f"the {task.text} is empty", str(path))
    return text


def _relative(path: Path, home: Path) -> str:
    return path.relative_to(home).as_posix() if path.is_relative_to(home) else path.as_posix()


if __name__ == "__main__":
    sys.exit(run_source("long_videoqa"))
