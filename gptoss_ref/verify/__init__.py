"""Find the first wrong number in somebody else's gpt-oss, and name the bug."""

from gptoss_ref.verify.compare import compare
from gptoss_ref.verify.diagnose import diagnose
from gptoss_ref.verify.observe.adapters import (
    capture,
    capture_calls,
    from_arrays,
    from_llama,
    observe,
    read,
)
from gptoss_ref.verify.observe.observation import LogprobObservation
from gptoss_ref.verify.rendering.check import harmony

__all__ = [
    "LogprobObservation",
    "capture",
    "capture_calls",
    "compare",
    "diagnose",
    "from_arrays",
    "from_llama",
    "harmony",
    "observe",
    "read",
]
