"""lmms-eval's two interfaces over `HarnessAsker`. Imported by lmms-eval only: it is in an environment of its own."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms

from longvid_train.errors import UserError
from longvid_train.evaluation.harness.arguments import settings_of_arguments
from longvid_train.evaluation.harness.asking import HarnessAsker
from longvid_train.evaluation.harness.requests import HarnessRequest, chat_request, simple_request


class LongvidSimple(lmms):
    """The simple interface: a context and a list of visuals.

    Args:
        **given: see `settings_of_arguments`.

    Raises:
        UserError: as `settings_of_arguments` and `HarnessAsker`.
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
        results: list[GenerationResult] = []
        for _, group in groupby(requests, key=lambda request: repr(self._generation(request))):
            results += self._answered(list(group))
        return results

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not offered: no benchmark of the papers asks for it."""
        raise UserError(
            "longvid answers in words and gives no likelihoods; choose a task of output_type generate_until"
        )

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not offered: no benchmark of the papers asks for it."""
        raise UserError("longvid answers one round a request; choose a task of output_type generate_until")

    def _answered(self, group: Sequence[Instance]) -> Iterator[GenerationResult]:
        """Answer requests that share their generation settings; their documents are read as they are asked."""
        for answer in self.asker.answer(map(self._request, group), self._generation(group[0])):
            counts = TokenCounts(input_tokens=answer.prompt_tokens, output_tokens=answer.new_tokens)
            yield GenerationResult(text=answer.answer, token_counts=counts)

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
