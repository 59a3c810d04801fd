"""Conformance vectors: test cases with expected outputs, for implementations in any language."""

from gptoss_ref.verify.vectors.case import Case
from gptoss_ref.verify.vectors.cases import all_cases
from gptoss_ref.verify.vectors.exercise import (
    check_file,
    check_function,
    find_operation,
    load_function,
)
from gptoss_ref.verify.vectors.flags import FLAGS, Flag
from gptoss_ref.verify.vectors.harmony import (
    HarmonyFinding,
    HarmonyJudgement,
    check_harmony,
    check_harmony_file,
    harmony_vectors,
)
from gptoss_ref.verify.vectors.judge import Finding, Judgement, judge_case
from gptoss_ref.verify.vectors.operation import Operation
from gptoss_ref.verify.vectors.operations import OPERATIONS
from gptoss_ref.verify.vectors.results import check_vectors
from gptoss_ref.verify.vectors.suite import DIGEST, digest, suite_files, write_vectors

__all__ = [
    "DIGEST",
    "FLAGS",
    "OPERATIONS",
    "Case",
    "Finding",
    "Flag",
    "HarmonyFinding",
    "HarmonyJudgement",
    "Judgement",
    "Operation",
    "all_cases",
    "check_file",
    "check_function",
    "check_harmony",
    "check_harmony_file",
    "check_vectors",
    "digest",
    "find_operation",
    "harmony_vectors",
    "judge_case",
    "load_function",
    "suite_files",
    "write_vectors",
]
