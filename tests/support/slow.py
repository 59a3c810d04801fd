"""Which tests are not of the fast half: those that `pytest -n 2 -m "not slow"` leaves out.

The list holds whole files and single tests, by their node ids. It is made from durations, so that
the fast half takes about 90 s on two idle cores; `--durations=50` shows what should join it.
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
    "tests/docs/test_docs.py::test_every_public_name_is_described",
    # every bug of the catalogue, and searches for one
    "tests/layers/test_mutations.py",
    "tests/verify/test_adapters_torch.py",
    "tests/verify/test_buggy_twin.py",
    "tests/verify/test_compare.py",
    "tests/verify/test_diagnose.py",
    "tests/verify/test_gradients.py",
    "tests/verify/test_kill_matrix.py",
    "tests/verify/test_mutants.py",
    "tests/verify/test_partial_rows.py",
    "tests/verify/test_stages.py",
    "tests/verify/test_vectors.py::test_a_flag_catches_what_it_says",
    "tests/verify/test_vectors.py::test_every_bug_that_is_caught_is_told_by_a_flag",
    "tests/verify/test_vectors.py::test_random_numbers_are_wrong_and_unexplained",
    "tests/verify/test_vectors_torch.py",
    "tests/verify/test_constants.py",
    "tests/verify/test_equal_models.py",
    "tests/verify/test_integers.py",
    "tests/verify/test_outputs.py",
    "tests/verify/test_recordings.py",
    "tests/verify/harmony/test_templates.py",
    "tests/verify/harmony/test_servers.py",
    "tests/verify/test_adapters_endpoint.py",
    "tests/verify/harmony/test_kill_matrix.py",
    "tests/cli/test_diagnose.py",
    # long contexts, training, other libraries' models, a browser, new processes that compile
    "tests/model/test_twin.py",
    "tests/model/test_backends.py",
    "tests/model/test_cache.py::test_decoding_token_by_token",
    "tests/training/test_loop.py::test_a_run_that_is_killed_leaves_whole_files",
    "tests/training/test_teach.py::test_the_adapter_of_the_course_has_the_skill",
    "tests/cli/test_train.py::test_ctrl_c_saves_and_resume_has_the_same_bits",
    "tests/viz/test_baselines.py",
    "tests/viz/test_inspect.py::test_5000_tokens_fit_or_are_refused_at_once",
    "tests/test_package.py",
    "tests/model/test_transformers.py",
    "tests/model/test_transformers_tiny.py",
    "tests/viz/test_inspect_page.py",
    "tests/kernels/test_experts.py",
    "tests/kernels/test_linear.py",
    "tests/kernels/test_jit.py",
    "tests/layers/test_policies.py::test_a_name_is_as_good_as_the_policy",
    "tests/chat/test_tokenizer.py::test_a_million_of_anything",
    "tests/kernels/test_threads.py",
    "tests/kernels/test_warmup.py",
    "tests/cli/test_commands.py::test_doctor",
    "tests/faults/test_faults.py",
    "tests/test_portable.py",
)
"""Node ids, or what they begin with."""


def is_slow(nodeid: str) -> bool:
    """Whether a test is not of the fast half."""
    return nodeid.startswith(SLOW)
