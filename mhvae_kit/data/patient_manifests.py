"""Tables about patients' data in `data_manifests/`: which series, which split, how a collection's cases are found.

They hold identifiers and rules, never images. Each row is checked against a schema, so that a wrong one is named by
file, line and column.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, TypeVar

import pandas as pd
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from mhvae_kit.errors import DataError, MissingError, explain

Uid = Annotated[str, Field(pattern=r"^[0-2](\.(0|[1-9]\d*))+$", max_length=64)]
Doi = Annotated[str, Field(pattern=r"^(10\.\d{4,9}/\S+)?$")]
Role = Literal["us", "t2", "cet1", "flair", "tumour"]


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return text


def _inside(text: str) -> str:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\\" in text or ":" in text:
        raise ValueError("the path leaves the data folder")
    return text


RelativePath = Annotated[str, Field(min_length=1), AfterValidator(_inside)]
Pattern = Annotated[str, Field(min_length=1), AfterValidator(_pattern)]


class Row(BaseModel):
    """What all rows share: no unknown column, no guessed type."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SeriesRow(Row):
    """`remind_cases.csv`: one series of one case, and the role it plays."""

    case: Annotated[str, Field(pattern=r"^ReMIND-\d{3}$")]
    collection: Literal["remind"]
    role: Role
    modality: Literal["MR", "US", "SEG"]
    description: Annotated[str, Field(min_length=1)]
    series_uid: Uid
    study_uid: Uid
    files: Annotated[int, Field(ge=1)]
    megabytes: Annotated[float, Field(gt=0)]
    licence: Annotated[str, Field(min_length=1)]
    doi: Doi
    index: Annotated[str, Field(pattern=r"^IDC v\d+$")]


class SplitRow(Row):
    """`remind_split_mhvae.csv`: one case's split, and what speaks against it."""

    case: Annotated[str, Field(pattern=r"^ReMIND-\d{3}$")]
    split: Literal["train", "validation", "test", "ood"]
    released_split: Literal["training", "validation", "inference"]
    doubt: str
    source: Annotated[str, Field(min_length=1)]


class RuleRow(Row):
    """`remind.csv`, `brats.csv`, `upenn_gbm.csv`: how a collection's files for one role are found."""

    collection: Annotated[str, Field(min_length=1)]
    role: Role
    matches: Literal["series description", "file name"]
    pattern: Pattern
    choice: str
    licence: Annotated[str, Field(min_length=1)]
    doi: Doi
    citation: Annotated[str, Field(min_length=1)]
    access: Annotated[str, Field(min_length=1)]


class FileRow(Row):
    """A table of files with known bytes."""

    case: Annotated[str, Field(min_length=1)]
    split: Literal["train", "validation", "test", "ood"]
    file: RelativePath
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    shape: Annotated[str, Field(pattern=r"^\d+x\d+x\d+$")]
    spacing: Annotated[float, Field(gt=0)]
    seed: Annotated[int, Field(ge=0)]


Kind = TypeVar("Kind", bound=Row)


def read_rows(path: str | Path, kind: type[Kind]) -> list[Kind]:
    """Read a table and check every row.

    Args:
        path: CSV with a header.
        kind: What its rows must be.
    Raises:
        MissingError: There is no such file.
        DataError: It is no CSV, or a row breaks the schema; the message names line and column.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(explain("the table is not there", got=path, expected="a CSV file"))
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise DataError(explain(f"{path} cannot be read ({error})", expected="a CSV file")) from error
    rows = []
    for line, values in enumerate(frame.to_dict("records"), start=2):
        try:
            rows.append(kind.model_validate(values))
        except ValidationError as error:
            first = error.errors()[0]
            column = ".".join(str(part) for part in first["loc"])
            problem = f"line {line} of {path} is wrong in column {column} ({first['msg'].lower()})"
            raise DataError(explain(problem, got=repr(values.get(column)), mend="correct the row")) from error
    return rows


def megabytes(rows: list[SeriesRow], cases: list[str] | None = None) -> float:
    """Size of the series of some cases, or of all, in MB (10^6 bytes)."""
    return sum(row.megabytes for row in rows if cases is None or row.case in cases)
