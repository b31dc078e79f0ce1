"""Proposing: which policy to measure next, by a solver, a preset or a sampler."""
