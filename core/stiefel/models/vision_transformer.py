"""A small vision transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stiefel.models.signature import Signature
from stiefel.specs.fitting import check_patches
from stiefel.specs.networks import VisionTransformer


class Attention(nn.Module):
    """Multi-head self-attention; query, key and value are separate layers, each with a name."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, width) to the same shape."""
        q, k, v = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.output(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        return x.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual."""

    def __init__(self, spec: VisionTransformer) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.width)
        self.attention = Attention(spec.width, spec.heads)
        self.norm2 = nn.LayerNorm(spec.width)
        self.expand = nn.Linear(spec.width, spec.hidden)
        self.contract = nn.Linear(spec.hidden, spec.width)
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, width) to the same shape."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        hidden = nn.functional.gelu(self.expand(self.norm2(x)))
        return x + self.dropout(self.contract(hidden))  # type: ignore[no-any-return]


class MiniViT(nn.Module):
    """Linear patch embedding, learned positions, ``depth`` blocks, mean over patches."""

    def __init__(self, spec: VisionTransformer, signature: Signature) -> None:
        super().__init__()
        channels, height, width = signature.shape
        patches = (height // spec.patch) * (width // spec.patch)
        self.patch = spec.patch
        self.embedding = nn.Linear(channels * spec.patch**2, spec.width)
        self.positions = nn.Parameter(0.02 * torch.randn(patches, spec.width))
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.width)
        self.head = nn.Linear(spec.width, signature.outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to scores (B, outputs)."""
        patches = nn.functional.unfold(x, self.patch, stride=self.patch).transpose(1, 2)
        y = self.embedding(patches) + self.positions
        for block in self.blocks:
            y = block(y)
        return self.head(self.norm(y).mean(dim=1))  # type: ignore[no-any-return]


def vision_transformer(spec: VisionTransformer, signature: Signature) -> nn.Module:
    """Build a :class:`MiniViT`; the patch must divide the image."""
    check_patches(spec.patch, signature)
    return MiniViT(spec, signature)
