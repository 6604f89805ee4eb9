"""Patients' files into a dataset: where a case's files are, how they are brought together, where to get them."""

from .case import registration_rows
from .prepare import PreparationResult, prepare, refuse_failed
from .sources import CaseFiles, ImageFile, find_cases

__all__ = ["CaseFiles", "ImageFile", "PreparationResult", "find_cases", "prepare", "refuse_failed", "registration_rows"]
