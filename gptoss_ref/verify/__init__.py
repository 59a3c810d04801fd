"""Find the first wrong number in somebody else's gpt-oss, and name the bug."""
