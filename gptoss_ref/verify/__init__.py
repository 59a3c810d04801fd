"""Find the first wrong number in somebody else's gpt-oss, and name the bug."""

from gptoss_ref.verify.compare import compare

__all__ = ["compare"]
