"""Fuzzing of every reader of files and answers from strangers.

    python -m tests.fuzz safetensors --count 1000000 --seed 7
    python -m tests.fuzz all --count 1000000 --figures      # also writes docs/reliability.md
    python -m tests.fuzz npz --engine atheris               # guided by coverage; needs atheris

``targets`` says what is read and what must hold, ``mutate`` makes the inputs. An input that
raises anything but a GptOssError, or breaks the target's own promise, is a crash: it is printed
with the line that reproduces it, and belongs into ``tests/fuzz/test_fuzz.py`` under a name.
"""
