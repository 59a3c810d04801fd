"""Gradients judged like any other stage: recomputed from the other's own numbers, bugs named.

stages.py     what each gradient is computed from, and how
replay.py     one gradient recomputed from the nearest given ones, and judged
mutants.py    the catalogue of bugs of backward passes
search.py     which of them explain somebody's gradients
"""
