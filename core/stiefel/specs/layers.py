"""One row of a network's table: a module that holds numbers, by name and shape, without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One module that holds numbers.

    Attributes:
        name: dotted, as in the built network; empty for what the network itself holds.
        kind: name of the module's class.
        parameters: name -> shape.
        complex: names of the parameters that are complex: two numbers each.
        buffers: name -> shape of what is stored but not trained.
        kept: numbers that one example leaves behind for the backward pass, this layer's output
            and what follows up to the next layer included.
    """

    name: str
    kind: str
    parameters: dict[str, Shape]
    complex: frozenset[str] = frozenset()
    buffers: dict[str, Shape] = field(default_factory=dict)
    kept: int = 0

    @property
    def count(self) -> int:
        """Parameters, a complex number counted once."""
        return sum(prod(shape) for shape in self.parameters.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters in single precision."""
        return sum(
            prod(shape) * (8 if name in self.complex else 4)
            for name, shape in self.parameters.items()
        )

    @property
    def matrix(self) -> Shape | None:
        """Shape of the first parameter that is a matrix or a stack of them."""
        return next((shape for shape in self.parameters.values() if len(shape) > 1), None)

    def stored(self) -> dict[str, Shape]:
        """Dotted name -> shape of everything a state dict holds."""
        prefix = f"{self.name}." if self.name else ""
        return {prefix + name: shape for name, shape in (self.parameters | self.buffers).items()}
