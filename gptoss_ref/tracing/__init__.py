"""Tap points, traces and their file.

``taps`` names every intermediate array of a pass and its axes, ``trace`` records a pass, ``file``
keeps a trace as safetensors.
"""

from gptoss_ref.tracing.trace import Trace, trace

__all__ = ["Trace", "trace"]
