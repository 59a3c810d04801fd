"""Tap points, traces and their file.

``taps`` names every intermediate array of a pass and its axes, ``trace`` records a pass, ``file``
keeps a trace as safetensors.
"""
