"""`python -m gptoss_ref`: the same as the command `gptoss-ref`."""

from gptoss_ref.cli import entry_point

if __name__ == "__main__":
    entry_point()
