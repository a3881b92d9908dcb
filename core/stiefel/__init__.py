"""Mathematics and training on matrix manifolds: unitary and low-rank weights."""
