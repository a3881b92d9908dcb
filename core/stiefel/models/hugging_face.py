"""Architectures of the `transformers` library, from a config alone: no download, no remote code."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from stiefel.errors import InvalidInputError
from stiefel.models.adapter import Adapter
from stiefel.models.signature import Signature
from stiefel.specs.fitting import check_task
from stiefel.specs.networks import Transformers

AUTO_CLASSES = {
    "image_classification": "AutoModelForImageClassification",
    "sequence_classification": "AutoModelForSequenceClassification",
    "causal_language_model": "AutoModelForCausalLM",
}


class HuggingFaceNetwork(Adapter):
    """A `transformers` model that maps a batch to logits."""

    def __init__(self, inner: nn.Module, *, padded: bool = False) -> None:
        super().__init__(inner)
        accepted = inspect.signature(inner.forward).parameters
        self._padded = padded and "attention_mask" in accepted
        # Keys and values kept for the next token are of no use in training.
        self._options = {"use_cache": False} if "use_cache" in accepted else {}

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) or token ids (B, T) to logits; id 0 pads."""
        mask = {"attention_mask": (x != 0).long()} if self._padded else {}
        logits: Tensor = self.inner(x, **mask, **self._options).logits
        return logits

    def config(self) -> dict[str, Any]:
        """The ``config.json`` with which ``from_pretrained`` builds it again."""
        config: dict[str, Any] = self.inner.config.to_dict()  # type: ignore[union-attr, operator]
        return config


def transformers_network(spec: Transformers, signature: Signature) -> nn.Module:
    """Build the architecture with its sizes filled in from the data.

    Raises:
        InvalidInputError: unknown ``model_type``, a task it does not offer, a config key it does
            not accept, or data of another kind.
    """
    import transformers  # slow to import: only for jobs that ask for it

    check_task(spec.task, signature)
    config = _config(transformers, spec, signature)
    try:
        inner = getattr(transformers, AUTO_CLASSES[spec.task]).from_config(config)
    except ValueError as error:
        raise _misfit(
            f"{spec.config['model_type']} offers no {spec.task.replace('_', ' ')}", "task"
        ) from error
    padded = spec.task == "sequence_classification"
    return HuggingFaceNetwork(inner.to(torch.float32), padded=padded)


def _config(transformers: Any, spec: Transformers, signature: Signature) -> Any:
    settings = {key: value for key, value in spec.config.items() if key != "model_type"}
    model_type = spec.config["model_type"]
    if model_type not in transformers.CONFIG_MAPPING:
        raise _misfit(f'unknown model_type "{model_type}"', "config/model_type")
    known = transformers.CONFIG_MAPPING[model_type]().to_dict()
    unknown = sorted(set(settings) - set(known) - {"architectures", "dtype", "torch_dtype"})
    if unknown:
        raise _misfit(f'{model_type} has no config key "{unknown[0]}"', f"config/{unknown[0]}")
    settings |= _sizes(spec, signature)
    try:
        return transformers.AutoConfig.for_model(model_type, **settings)
    except (TypeError, ValueError) as error:
        raise _misfit(f"{model_type} refuses this config: {error}", "config") from error


def _sizes(spec: Transformers, signature: Signature) -> dict[str, Any]:
    """Config keys that the data decides."""
    if spec.task == "causal_language_model":
        return {"vocab_size": signature.vocabulary}
    sizes: dict[str, Any] = {"num_labels": signature.outputs}
    if spec.task == "image_classification":
        channels, height, _ = signature.shape
        return sizes | {"num_channels": channels, "image_size": height}
    return sizes | {"vocab_size": signature.vocabulary, "pad_token_id": 0}


def _misfit(detail: str, where: str) -> InvalidInputError:
    return InvalidInputError(
        detail,
        code="network_does_not_fit",
        fix="correct the network's config; its keys are those of the transformers library",
        field=f"/network/{where}",
    )
