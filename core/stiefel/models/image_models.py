"""Architectures of the `timm` library by name: no download, no pretrained weights, an extra."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from stiefel.errors import InvalidInputError
from stiefel.models.adapter import Adapter, out_of_memory
from stiefel.models.signature import Signature
from stiefel.specs.fitting import check_images
from stiefel.specs.networks import Timm


class TimmNetwork(Adapter):
    """A `timm` model; ``timm.create_model("local-dir:FOLDER")`` loads what is delivered."""

    def __init__(self, inner: nn.Module, name: str, arguments: dict[str, Any]) -> None:
        super().__init__(inner)
        self._name, self._arguments = name, arguments

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits."""
        logits: Tensor = self.inner(x)
        return logits

    def config(self) -> dict[str, Any]:
        """The ``config.json`` that `timm` reads."""
        given = {key: self._arguments[key] for key in ("num_classes", "in_chans")}
        arguments = {k: v for k, v in self._arguments.items() if k != "num_classes"}
        return {
            "architecture": self._name,
            "num_classes": given["num_classes"],
            "model_args": arguments,
            "pretrained_cfg": {"num_classes": given["num_classes"]},
        }


def timm_network(spec: Timm, signature: Signature) -> nn.Module:
    """Draw the architecture with its sizes filled in from the data.

    Raises:
        InvalidInputError: the extra is not installed here, an unknown model, an argument that it
            does not take, or data of another kind.
    """
    check_images(signature, least=1)
    try:
        import timm  # an extra, and slow to import
    except ImportError as error:
        raise InvalidInputError(
            "this worker has no timm",
            code="network_not_available",
            fix="install the extra timm where the worker runs (pip install 'stiefel[train,timm]'), "
            "or choose another family",
            field="/network/family",
        ) from error
    if not timm.is_model(spec.model):
        close = ", ".join(timm.list_models(f"{spec.model[:4]}*")[:5]) or "resnet18, vit_tiny_..."
        raise _misfit(f'timm has no model "{spec.model}"', "model", f"choose another: {close}")
    channels, height, width = signature.shape
    arguments: dict[str, Any] = {"num_classes": signature.outputs, "in_chans": channels}
    if timm.get_pretrained_cfg(spec.model).fixed_input_size:
        arguments["img_size"] = [height, width]
    arguments |= spec.config
    try:
        inner = timm.create_model(spec.model, pretrained=False, **arguments)
    except Exception as error:  # timm checks little: arguments fail wherever they are first used
        if out_of_memory(error):
            raise
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        where = f"config/{unknown[1]}" if unknown else "config"
        words = " ".join(str(error).split())[:300]
        what = f"{spec.model} refuses its arguments: {type(error).__name__}: {words}"
        raise _misfit(what, where, "correct network.config; its keys are those of timm") from error
    return TimmNetwork(inner, spec.model, arguments)


def _misfit(detail: str, where: str, fix: str) -> InvalidInputError:
    return InvalidInputError(
        detail, code="network_does_not_fit", fix=fix, field=f"/network/{where}"
    )
