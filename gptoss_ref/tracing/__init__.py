"""Tap points, traces and their file.

``taps`` names every intermediate array of a pass and its axes; ``trace`` is what a pass computed
there, checked by ``checks``; ``record`` makes one; ``rounding`` tells how it was rounded; ``file``
keeps it as safetensors, ``npz`` as a file of NumPy; ``gradients`` names those of the backward pass.
"""
