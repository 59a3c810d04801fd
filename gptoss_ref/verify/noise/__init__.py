"""Errors of arrays, the errors that rounding explains, and ties in the choice of experts."""
