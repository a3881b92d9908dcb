"""Architectures of the `transformers` library, from a config alone: no download, no remote code."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stiefel.errors import InvalidInputError
from stiefel.models.adapter import Adapter, out_of_memory
from stiefel.models.carried_keys import CARRIED
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
            not accept, sizes that do not go together, or data of another kind; or a library
            that the architecture needs is not there.
    """
    import transformers  # slow to import: only for jobs that ask for it

    check_task(spec.task, signature)
    config = _config(transformers, spec, signature)
    offered = getattr(transformers, AUTO_CLASSES[spec.task])
    model_type = spec.config["model_type"]
    if type(config) not in offered._model_mapping:
        raise _misfit(f"{model_type} offers no {spec.task.replace('_', ' ')}", "task")
    config.architectures = config.architectures or []  # for deit and others it would iterate None
    inner = _built(model_type, lambda: offered.from_config(config))
    padded = spec.task == "sequence_classification"
    return HuggingFaceNetwork(inner.to(torch.float32), padded=padded)


def _config(transformers: Any, spec: Transformers, signature: Signature) -> Any:
    settings = {key: value for key, value in spec.config.items() if key != "model_type"}
    model_type = spec.config["model_type"]
    if model_type.startswith("timm"):  # behind the wrapper a name can be a download or a path
        detail, fix = f"{model_type} is a wrapper", 'name the model itself, with family "timm"'
        raise _misfit(detail, "config/model_type", fix)
    if model_type not in transformers.CONFIG_MAPPING:
        raise _misfit(f'unknown model_type "{model_type}"', "config/model_type")
    usual = _built(model_type, lambda: transformers.CONFIG_MAPPING[model_type]())
    _check_keys(model_type, settings, _known(transformers, usual))
    settings |= _sizes(spec, signature, usual)
    names = settings.get("id2label", {})
    if isinstance(names, dict) and len(names) != settings.get("num_labels"):
        # Names of another number of classes are those of the data the config came from.
        settings = {k: v for k, v in settings.items() if k not in {"id2label", "label2id"}}
    return _built(model_type, lambda: transformers.AutoConfig.for_model(model_type, **settings))


def _known(transformers: Any, usual: Any) -> set[str]:
    """Every key that a config of the type of ``usual`` may have."""
    # Older versions wrote how to generate into every config; the library passes over it.
    generation = transformers.GenerationConfig().to_dict()
    return {*usual.to_dict(), *usual.attribute_map, *generation, *CARRIED}


def _check_keys(model_type: str, settings: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse the first key that is not ``known``, with the nearest that is."""
    unknown = sorted(settings.keys() - known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, 1)
        meant = f'; is "{near[0]}" meant?' if near else ""
        raise _misfit(
            f'{model_type} has no config key "{unknown[0]}"{meant}',
            f"config/{unknown[0]}",
            "correct the key, or remove it",
        )


def _built(model_type: str, build: Callable[[], Any]) -> Any:
    """What ``build`` returns; whatever the library has against the config is the caller's to mend.

    It checks little: a config that makes no sense fails wherever it is first used, by any type of
    exception.
    """
    try:
        return build()
    except ImportError as error:
        needed = " ".join(str(error).split())[:300]
        raise InvalidInputError(
            f"this worker lacks what {model_type} needs: {needed}",
            code="network_not_available",
            fix="choose another model_type, or install the library where the worker runs",
            field="/network/config/model_type",
        ) from error
    except Exception as error:
        if out_of_memory(error):
            raise
        words = " ".join(str(error).split())[:300]
        detail = f"{model_type} refuses this config: {type(error).__name__}: {words}"
        raise _misfit(detail, "config") from error


def _sizes(spec: Transformers, signature: Signature, usual: Any) -> dict[str, Any]:
    """Config keys that the data decides, in the form that the usual config has."""
    if spec.task == "causal_language_model":
        return {"vocab_size": signature.vocabulary}
    sizes: dict[str, Any] = {"num_labels": signature.outputs}
    if spec.task == "image_classification":
        channels, height, width = signature.shape
        one = height == width and not isinstance(getattr(usual, "image_size", 0), list | tuple)
        return sizes | {"num_channels": channels, "image_size": height if one else (height, width)}
    return sizes | {"vocab_size": signature.vocabulary, "pad_token_id": 0}


def _misfit(
    detail: str,
    where: str,
    fix: str = "correct the network's config; its keys are those of the transformers library",
) -> InvalidInputError:
    return InvalidInputError(
        detail, code="network_does_not_fit", fix=fix, field=f"/network/{where}"
    )
