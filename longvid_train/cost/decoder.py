"""Shapes of a Llama or Qwen2 decoder, and what they count to.

``L`` layers, ``d`` width, ``i`` MLP width, ``q`` width of all query heads, ``k`` of all key heads, ``V`` vocabulary.
"""

from dataclasses import dataclass
from typing import Any

from longvid_train.errors import UserError

BIASED = {"llama": False, "qwen2": True}
"""Whether queries, keys and values have biases, by the decoder's ``model_type``."""


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """The sizes of a decoder with grouped-query attention and a gated MLP.

    Attributes:
        layers: ``L``.
        width: ``d``, hidden size.
        intermediate: ``i``, width inside the MLP.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: width of one head.
        vocabulary: ``V``, rows of the embedding table.
        qkv_bias: queries, keys and values have biases.
        tied: the head is the embedding table.
    """

    layers: int
    width: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    qkv_bias: bool = False
    tied: bool = False

    @property
    def query_width(self) -> int:
        """``q``."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """``k``."""
        return self.kv_heads * self.head_dim

    @property
    def matrix_elements(self) -> int:
        """Elements of all weight matrices in the layers: ``L (2 d q + 2 d k + 3 d i)``; 6.476e9 for Vicuna-7B."""
        attention = 2 * self.width * self.query_width + 2 * self.width * self.kv_width
        return self.layers * (attention + 3 * self.width * self.intermediate)

    @property
    def vector_elements(self) -> int:
        """Norm weights and biases of the layers, and the last norm."""
        biases = (self.query_width + 2 * self.kv_width) * self.qkv_bias
        return self.layers * (2 * self.width + biases) + self.width

    @property
    def head_elements(self) -> int:
        """Elements of the language-model head, ``d V``."""
        return self.width * self.vocabulary

    @property
    def elements(self) -> int:
        """All parameters, a tied head counted once."""
        tables = self.head_elements if self.tied else 2 * self.head_elements
        return self.matrix_elements + self.vector_elements + tables

    @property
    def kv_values_a_token(self) -> int:
        """Numbers a full-precision cache keeps of one token: ``2 L k``."""
        return 2 * self.layers * self.kv_width

    def linear_ops(self, tokens: int) -> int:
        """Operations of the weight matrices in the layers for ``tokens`` tokens; a multiply-add is two."""
        return 2 * self.matrix_elements * tokens

    def head_ops(self, positions: int) -> int:
        """Operations of the head for ``positions`` positions."""
        return 2 * self.head_elements * positions

    def attention_ops(self, pairs: int) -> int:
        """Operations of scores and mixing for ``pairs`` (query, key) pairs: ``4 L q`` each."""
        return 4 * self.layers * self.query_width * pairs


def decoder_shape(text_config: Any) -> DecoderShape:
    """The shape a transformers text configuration describes.

    Raises:
        UserError: a decoder of another kind than `BIASED`.
    """
    kind = text_config.model_type
    if kind not in BIASED:
        raise UserError(f"the language model is a '{kind}'; costs are known for {', '.join(BIASED)}")
    heads = text_config.num_attention_heads
    return DecoderShape(
        layers=text_config.num_hidden_layers,
        width=text_config.hidden_size,
        intermediate=text_config.intermediate_size,
        heads=heads,
        kv_heads=text_config.num_key_value_heads,
        head_dim=getattr(text_config, "head_dim", None) or text_config.hidden_size // heads,
        vocabulary=text_config.vocab_size,
        qkv_bias=BIASED[kind],
        tied=bool(text_config.tie_word_embeddings),
    )


def causal_pairs(tokens: int, past: int = 0) -> int:
    """(query, key) pairs of ``tokens`` new tokens behind ``past`` cached ones, the masked half left out."""
    return tokens * past + tokens * (tokens + 1) // 2
