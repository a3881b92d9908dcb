"""One object that steps every low-rank layer of a model together with its optimizer.

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    integrator = LowRankIntegrator(model, optimizer, tolerance=0.1)
    loss.backward()
    integrator.step()            # bases, cores, and optimizer.step() for everything

A phase is ``phase`` batches long. Its first batch extends the bases by the directions of dK and
dL and steps the augmented core; the batches between step the core alone, on bases twice as wide;
the last one truncates. ``phase=1`` is the published adaptive method in one backward pass.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from stiefel.errors import InvalidInputError
from stiefel.linalg.precision import in_whole_precision
from stiefel.lowrank import reduce
from stiefel.lowrank.bases import complements
from stiefel.lowrank.layer import LowRankLayer
from stiefel.lowrank.members import (
    Member,
    autocasts,
    check_members,
    check_state,
    drop_non_finite,
    grown_rule,
    rank_rule,
    taped_gradients,
    trainable_layers,
)
from stiefel.lowrank.product import Tape
from stiefel.lowrank.steps import (
    Factors,
    Gradients,
    augmented_gradient,
    extend,
    reorthonormalized,
    scale_since,
)
from stiefel.lowrank.transport import pad_state, rotate_state
from stiefel.lowrank.truncation import truncate_core

Variant = Literal["exact", "parallel"]

# Rotating a basis multiplies rounding errors; one Newton step every so many phases keeps the
# defect of float32 bases near 1e-6 for good.
REORTHONORMALIZE_EVERY = 16


class StepReport(NamedTuple):
    """What happened in one step."""

    skipped: tuple[str, ...]  # parameters left alone because a gradient was not finite
    truncated: bool  # whether the phase ended here


class LowRankIntegrator:
    """Dynamical low-rank training of all :class:`LowRankLayer` modules of ``model``.

    Args:
        model: holds at least one trainable low-rank layer.
        optimizer: holds the layers' cores (``model.parameters()`` does) and whatever else it
            trains. SGD, momentum, Adam, AdamW and their kin: any state of the core's shape is
            transported. Its learning rate is the integration step.
        tolerance: ``truncation_tolerance`` tau.
        relative: false bounds the norm of the tail itself by tau.
        adaptive: false keeps the ranks as they are.
        min_rank: lower bound; default max(2, 1 % of the smaller dimension).
        max_rank: upper bound; default the size of the matrix.
        phase: batches from one truncation to the next.
        variant: ``exact`` steps the whole augmented core; ``parallel`` leaves the block of the
            new directions among themselves for later, and keeps no activations for it.
        grow_only: a rank never falls; it rises until the part of the energy that
            1 - tolerance^2 asks for is explained (the rule of InRank, arXiv 2306.11250).
        clip: bound on the gradient norm over all parameters, applied after augmentation.

    Raises:
        InvalidInputError: no low-rank layer; a core missing in the optimizer or shared by two
            layers; half precision factors; bad bounds.

    Source: Schotthoefer et al., arXiv 2205.13571; one pass and phases: docs/lowrank.md.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        tolerance: float = 0.1,
        relative: bool = True,
        adaptive: bool = True,
        min_rank: int | None = None,
        max_rank: int | None = None,
        phase: int = 5,
        variant: Variant = "exact",
        grow_only: bool = False,
        clip: float | None = None,
    ) -> None:
        if type(phase) is not int or phase < 1:
            raise InvalidInputError(f"a phase of {phase} batches", code="bad_phase", field="/phase")
        if variant not in ("exact", "parallel"):
            raise InvalidInputError(f"unknown variant {variant!r}", fix="exact or parallel")
        self.optimizer = optimizer
        self.phase, self.variant, self.clip = phase, variant, clip
        self.adaptive, self.grow_only = adaptive, grow_only
        self.bases_frozen = False
        self.position = 0
        self.members = [
            Member(
                name, layer, rank_rule(layer, tolerance, relative, min_rank, max_rank), layer.rank
            )
            for name, layer in trainable_layers(model)
        ]
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        check_members(self.members, optimizer)
        self._attach_tapes()

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of every layer at the start of the present phase."""
        # A warm-up may have ended since the phase began.
        return {
            m.name: min(m.rank, m.layer.rank) if self.position else m.layer.rank
            for m in self.members
        }

    def freeze_ranks(self) -> None:
        """Keep the present ranks; the bases go on turning."""
        self.adaptive = False

    def freeze_bases(self) -> None:
        """End the phase and train only the cores from now on."""
        self.finish()
        self.bases_frozen = True
        self._attach_tapes()

    def set_tolerance(self, tolerance: float) -> None:
        """Change tau for every layer, effective at the next truncation."""
        for member in self.members:
            member.rule = replace(member.rule, tolerance=tolerance)

    def zero_grad(self) -> None:
        """Drop all gradients, those of the bases included."""
        self.optimizer.zero_grad()
        self._attach_tapes()

    @torch.no_grad()
    @in_whole_precision
    def step(self) -> StepReport:
        """Step every layer and the optimizer once, from the gradients of the last backward pass.

        A layer with a non-finite gradient is left exactly as it is, its bias included; so is any
        other parameter of the optimizer. The report names them.
        """
        if autocasts(self.members):
            with torch.autocast(self.members[0].layer.S.device.type, enabled=False):
                return self.step()
        opening = self.position == 0 and not self.bases_frozen
        self._average(opening)
        skipped = drop_non_finite(self.members, self._parameters(), self._names)
        for member in self.members:
            member.trained |= member.layer.S.grad is not None
        if opening:
            self._open()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters(), self.clip)
        self.optimizer.step()
        closing = self.position >= self.phase - 1 and not self.bases_frozen
        if closing:
            self._truncate_all()
        self.position = 0 if closing else self.position + (not self.bases_frozen)
        self._attach_tapes()
        return StepReport(skipped, closing)

    @torch.no_grad()
    @in_whole_precision
    def finish(self) -> None:
        """End the phase now: every core diagonal, every rank within its rule. Idempotent."""
        if self.position:
            self._truncate_all()
            self.position = 0
            self._attach_tapes()

    def state_dict(self) -> dict[str, Any]:
        """Where the phases stand; model and optimizer keep the rest."""
        return {
            "position": self.position,
            "adaptive": self.adaptive,
            "bases_frozen": self.bases_frozen,
            "members": {member.name: member.state_dict() for member in self.members},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume: load the model first, then this and the optimizer's state in any order."""
        known = state["members"]
        for member in self.members:
            if member.name not in known:
                raise InvalidInputError(
                    f"the saved state knows no layer {member.name!r}",
                    code="state_mismatch",
                    fix="build the integrator on the model that the state was saved with",
                )
            member.load_state_dict(known[member.name])
        self.position = int(state["position"])
        self.adaptive, self.bases_frozen = bool(state["adaptive"]), bool(state["bases_frozen"])
        self._attach_tapes()

    def _attach_tapes(self) -> None:
        record = self.position == 0 and not self.bases_frozen
        for member in self.members:
            wanted = record and not member.layer.is_dense
            member.layer.tape = Tape(self.variant == "exact", member.layer.S) if wanted else None

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _average(self, opening: bool) -> None:
        """Average the gradients that DDP leaves alone; a layer unused here counts as zero.

        One that no process used has no gradient afterwards, as if there were one process.
        """
        if not reduce.is_distributed():
            return
        tensors: list[Tensor] = []
        for member in self.members:
            layer, tape = member.layer, member.layer.tape
            layer.S.grad = torch.zeros_like(layer.S) if layer.S.grad is None else layer.S.grad
            tensors.append(layer.S.grad)
            if opening and tape is not None:
                if tape.grad_k is None or tape.grad_l is None:
                    tape.grad_k, tape.grad_l = torch.zeros_like(layer.U), torch.zeros_like(layer.V)
                tensors += [tape.grad_k, tape.grad_l]
        reduce.average_(tensors)
        cores = [member.layer.S for member in self.members]
        averaged = [core.grad for core in cores if core.grad is not None]  # all of them
        norms = torch.stack(torch._foreach_norm(averaged)).tolist()
        for core, norm in zip(cores, norms, strict=True):
            core.grad = core.grad if norm else None

    def _open(self) -> None:
        """Extend the bases and leave the augmented cores' gradients for the optimizer."""
        for member in self.members:
            check_state(member, self.optimizer)
            member.rank = member.layer.rank
        opened = [
            (layer, tape, gradients)
            for layer in (member.layer for member in self.members)
            if (tape := layer.tape) and (gradients := taped_gradients(layer))
        ]
        new = complements(
            [basis for layer, _, _ in opened for basis in (layer.U, layer.V)],
            [block for _, _, part in opened for block in (part.grad_k, part.grad_l)],
        )
        for member in self.members:
            member.layer.tape = None
        while opened:  # what a layer's tape held goes when its turn is over
            new_right, new_left = new.pop(), new.pop()
            self._augment(*opened.pop(), new_left, new_right)

    def _augment(
        self,
        layer: LowRankLayer,
        tape: Tape,
        gradients: Gradients,
        new_left: Tensor,
        new_right: Tensor,
    ) -> None:
        shape = layer.S.shape
        scale = scale_since(layer.U, gradients.grad_k, gradients.grad_s, rounded=tape.rounded)
        corner = None
        if self.variant == "exact":
            corner = layer.corner(tape, new_left, new_right)
            reduce.average_([corner])
        gradient = augmented_gradient(gradients, new_left, new_right, corner, scale=scale)
        layer.set_factors(extend(layer.factors, new_left, new_right))
        layer.S.grad = gradient
        pad_state(self.optimizer, layer.S, shape)

    def _truncate_all(self) -> None:
        for member in self.members:
            self._truncate(member)

    def _truncate(self, member: Member) -> None:
        layer = member.layer
        trained, member.trained = member.trained, False
        if layer.is_dense or not trained:  # a cut repeated on the same weight would eat it up
            return
        factors, shape = layer.factors, layer.S.shape
        member.phases += 1
        if member.phases % REORTHONORMALIZE_EVERY == 0:
            factors = reorthonormalized(factors)
        rule = grown_rule(member) if self.grow_only else member.rule
        cut = truncate_core(
            factors.core,
            rule,
            rank=None if self.adaptive else member.rank,
            if_zero=member.rank,
            layer=member.name,
        )
        layer.set_factors(
            Factors(factors.left @ cut.left, torch.diag_embed(cut.sigma), factors.right @ cut.right)
        )
        rotate_state(self.optimizer, layer.S, shape, cut.left, cut.right)
        member.rank = cut.rank
