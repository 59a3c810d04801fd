"""Faults: writers killed at random moments, full disks, readers beside writers, threads.

    python -m tests.faults all --figures          # writes docs/reliability.md, too
    python -m tests.faults kill --times 100 --seed 3
    python -m tests.faults threads --minutes 10

``writers`` lists the writers and how a result is checked; ``scenarios`` are the faults.
"""
