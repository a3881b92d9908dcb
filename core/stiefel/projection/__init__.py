"""Weights in, weights out: nearest unitary in several senses, UWPA, low-rank factors."""
