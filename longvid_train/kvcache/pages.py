"""Coded tokens of one layer, in pages.

A page is the most that attention decodes or unpacks at a time. Tokens are appended in blocks and never coded again;
what is allocated is what is used. A page that was cut inside a block takes no more tokens, the next block opens a new
one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from longvid_train.kvcache.codec import Codec, Coded

PAGE_TOKENS = 1024


@dataclass(frozen=True, eq=False)
class Page:
    """Coded keys and values of consecutive tokens.

    Attributes:
        keys: see `Coded`.
        values: see `Coded`.
        length: tokens.
    """

    keys: Coded
    values: Coded
    length: int

    def tensors(self) -> Iterator[torch.Tensor]:
        """Everything stored."""
        yield from self.keys.values()
        yield from self.values.values()

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Page":
        """The page with every stored tensor changed."""
        return Page(
            {name: change(tensor) for name, tensor in self.keys.items()},
            {name: change(tensor) for name, tensor in self.values.items()},
            self.length,
        )


class PageStore:
    """A growing list of pages.

    Args:
        keys: codec of the keys; tells how many tokens an entry covers.
        values: codec of the values.
        block_tokens: tokens come in multiples of it.
        page_tokens: tokens of a full page, at least one block.
    """

    def __init__(self, keys: Codec, values: Codec, *, block_tokens: int, page_tokens: int = PAGE_TOKENS) -> None:
        self._codecs = keys, values
        self._block_tokens = block_tokens
        self.page_tokens = max(page_tokens // block_tokens, 1) * block_tokens
        self.pages: list[Page] = []

    @property
    def length(self) -> int:
        """Tokens in all pages."""
        return sum(page.length for page in self.pages)

    def room(self) -> int:
        """Tokens that the last page can still take."""
        if not self.pages or self.pages[-1].length % self._block_tokens:
            return 0
        return self.page_tokens - self.pages[-1].length

    def append(self, page: Page) -> None:
        """Add tokens: to the last page if it has room for them, else as a new page."""
        assert page.length % self._block_tokens == 0, (page.length, self._block_tokens)
        if page.length > self.room():
            self.pages.append(page)
            return
        last = self.pages[-1]
        self.pages[-1] = Page(
            _joined(last.keys, page.keys), _joined(last.values, page.values), last.length + page.length
        )

    def crop(self, length: int) -> None:
        """Keep the first ``length`` tokens."""
        while self.pages and self.length - self.pages[-1].length >= length:
            self.pages.pop()
        surplus = self.length - length
        if self.pages and surplus > 0:
            last = self.pages.pop()
            kept = last.length - surplus
            keys, values = (
                _cut(coded, codec, kept) for coded, codec in zip((last.keys, last.values), self._codecs, strict=True)
            )
            self.pages.append(Page(keys, values, kept))

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Change every stored tensor."""
        self.pages = [page.map(change) for page in self.pages]

    def code_bytes(self) -> int:
        """Allocated bytes, the schemes' metadata included."""
        return sum(tensor.untyped_storage().nbytes() for page in self.pages for tensor in page.tensors())


def _joined(first: Coded, second: Coded) -> Coded:
    return {name: torch.cat([tensor, second[name]], dim=2) for name, tensor in first.items()}


def _cut(coded: Coded, codec: Codec, length: int) -> Coded:
    """The entries that cover the first ``length`` tokens, in storage of their own."""
    return {name: tensor[:, :, : -(-length // codec.strides.get(name, 1))].clone() for name, tensor in coded.items()}
