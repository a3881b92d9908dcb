"""Multi-head attention whose projections are low-rank layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from stiefel.errors import InvalidInputError
from stiefel.lowrank.linear import Evaluation, LowRankLinear


class LowRankMultiheadAttention(nn.Module):
    """``nn.MultiheadAttention`` with factored projections; same call, same result.

    The stacked input projection 3E x E is one low-rank matrix, as in the published method; with
    other key or value widths q, k and v are three. ``add_bias_kv`` and ``add_zero_attn`` are
    refused by :func:`why_not`.
    """

    # Read by nn.TransformerEncoderLayer, which then takes its ordinary path.
    in_proj_bias: None = None
    in_proj: LowRankLinear
    q_proj: LowRankLinear
    k_proj: LowRankLinear
    v_proj: LowRankLinear
    out_proj: LowRankLinear

    def __init__(self, dense: nn.MultiheadAttention, projections: dict[str, LowRankLinear]) -> None:
        super().__init__()
        reason = why_not(dense)
        if reason is not None:
            raise InvalidInputError(
                f"the attention layer {reason}", code="unsupported_layer", fix="exclude the layer"
            )
        self.embed_dim, self.num_heads = dense.embed_dim, dense.num_heads
        self.dropout, self.batch_first = dense.dropout, dense.batch_first
        self._qkv_same_embed_dim = dense._qkv_same_embed_dim
        self.stacked = "in_proj" in projections
        for name, layer in projections.items():
            self.add_module(name, layer)

    @classmethod
    def from_dense(
        cls,
        dense: nn.MultiheadAttention,
        rank: int | None,
        *,
        evaluation: Evaluation = "auto",
        keep_norm: bool = False,
    ) -> LowRankMultiheadAttention:
        """Factor every projection at ``rank`` (cut to its size); None leaves them dense for now."""
        projections = {}
        for name, linear in dense_projections(dense).items():
            limit = min(linear.weight.shape)
            layer = LowRankLinear.from_dense(
                linear,
                limit if rank is None else min(rank, limit),
                evaluation=evaluation,
                keep_norm=keep_norm,
            )
            if rank is None:
                layer.set_dense(linear.weight.detach().clone())
            projections[name] = layer
        return cls(dense, projections)

    @torch.no_grad()
    def to_dense(self) -> nn.MultiheadAttention:
        """The ordinary layer of the same function."""
        names = ("in_proj",) if self.stacked else ("q_proj", "k_proj", "v_proj")
        parts = [self.get_submodule(name) for name in names]
        weights = [_weight_of(part) for part in parts]
        biases = [part.bias for part in parts if isinstance(part.bias, Tensor)]
        dense = nn.MultiheadAttention(
            self.embed_dim,
            self.num_heads,
            self.dropout,
            bias=bool(biases),
            kdim=weights[-2].shape[1] if len(parts) > 1 else None,
            vdim=weights[-1].shape[1] if len(parts) > 1 else None,
            batch_first=self.batch_first,
            device="meta",
        )
        for name, weight in zip(names, weights, strict=True):
            trained = is_trained(self.get_submodule(name))
            setattr(dense, f"{name}_weight", nn.Parameter(weight.clone(), trained))
        if biases:
            trained = any(bias.requires_grad for bias in biases)
            dense.in_proj_bias = nn.Parameter(torch.cat(biases), trained)
        dense.out_proj.weight = nn.Parameter(
            _weight_of(self.out_proj).clone(), is_trained(self.out_proj)
        )
        dense.out_proj.bias = self.out_proj.bias  # type: ignore[assignment]
        return dense.train(self.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; arguments, layouts and results as in ``nn.MultiheadAttention``.

        Raises:
            InvalidInputError: a mask that is neither bool nor floating or of another shape;
                ``is_causal``, which only says what ``attn_mask`` is, without it.
        """
        batched, to_itself = query.ndim == 3, query is key and key is value
        if not batched:
            query, key, value = (x[None] for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        if is_causal and attn_mask is None:
            raise InvalidInputError(
                "is_causal is a hint about attn_mask, which is missing",
                code="missing_mask",
                field="/attn_mask",
                fix="give nn.Transformer.generate_square_subsequent_mask(length) as attn_mask",
            )
        q, k, v = map(self._heads, self._project(query, key, value, to_itself))
        mask = self._mask(attn_mask, key_padding_mask, q, k.shape[2])
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            mixed, weights = _attend(q, k, v, mask, dropout)
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout)
            weights = None
        output: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not batched:
            return output[0], None if weights is None else weights[0]
        return (output if self.batch_first else output.transpose(0, 1)), weights

    def _project(
        self, query: Tensor, key: Tensor, value: Tensor, to_itself: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        if not self.stacked:
            return self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if to_itself:
            q, k, v = self.in_proj(query).chunk(3, dim=-1)
            return q, k, v
        parts = [self.in_proj(x).chunk(3, dim=-1)[i] for i, x in enumerate((query, key, value))]
        return parts[0], parts[1], parts[2]

    def _heads(self, x: Tensor) -> Tensor:
        width = x.shape[-1] // self.num_heads
        return x.reshape(*x.shape[:-1], self.num_heads, width).transpose(1, 2)

    def _mask(
        self, mask: Tensor | None, padding: Tensor | None, q: Tensor, columns: int
    ) -> Tensor | None:
        total = None
        batch, heads, rows, _ = q.shape
        if mask is not None:
            _check_mask("attn_mask", mask, ((rows, columns), (batch * heads, rows, columns)))
            total = _additive(mask, q.dtype)
            if total.ndim == 3:
                total = total.reshape(batch, heads, rows, columns)
        if padding is not None:
            _check_mask("key_padding_mask", padding, ((batch, columns),))
            hidden = _additive(padding, q.dtype)[:, None, None, :]
            total = hidden if total is None else total + hidden
        return total


def _weight_of(projection: nn.Module) -> Tensor:
    weight = projection.weight
    assert isinstance(weight, Tensor)
    return weight


def why_not(dense: nn.MultiheadAttention) -> str | None:
    """Why this attention layer cannot be converted, or None."""
    if dense.bias_k is not None or dense.bias_v is not None:
        return "appends learned biases to keys and values"
    return "appends zero keys and values" if dense.add_zero_attn else None


def dense_projections(dense: nn.MultiheadAttention) -> dict[str, nn.Linear]:
    """The projections as linear layers that share the attention layer's Parameters."""
    if dense._qkv_same_embed_dim:
        stacked = {"in_proj": _linear(dense.in_proj_weight, dense.in_proj_bias)}
    else:
        biases = (None,) * 3 if dense.in_proj_bias is None else dense.in_proj_bias.chunk(3)
        weights = (dense.q_proj_weight, dense.k_proj_weight, dense.v_proj_weight)
        stacked = {
            name: _linear(weight, None if bias is None else _bias_part(dense.in_proj_bias, bias))
            for name, weight, bias in zip(
                ("q_proj", "k_proj", "v_proj"), weights, biases, strict=True
            )
        }
    return {**stacked, "out_proj": _linear(dense.out_proj.weight, dense.out_proj.bias)}


def _bias_part(whole: Tensor, part: Tensor) -> nn.Parameter:
    return nn.Parameter(part.detach().clone(), requires_grad=whole.requires_grad)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=bias is not None, device="meta")
    layer.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
    layer.bias = bias  # type: ignore[assignment]
    layer.out_features, layer.in_features = weight.shape
    return layer


def is_trained(layer: nn.Module) -> bool:
    """Whether any of the layer's factors is trained; a bias goes its own way."""
    return any(p.requires_grad for name, p in layer.named_parameters() if name != "bias")


def _check_mask(name: str, mask: Tensor, shapes: tuple[tuple[int, ...], ...]) -> None:
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise InvalidInputError(
            f"{name} is {mask.dtype}; true or -inf hides a position, integers have no meaning here",
            code="bad_mask",
            field=f"/{name}",
            fix=f"give {name} == 0 where ones mark what is kept, as tokenizers do, else .bool()",
        )
    if tuple(mask.shape) not in shapes:
        raise InvalidInputError(
            f"{name} is {tuple(mask.shape)}, not {' or '.join(map(str, shapes))}",
            code="bad_mask",
            field=f"/{name}",
            fix="expand it to that shape",
        )


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask, -torch.inf)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    scores = q @ k.mT * q.shape[-1] ** -0.5
    weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    return functional.dropout(weights, dropout) @ v, weights
