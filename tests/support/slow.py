"""Which tests are not of the fast half: those that `python -m pytest -m "not slow"` leaves out.

The list holds whole files and single tests, by their node ids. It is made from durations, so that
the fast half takes under 90 s on two idle cores; `python -m pytest --durations=50 -m "not slow"`
shows what should join it.
"""

from __future__ import annotations

SLOW = (
    # the course, examples and notebooks are executed
    "tests/docs/test_course.py",
    "tests/docs/test_course_a.py",
    "tests/docs/test_course_b.py",
    "tests/docs/test_examples.py",
    "tests/docs/test_examples_vectors.py",
    "tests/docs/test_notebooks.py",
    # every bug of the catalogue, and searches for one
    "tests/layers/test_mutations.py",
    "tests/verify/test_adapters_torch.py",
    "tests/verify/test_buggy_twin.py",
    "tests/verify/test_compare.py",
    "tests/verify/test_diagnose.py",
    "tests/verify/test_kill_matrix.py",
    "tests/verify/test_mutants.py",
    "tests/verify/test_stages.py",
    "tests/verify/test_vectors_torch.py",
    "tests/cli/test_diagnose.py",
    # other libraries' models, a browser, new processes that compile
    "tests/model/test_transformers.py",
    "tests/model/test_transformers_tiny.py",
    "tests/viz/test_inspect_page.py",
    "tests/kernels/test_threads.py",
    "tests/kernels/test_warmup.py",
    "tests/faults/test_faults.py",
    "tests/test_portable.py",
)
"""Node ids, or what they begin with."""


def is_slow(nodeid: str) -> bool:
    """Whether a test is not of the fast half."""
    return nodeid.startswith(SLOW)
