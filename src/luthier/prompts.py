"""Prompt learning: virtual tokens before every text are learned, and all of the model's own weights stay as they are.

    P virtual tokens, N tokens of a packed tree, B rows of T tokens, D hidden size
    L layers, K key/value heads with G query heads each, C size of a head

Prompt tuning (Lester et al. 2021, arXiv 2104.08691) learns their embeddings, P-tuning (Liu et al. 2021, arXiv
2103.10385) a small network that makes these, prefix tuning (Li & Liang 2021, arXiv 2101.00190) the keys and values that
each layer has of them. In a packed tree they are the root that all examples continue, computed once; the positions of
real tokens count on from theirs, as in peft. peft holds the parameters and writes the files, but its forward pass takes
no tree. This module knows nothing of batches, losses or answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.attention import Attend
from luthier.settings import Prefix, Prompt, PTuning


@dataclass(frozen=True, slots=True)
class Root:
    """The virtual tokens of one of peft's models, as what its base model's body is given."""

    model: Any  # peft's
    n: int  # P

    @classmethod
    def of(cls, model: Any) -> Root | None:
        """None if the model learns no prompt."""
        config = getattr(model, "active_peft_config", None)
        return cls(model, config.num_virtual_tokens) if config is not None and config.is_prompt_learning else None

    def tree(self, ids: Tensor, positions: Tensor, attend: Attend) -> dict[str, Any]:
        """For a packed tree whose first P of P + N tokens are these. The last N states are those of the real ones."""
        real = ids[None, self.n :]
        if self._in_layers:
            positions, attend = positions[self.n :], _Seen(self.n, iter(self.model.get_prompt(1).layers), attend)
            return {"input_ids": real, "position_ids": positions[None], "packed_attend": attend}
        return {"inputs_embeds": self._embedded(real), "position_ids": positions[None], "packed_attend": attend}

    def rows(self, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        """For rows (B, T) and what of them is text (B, T)."""
        mask = F.pad(mask, (self.n, 0), value=1)
        if self._in_layers:
            return {"input_ids": ids, "attention_mask": mask, "past_key_values": self.model.get_prompt(len(ids))}
        return {"inputs_embeds": self._embedded(ids), "attention_mask": mask}

    @property
    def _in_layers(self) -> bool:
        return bool(self.model.active_peft_config.peft_type == "PREFIX_TUNING")

    def _embedded(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, P + T, D)."""
        real = self.model.word_embeddings(ids)
        return torch.cat([self.model.get_prompt(len(ids)).to(real.dtype), real], dim=1)


@dataclass(frozen=True, slots=True)
class _Seen:
    """Attention in which every token also sees the keys and values of the virtual ones, which ask for nothing."""

    n: int  # P
    layers: Iterator[Any]  # their keys and values, layer by layer
    attend: Attend

    def of_next_layer(self) -> _Seen:
        """The attention of the next layer alone, as often as it is asked for."""
        return _Seen(self.n, repeat(next(self.layers)), self.attend)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        layer = next(self.layers)
        query = F.pad(query, (0, 0, 0, 0, self.n, 0))  # (K, P + N, G, C)
        key = torch.cat([layer.keys[0].to(key.dtype), key], dim=1)  # (K, P + N, C)
        value = torch.cat([layer.values[0].to(value.dtype), value], dim=1)
        return self.attend(query, key, value, scaling)[self.n :]


def prompt_config(how: Prompt | PTuning | Prefix) -> Any:
    """peft's configuration."""
    from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

    shared = {"num_virtual_tokens": how.tokens, "task_type": "CAUSAL_LM"}
    if isinstance(how, Prompt):
        return PromptTuningConfig(**shared)
    if isinstance(how, PTuning):
        return PromptEncoderConfig(encoder_hidden_size=how.hidden, **shared)
    return PrefixTuningConfig(prefix_projection=how.hidden is not None, encoder_hidden_size=how.hidden, **shared)


@torch.no_grad()
def begin(adapted: Any, how: Prompt | PTuning | Prefix, tokenizer: Any) -> None:
    """Let the virtual tokens begin as real ones, and run them once: what peft itself cannot run raises its error.

    They are those of a text, or drawn from the vocabulary; where a network makes them, it begins at random.
    """
    ids = _real_tokens(how, tokenizer, len(adapted.word_embeddings.weight)).to(adapted.device)
    weight = adapted.prompt_encoder["default"].embedding.weight
    if isinstance(how, Prompt):
        weight.copy_(adapted.word_embeddings(ids))
    elif isinstance(how, Prefix) and how.hidden is None:
        weight.copy_(_keys_and_values(adapted.get_base_model(), ids))
    adapted(ids[None])


def _real_tokens(how: Prompt | PTuning | Prefix, tokenizer: Any, vocabulary: int) -> Tensor:
    """(P,) A shorter text is repeated, a longer one cut."""
    if isinstance(how, PTuning) or how.text is None:
        return torch.randint(vocabulary, (how.tokens,))
    ids = tokenizer(how.text, add_special_tokens=False)["input_ids"]
    return torch.tensor((ids * how.tokens)[: how.tokens])


def _keys_and_values(base: nn.Module, ids: Tensor) -> Tensor:
    """What every layer computes of tokens (P,), as peft keeps it: (P, L * 2 * K * C). Raises ValueError."""
    layers = base(input_ids=ids[None], use_cache=True).past_key_values.layers
    if any(layer.keys.shape[2] < len(ids) for layer in layers):
        raise ValueError("a sliding window is shorter than the virtual tokens")
    heads = torch.stack([x[0] for layer in layers for x in (layer.keys, layer.values)])  # (2 * L, K, P, C)
    return heads.permute(2, 0, 1, 3).flatten(1)
