"""Table 1: every compared method trained and scored under one protocol, one run folder a row.

Light to import: what needs torch is imported by the functions that use it.
"""

from __future__ import annotations

from mhvae_kit.table1.rows import BUDGETS, REFERENCES, ROWS, TRAINING_ORDER, Row, find_row, row_folder

__all__ = ["BUDGETS", "REFERENCES", "ROWS", "TRAINING_ORDER", "Row", "find_row", "row_folder"]
