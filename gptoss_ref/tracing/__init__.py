"""Tap points, traces and trace files.

``taps`` names every intermediate array of a pass and its axes; ``trace`` holds the arrays of one
pass, which ``checks`` validates; ``record`` computes a trace; ``rounding`` infers how its values
were rounded; ``file`` stores it as safetensors, ``npz`` as a NumPy file; ``gradients`` names the
arrays of the backward pass.
"""
