"""Project the hidden layers of a small network on orthogonal matrices, and see what it costs.

python examples/project_unitary.py [--epochs N] [--output FOLDER]
"""

from __future__ import annotations

from digits import accuracy, fit
from running import arguments, connected, convert


def main() -> None:
    """Fit a network here, convert its weights at the service, compare."""
    options = arguments(__doc__ or "", epochs=30)
    weights = fit(epochs=options.epochs)
    spec = {"method": "project.unitary", "include": ["hidden.*.weight"], "scale": "mean"}
    with connected() as client:
        orthogonal = convert(client, spec, weights, options.output)
    print(f"accuracy {accuracy(weights):.3f} before, {accuracy(orthogonal):.3f} after")


if __name__ == "__main__":
    main()
