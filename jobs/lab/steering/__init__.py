"""Steering methods that the product's are compared with: the keys and the answer of each in one module."""
