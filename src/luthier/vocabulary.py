"""New tokens: words that a tokenizer gains, and their rows in a model's embeddings.

    V vocabulary, D hidden size, m hidden states, n new tokens

A new row begins as the mean of the rows of the pieces that its word was until then, in input and output embeddings
(fast vocabulary transfer, Gee et al. 2022, arXiv 2402.09977): the model begins near what it read before. Lost: the mean
of all rows (Hewitt 2021, "Initializing new word embeddings for pretrained language models"), by which every new word
begins as the same one. This module knows nothing of files, recipes or training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import ModelError, Problem


def add_tokens(tokenizer: Any, tokens: Sequence[str]) -> None:
    """Let the tokenizer find these words wherever they are written, as one token each; they are no control tokens.

    Raises ModelError LU-M021 for all that it cannot take.
    """
    from tokenizers import AddedToken

    problems = [Problem("LU-M021", f"model.new_tokens: {t}", found) for t in tokens if (found := _misfit(tokenizer, t))]
    if problems:
        raise ModelError(*problems)
    n = tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in tokens])
    assert n == len(tokens)


def _misfit(tokenizer: Any, token: str) -> str | None:
    if token in tokenizer.get_vocab():
        return "is a token of the base model already"
    inside = [str(known) for known in tokenizer.added_tokens_decoder.values() if str(known).strip()]
    if found := next((known for known in inside if known in token), None):
        return f"holds {found}, which the base model's tokenizer would find first"
    return None if _pieces(tokenizer, token) else "the base model's tokenizer makes nothing of it"


def _pieces(tokenizer: Any, token: str) -> list[int]:
    return tokenizer(token, add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]


def rows_of(tokenizer: Any, tokens: Sequence[str]) -> list[int]:
    """Which rows of the embeddings are those of the tokens."""
    return tokenizer.convert_tokens_to_ids(list(tokens))  # type: ignore[no-any-return]


@torch.no_grad()
def add_rows(model: Any, before: Any, after: Any, tokens: Sequence[str]) -> None:
    """Give the model the tokens that the tokenizer `after` has and `before` has not.

    Embeddings that are larger than the vocabulary, as many are, are not resized.
    """
    if len(after) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(after), mean_resizing=False)
    for end in (model.get_input_embeddings(), model.get_output_embeddings()):
        for row, token in zip(rows_of(after, tokens), tokens, strict=True):
            for weight in end.parameters():  # (V, D), and (V,) where the head has a bias
                weight[row] = weight[_pieces(before, token)].mean(0)


@dataclass(frozen=True, slots=True)
class LearnedRows:
    """Rows of the output embeddings that learn while the others are frozen, as peft holds them.

    peft's own forward pass copies the whole matrix for each product, and its gradient is that of the whole matrix.
    """

    tokens: Any  # peft's TrainableTokensLayer

    def __call__(self, logits: Tensor, hidden: Tensor) -> Tensor:
        """Logits (m, V) of the frozen matrix, which are overwritten, and hidden states (m, D) -> logits (m, V)."""
        if self.tokens.disable_adapters or self.tokens.merged:
            return logits
        [name] = self.tokens.active_adapters
        rows = self.tokens.trainable_tokens_delta[name].to(hidden.dtype)  # (n, D)
        columns = torch.tensor(self.tokens.token_indices[name], device=logits.device)
        return logits.index_copy_(1, columns, (hidden @ rows.T).to(logits.dtype))


def parts_of_head(head: nn.Module) -> tuple[nn.Module, LearnedRows | None]:
    """The output embeddings as a frozen matrix and the rows that learn, if there are such."""
    from peft.utils.other import TrainableTokensWrapper

    if not isinstance(head, TrainableTokensWrapper):
        return head, None
    return head.original_module, LearnedRows(head.token_adapter)
