"""Faults: writers killed at random moments, full disks, readers beside writers, threads.

    python -m tests.faults all --figures          # writes docs/reliability.md, too
    python -m tests.faults kill --times 100 --seed 3
    python -m tests.faults threads --minutes 10

``writers`` lists what writes and what is whole; ``scenarios`` what is done to it.
"""
