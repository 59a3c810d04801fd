"""Diagnosis of gradients: each is recomputed from the other implementation's own numbers.

stages.py      the inputs of each gradient
operations.py  the functions that compute them
replay.py      recomputes one gradient from the nearest given ones, and judges it
mutants/       the catalogue of bugs of backward passes
search.py      finds the bugs that explain the observed gradients
hidden.py      finds bugs that are smaller than rounding
"""
