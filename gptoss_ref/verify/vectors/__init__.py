"""Conformance vectors: questions with right answers, for implementations in any language."""

from .cases import Case, all_cases
from .exercise import check_file, check_function, find_operation, load_function
from .flags import FLAGS, Flag
from .judge import Finding, Judgement, judge_case
from .operations import OPERATIONS, Operation
from .results import check_vectors
from .suite import DIGEST, digest, suite_files, write_vectors

__all__ = [
    "DIGEST",
    "FLAGS",
    "OPERATIONS",
    "Case",
    "Finding",
    "Flag",
    "Judgement",
    "Operation",
    "all_cases",
    "check_file",
    "check_function",
    "check_vectors",
    "digest",
    "find_operation",
    "judge_case",
    "load_function",
    "suite_files",
    "write_vectors",
]
