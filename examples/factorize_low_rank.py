"""Write the hidden layers of a small network as thin factors, and see what it costs.

python examples/factorize_low_rank.py [--epochs N] [--output FOLDER]
"""

from __future__ import annotations

from digits import accuracy, fit
from running import arguments, connected, convert


def main() -> None:
    """Fit a network here, convert its weights at the service, compare."""
    options = arguments(__doc__ or "", epochs=30)
    weights = fit(epochs=options.epochs)
    spec = {
        "method": "factorize.low_rank",
        "include": ["hidden.*.weight"],
        "rule": {"by": "keep", "value": 0.5},
    }
    with connected() as client:
        low_rank = convert(client, spec, weights, options.output)
    print(f"accuracy {accuracy(weights):.3f} before, {accuracy(low_rank):.3f} after")


if __name__ == "__main__":
    main()
