"""What a ``calibration`` file tells of the inputs of the layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.methods.conversion import read_finite
from stiefel.methods.protocol import Run
from stiefel.projection.whitening import SecondMoment
from stiefel.specs.conversion import CALIBRATION, ConversionSpec
from stiefel.specs.factorize_low_rank import factor_stem
from stiefel.weights import TensorReader


class Moments:
    """Moments by the name of the weight whose inputs they describe."""

    def __init__(self, reader: TensorReader) -> None:
        self._reader = reader

    def knows_mean(self, name: str) -> bool:
        """Whether the mean input of the layer is known."""
        tables, stem = self._reader.table.tensors, factor_stem(name)
        return all(
            f"{stem}.{part}" in tables for part in ("second_moment", "first_moment", "count")
        )

    def of(self, name: str, x: Tensor) -> SecondMoment | None:
        """Return the moment of the inputs of weight ``name``, stored as ``x``; None without one.

        ``x`` is ``(n, m)``, or ``(m, n)`` where the file says that it is transposed.

        Raises:
            InvalidInputError: a moment of another width or of a complex weight, a count that is
                no positive number, or values that are not finite.
        """
        stem = factor_stem(name)
        turned = f"{stem}.transposed" in self._reader.table.tensors
        m = x.shape[0] if turned else x.shape[1]
        matrix = self._read(f"{stem}.second_moment", name, x, (m, m))
        if matrix is None:
            return None
        moment = SecondMoment(m, stored_transposed=turned)
        moment.matrix = matrix
        if self.knows_mean(name):
            total = self._read(f"{stem}.first_moment", name, x, (m,))
            count = self._read(f"{stem}.count", name, x, ())
            assert total is not None
            assert count is not None
            if not float(count) >= 1:
                raise InvalidInputError(
                    f"'{stem}.count' is {float(count)}", code="empty_calibration", tensor=name
                )
            moment.total, moment.count = total, round(float(count))
        return moment

    def _read(self, part: str, name: str, x: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        info = self._reader.table.tensors.get(part)
        if info is None:
            return None
        value = read_finite(self._reader, info)
        if x.is_complex() or tuple(value.shape) != shape:
            raise InvalidInputError(
                f"{part!r} is {tuple(value.shape)}; for the real inputs of {name!r} it would be "
                f"{shape}",
                code="calibration_width",
                tensor=name,
                fix="Make the moment from the inputs of this layer, one row per input.",
            )
        return value.to(torch.float64)


@contextmanager
def opened_moments(spec: ConversionSpec, run: Run) -> Iterator[Moments | None]:
    """The calibration of a conversion, open; None where the spec names none."""
    if spec.calibration is None:
        yield None
        return
    with TensorReader(run.input / CALIBRATION) as reader:
        yield Moments(reader)
