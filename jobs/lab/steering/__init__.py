"""Steering methods for comparison with the product's: one module each, with the rung's keys and its answer."""
