"""lmms-eval's two interfaces over `HarnessAsker`. Imported by lmms-eval only: it is in an environment of its own."""

from collections.abc import Sequence
from dataclasses import fields
from itertools import groupby
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms

from longvid_train.errors import UserError, nearest
from longvid_train.evaluation.harness.asking import HarnessAsker
from longvid_train.evaluation.harness.requests import HarnessRequest, chat_request, simple_request
from longvid_train.evaluation.local.settings import EvaluationSettings

TAKEN = (
    "model",
    "adapter",
    "adaptation",
    "template",
    "prompt",
    "frames",
    "fps",
    "max_new_tokens",
    "batch_size",
    "device",
    "dtype",
    "features_on",
    "reader",
    "isolated",
)
"""Settings that ``--model_args`` may give; ``pretrained`` is another word for ``model``."""


def settings_of_arguments(given: dict[str, Any]) -> EvaluationSettings:
    """What ``--model_args`` says.

    Raises:
        UserError: an unknown name, or a value out of its range.
    """
    known = {name: value for name, value in given.items() if name != "max_batch_size" and value is not None}
    if "pretrained" in known:
        known["model"] = known.pop("pretrained")
    for name in known:
        if name not in TAKEN:
            raise UserError(f"model_args: '{name}' is unknown{nearest(name, TAKEN) or '.'} Names: {', '.join(TAKEN)}")
    known["batch_size"] = int(known.get("batch_size", 1))
    assert {one.name for one in fields(EvaluationSettings)} >= set(known)
    return EvaluationSettings(**known)


class LongvidSimple(lmms):
    """The simple interface: a context and a list of visuals.

    Args:
        **given: see `TAKEN`.

    Raises:
        UserError: as `HarnessAsker`.
    """

    is_simple = True

    def __init__(self, **given: Any) -> None:
        super().__init__()
        self.asker = HarnessAsker(settings_of_arguments(given))

    @property
    def device(self) -> torch.device:
        """Where the model is; lmms-eval counts requests there."""
        return self.asker.chat.engine.device

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answer requests; those with the same generation settings together."""
        results: dict[int, GenerationResult] = {}
        for _, group in groupby(range(len(requests)), key=lambda place: repr(self._generation(requests[place]))):
            places = list(group)
            generation = self._generation(requests[places[0]])
            answers = self.asker.answer([self._request(requests[place]) for place in places], generation)
            for place, answer in zip(places, answers, strict=True):
                counts = TokenCounts(input_tokens=answer.prompt_tokens, output_tokens=answer.new_tokens)
                results[place] = GenerationResult(text=answer.answer, token_counts=counts)
        return [results[place] for place in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not offered: no benchmark of the papers asks for it."""
        raise UserError(
            "longvid answers in words and gives no likelihoods; choose a task of output_type generate_until"
        )

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not offered: no benchmark of the papers asks for it."""
        raise UserError("longvid answers one round a request; choose a task of output_type generate_until")

    def _generation(self, request: Instance) -> dict[str, Any]:
        generation: dict[str, Any] = request.args[1]
        return generation

    def _request(self, request: Instance) -> HarnessRequest:
        context, _, visual, doc_id, task, split = request.args
        return simple_request(context, visual(self.task_dict[task][split][doc_id]))


class LongvidChat(LongvidSimple):
    """The chat interface: messages with text, images and videos."""

    is_simple = False

    def _generation(self, request: Instance) -> dict[str, Any]:
        generation: dict[str, Any] = request.args[2]
        return generation

    def _request(self, request: Instance) -> HarnessRequest:
        _, messages, _, doc_id, task, split = request.args
        return chat_request(messages(self.task_dict[task][split][doc_id]))
