"""Frozen linear layers held in 8 or 4 bits, for adapters to learn beside (QLoRA, Dettmers et al., arXiv 2305.14314).

    O outputs and D inputs of a linear layer, N tokens, blocks of 64 neighbouring weights

- `8bit`: whole numbers from -127 to 127. Needs no other package.
- `4bit`: NormalFloat (section 3 there), by bitsandbytes, which runs on CPUs and GPUs.

Each block has a scale in the model's precision: in float32 that makes 8.5 and 4.5 bits a weight. Embeddings, norms and
biases stay as they are.

Promises:
- Outputs and gradients of a quantised model are those of the same model with the dequantised weights.
- A dense weight lives as long as its use. At load they are read one at a time.

This module knows nothing of adapters and of training.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import ModelError, extra
from luthier.settings import Quantize

BLOCK = 64
"""Weights that share a scale."""
PART = 2**18
"""Weights that are quantised at once: what that needs is several times their memory."""


class QuantizedLinear(nn.Linear):
    """x W' + b of a frozen W in few bits. To others it is an nn.Linear whose `weight` is made when it is asked for.

    What is written to that weight is lost, so nothing can be merged into it.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, form: Quantize) -> None:
        nn.Module.__init__(self)  # not Linear's, which makes a weight
        self.out_features, self.in_features = weight.shape
        self.form = form
        blocks, quantized = weight.detach().reshape(-1, BLOCK), _FORMS[form].quantized
        # Written where they stay: small parts kept until they are joined would leave holes in the process's memory.
        codes, scales = (few.new_empty(len(blocks), few.shape[1]) for few in quantized(blocks[:1]))
        for part in (slice(start, start + PART // BLOCK) for start in range(0, len(blocks), PART // BLOCK)):
            codes[part], scales[part] = quantized(blocks[part])
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(O, D), in the precision to which the model was brought last."""
        blocks = _FORMS[self.form].dequantized(self.codes, self.scales)
        return blocks.view(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Product.apply(x, self)
        return out if self.bias is None else out + self.bias

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.form}"


class _Product(torch.autograd.Function):
    """x W' with W made for the forward pass and again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: QuantizedLinear) -> Tensor:
        ctx.linear = linear
        return x @ linear.weight.T

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return dy @ ctx.linear.weight, None


def n_weights(model: nn.Module) -> int:
    """How many there are, those in few bits among them."""
    few = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    return sum(p.numel() for p in model.parameters()) + sum(m.in_features * m.out_features for m in few)


def in_few_bits(model: nn.Module) -> str:
    """How many of its linear layers are, in words: the others are output embeddings, or have no whole blocks."""
    linear = [type(m) for m in model.modules() if isinstance(m, nn.Linear)]
    return f"{linear.count(QuantizedLinear)} of {len(linear)} linear layers are held in few bits"


# -- forms -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Form:
    quantized: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Weights (n, 64) -> codes (n, ...) and scales (n, 1)."""
    dequantized: Callable[[Tensor, Tensor], Tensor]
    """The weights again, (n, 64), in the scales' precision."""


def _to_8bit(blocks: Tensor) -> tuple[Tensor, Tensor]:
    scales = (blocks.abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(blocks.dtype).tiny)
    # In float32: in bfloat16 the quotient itself would be off by a quarter.
    return (blocks.float() / scales.float()).round_().clamp_(-127, 127).to(torch.int8), scales


def _from_8bit(codes: Tensor, scales: Tensor) -> Tensor:
    return codes * scales


def _to_4bit(blocks: Tensor) -> tuple[Tensor, Tensor]:
    codes, scales = _operations().quantize_4bit(blocks.contiguous(), BLOCK, "nf4", torch.uint8)
    return codes.view(-1, BLOCK // 2), scales.to(blocks.dtype)[:, None]


def _from_4bit(codes: Tensor, scales: Tensor) -> Tensor:
    shape, dtype = (len(codes), BLOCK), torch.float32 if scales.dtype is torch.float64 else scales.dtype
    flat = scales.view(-1).to(torch.float32)
    blocks: Tensor = _operations().dequantize_4bit(codes, flat, BLOCK, "nf4", shape, dtype)
    return blocks.to(scales.dtype)


_FORMS: dict[Quantize, _Form] = {"8bit": _Form(_to_8bit, _from_8bit), "4bit": _Form(_to_4bit, _from_4bit)}


# -- loading ---------------------------------------------------------------------------------------------


def while_loading(form: Quantize, device: torch.device) -> dict[str, Any]:
    """What transformers' `from_pretrained` takes, so that each linear layer is quantised when its weight is read.

    All of them but the output embeddings, and those whose weights are not whole blocks. Raises ModelError LU-M002.
    """
    if form == "4bit":
        check_bitsandbytes()
    return {"quantization_config": _transformers_config()(form), "device_map": {"": device}}


@cache
def _transformers_config() -> Any:
    """Registers the forms with transformers on first use; what to give it is a function of a form."""
    from transformers.core_model_loading import ConversionOps
    from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    @register_quantization_config("luthier")
    class Config(QuantizationConfigMixin):  # type: ignore[misc]
        def __init__(self, form: Quantize) -> None:
            self.quant_method, self.form = "luthier", form

    class Replace(ConversionOps):  # type: ignore[misc]
        """Puts a QuantizedLinear in the place of the layer whose weight is given."""

        def __init__(self, form: Quantize) -> None:
            self.form = form

        def convert(self, given: dict[str, Any], *, model: Any, missing_keys: set[str], **more: Any) -> Any:
            for name, weight in given.items():
                path = name.removesuffix(".weight")
                whole = weight[0] if isinstance(weight, list) else weight
                made: Any = QuantizedLinear(whole, model.get_submodule(path).bias, self.form)
                made._is_hf_initialized = True
                model.set_submodule(path, made)
                missing_keys.discard(name)
            return {}

    @register_quantizer("luthier")
    class Quantizer(HfQuantizer):  # type: ignore[misc]
        is_trainable = True

        def is_serializable(self) -> bool:
            return False

        @property
        def quantized_element_size(self) -> float:
            return 1.0 if self.quantization_config.form == "8bit" else 0.5

        def param_needs_quantization(self, model: Any, param_name: str, **more: Any) -> bool:
            path, _, kind = param_name.rpartition(".")
            layer = model.get_submodule(path)
            is_linear = kind == "weight" and type(layer) is nn.Linear and layer.weight.numel() % BLOCK == 0
            return is_linear and layer is not model.get_output_embeddings()

        def get_quantize_ops(self) -> Any:
            return Replace(self.quantization_config.form)

        def postprocess_model(self, model: Any, **more: Any) -> None:
            self.remove_quantization_config(model)  # to others it is a model with other layers

    return Config


# -- bitsandbytes ----------------------------------------------------------------------------------------


def check_bitsandbytes() -> None:
    """Raises ModelError LU-M002 where it is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        found = "need bitsandbytes, which is not installed"
        advice = extra("quantized")
        raise ModelError.of("LU-M002", "model.quantize: 4bit and train.optimizer: adamw_8bit", found, advice)


@cache
def _operations() -> Any:
    import bitsandbytes  # noqa: F401 -- registers them

    return torch.ops.bitsandbytes
