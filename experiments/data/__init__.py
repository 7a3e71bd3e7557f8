"""Data sets and generators of the studies."""
