"""Patients' files into a dataset: where a case's files are, how they are brought together, where to get them."""

from .prepare import PreparationResult, prepare
from .sources import CaseFiles, ImageFile, find_cases

__all__ = ["CaseFiles", "ImageFile", "PreparationResult", "find_cases", "prepare"]
