"""Table 1: every compared method on one direction, with intervals and paired tests over patients.

Methods are ranked among themselves. References (copy of the input, constant image, oracle) stand below them and are
never ranked; numbers of the paper stand in columns of their own, labelled with their data, and never take part.
`table1_text` turns a table into CSV, Markdown, HTML and LaTeX.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mhvae_kit.environment import project_folder, source_folder
from mhvae_kit.errors import DataError, InputError, MissingError, explain
from mhvae_kit.evaluation.extras import (
    KEYS,
    METRICS,
    Metric,
    check_keys,
    extra_scores,
    has_scores,
    patient_means,
    score_columns,
)
from mhvae_kit.evaluation.statistics import LEVEL, best_and_tied, compare_with, smallest_p
from mhvae_kit.evaluation.tables import bootstrap_interval
from mhvae_kit.metrics import lpips_available

__all__ = ["MODES", "PUBLISHED", "Table1", "assemble", "extra_scores", "patient_means", "published_scores"]

DETERMINISTIC = "deterministic"
MODES = (DETERMINISTIC, "mean path", "one sample", "mean of K")
REFERENCE_ROW = "MHVAE"
PUBLISHED = "ReMIND, published"
PUBLISHED_FILE = "published_table1.csv"
PUBLISHED_COLUMNS = ("row", "observed", "target", "metric", "value", "unit", "source", "note")


def published_scores(path: str | Path | None = None) -> pd.DataFrame:
    """The paper's numbers, as data_manifests/published_table1.csv has them: `PUBLISHED_COLUMNS`, value a number.

    Args:
        path: The file; None looks in the checkout, then in the project folder at or above the working directory.
    Raises:
        MissingError: There is no such file.
        DataError: A column is missing or a value is no number.
    """
    folders = [f for f in (source_folder(), project_folder()) if f is not None]
    found = [f / "data_manifests" / PUBLISHED_FILE for f in folders] if path is None else [Path(path)]
    file = next((f for f in found if f.is_file()), None)
    if file is None:
        raise MissingError(explain(f"{path or PUBLISHED_FILE} is not there", mend="Work in the project folder"))
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    missing = [c for c in PUBLISHED_COLUMNS if c not in table.columns]
    if missing:
        raise DataError(explain(f"{file} lacks columns", got=", ".join(table.columns), expected=", ".join(missing)))
    table["value"] = pd.to_numeric(table["value"], errors="coerce")
    if table["value"].isna().any() or (table["source"] == "").any():
        raise DataError(explain(f"{file} has a row without a number or a source", expected="both in every row"))
    return table


@dataclass(frozen=True)
class Table1:
    """The table of one direction, ready to be written by `table1_text`.

    Args:
        data: What was scored, such as "phantom demo".
        observed: The observed subset, "t2".
        target: The target.
        mode: How stochastic methods were decoded.
        metrics: The columns, in order.
        cells: A row per method or reference and metric: block ("method" or "reference"), row, mode, temperature,
            n_samples, metric, n_patients, mean, low and high (95 % interval over patients), difference (to the
            reference method), p, p_holm, best, tied (with the best) and differs (from the reference method).
        patients: The values per patient that all this rests on.
        published: The paper's numbers for this direction, of other data.
        descriptions: Further columns by title, text by row, such as parameters.
        notes: What a reader must know, a sentence each.
    """

    data: str
    observed: str
    target: str
    mode: str
    metrics: tuple[Metric, ...]
    cells: pd.DataFrame
    patients: pd.DataFrame
    published: pd.DataFrame
    descriptions: Mapping[str, Mapping[str, str]]
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """One line that names the direction, the mode and the data."""
        count = self.patients["case"].nunique()
        kind = "reconstruction" if self.target in self.observed.split("+") else "synthesis"
        return f"{self.observed} → {self.target} ({kind}), {self.mode}, {self.data}, {count} patients"


def assemble(
    patients: Mapping[str, pd.DataFrame],
    *,
    data: str,
    observed: str,
    target: str,
    mode: str = "mean path",
    temperature: float | None = None,
    against: str | None = REFERENCE_ROW,
    references: Mapping[str, pd.DataFrame] | None = None,
    published: pd.DataFrame | None = None,
    descriptions: Mapping[str, Mapping[str, str]] | None = None,
    lpips_reason: str | None = None,
    level: float = LEVEL,
    seed: int = 0,
    n_boot: int = 2000,
) -> Table1:
    """Put the methods side by side on one direction.

    Args:
        patients: By method, in the order of the table: a row per patient with the columns of `KEYS` and scores, as
            `patient_means` gives them. Other directions and modes in a frame are passed over.
        data: Name of the data, shown with every number: "phantom demo" for phantom results.
        observed: The observed subset, "t2" or "t2+us".
        target: The target modality.
        mode: "mean path", "one sample" or "mean of K", for methods that draw noise; deterministic ones have one mode
            and appear in every table.
        temperature: Which one, when a method was scored at several.
        against: The method all others are tested against; None tests none.
        references: By name, frames like those of the methods (copy, constant image, oracle); never ranked or tested.
        published: From `published_scores`; None leaves the paper's numbers out.
        descriptions: Further columns by title, text by row.
        lpips_reason: Why LPIPS is missing; None asks `lpips_available`.
        level: Of the tests.
        seed: Of the bootstrap, and of the tests beyond 14 patients.
        n_boot: Number of bootstrap resamples.
    Raises:
        InputError: No method has this direction and mode; methods scored on different patients; several temperatures
            where one is needed; NaN; scores of two protocols; `against` missing; no name of the data.
    """
    if not isinstance(data, str) or not data.strip():
        raise InputError(explain("the data have no name", got=repr(data), expected='for example "phantom demo"'))
    if mode not in MODES[1:]:
        raise InputError(explain("unknown mode", got=repr(mode), expected=", ".join(MODES[1:])))
    _check_data(data, [*patients.values(), *(references or {}).values()])
    wanted = {"observed": observed, "target": target, "mode": mode, "temperature": temperature}
    methods = {row: _choose(frame, row, **wanted) for row, frame in patients.items()}
    absent = [row for row, frame in methods.items() if frame is None]
    methods = {row: frame for row, frame in methods.items() if frame is not None}
    if not methods or (against is not None and against not in methods):
        raise InputError(
            explain(
                f"there is no score of {against if methods else 'any method'} from {observed} to {target}, {mode}",
                got=", ".join(methods) or "no method",
                mend="Score it first" + (", or pass against=None" if methods else ""),
            )
        )
    below = {row: _choose_reference(frame, row, observed, target) for row, frame in (references or {}).items()}
    below = {row: frame for row, frame in below.items() if frame is not None}
    _check_same_patients({**methods, **below})
    metrics = _present(methods)
    options = {"against": against, "level": level, "seed": seed, "n_boot": n_boot}
    cells = [_cells(methods, m, "method", **options) for m in metrics]
    cells += [_cells(below, m, "reference", **{**options, "against": None}) for m in metrics if below]
    shown = _with_lpips(metrics)
    count = len(next(iter(methods.values())))
    missing_lpips = lpips_available()[1] if lpips_reason is None else lpips_reason
    notes = _notes(count, len(methods), against, level, absent, bool(below), published is not None)
    if len(shown) > len(metrics):
        reason = missing_lpips.rstrip(".") or "it was not computed when these runs were scored"
        notes.append(f"LPIPS is n/a: {reason}.")
    own = pd.DataFrame(columns=list(PUBLISHED_COLUMNS)) if published is None else published
    own = own[(own["observed"] == observed) & (own["target"] == target)]
    return Table1(
        data=data.strip(),
        observed=observed,
        target=target,
        mode=mode,
        metrics=tuple(shown),
        cells=pd.concat(cells, ignore_index=True),
        patients=pd.concat([*methods.values(), *below.values()], ignore_index=True),
        published=own.reset_index(drop=True),
        descriptions=dict(descriptions or {}),
        notes=tuple(notes),
    )


def _check_data(data: str, frames: Sequence[pd.DataFrame]) -> None:
    """Refuse frames of several data sets, and phantom scores under a name that does not say so."""
    names = sorted({str(name) for frame in frames if "data" in frame.columns for name in frame["data"]})
    if len(names) > 1:
        raise InputError(explain("scores of different data are mixed", got=", ".join(names), expected="one data set"))
    if any("phantom" in name.lower() for name in names) and "phantom" not in data.lower():
        raise InputError(
            explain(
                "phantom scores must say phantom", got=f"the name {data!r} for scores of {names[0]}", expected=names[0]
            )
        )


def _choose(
    frame: pd.DataFrame, row: str, *, observed: str, target: str, mode: str, temperature: float | None
) -> pd.DataFrame | None:
    """The patients of one method in one direction and mode, sorted by case; None when it has none."""
    what = f"the scores of {row}"
    check_keys(frame, KEYS, what)
    part = frame[(frame["observed"] == observed) & (frame["target"] == target)]
    unknown = sorted(set(part["mode"]) - set(MODES))
    if unknown:
        raise InputError(
            explain(f"{what} have an unknown mode", got=", ".join(map(str, unknown)), expected=", ".join(MODES))
        )
    drawn = part[part["mode"] == mode]
    if temperature is not None and mode != "mean path":
        drawn = drawn[drawn["temperature"] == temperature]
    part = drawn if len(drawn) else part[part["mode"] == DETERMINISTIC]
    if part.empty:
        return None
    settings = part[["mode", "temperature", "n_samples"]].drop_duplicates()
    if len(settings) > 1 or part["case"].duplicated().any():
        raise InputError(
            explain(
                f"{what} hold a patient more than once in {observed} to {target}, {mode}",
                got="; ".join(_mode_text(s) for _, s in settings.iterrows()),
                expected="one temperature and number of samples",
                mend="Choose one with temperature, or filter the frame",
            )
        )
    score_columns(part, what)
    return part.assign(row=row).sort_values("case", ignore_index=True)


def _mode_text(settings: pd.Series) -> str:
    """Mode with its temperature and number of samples."""
    mode, tau = settings["mode"], settings["temperature"]
    if mode in (DETERMINISTIC, "mean path"):
        return str(mode)
    name = f"mean of {int(settings['n_samples'])}" if mode == "mean of K" else mode
    return f"{name}, τ = {tau:g}" if isinstance(tau, (int, float, np.number)) else f"{name}, {tau}"


def _choose_reference(frame: pd.DataFrame, row: str, observed: str, target: str) -> pd.DataFrame | None:
    """The patients of a reference: of this direction, or, where it depends on no input, of this target.

    A reference without an input names itself as what was observed, under whatever title it stands in the table.
    """
    check_keys(frame, KEYS, f"the scores of {row}")
    part = frame[frame["target"] == target]
    own = part[part["observed"] == observed]
    part = own if len(own) else part[part["observed"] == part["row"]]
    if part.empty:
        return None
    if part["case"].duplicated().any():
        raise InputError(explain(f"the scores of {row} hold a patient more than once", expected="one row per patient"))
    score_columns(part, f"the scores of {row}")
    return part.assign(row=row).sort_values("case", ignore_index=True)


def _check_same_patients(frames: Mapping[str, pd.DataFrame]) -> None:
    """Refuse rows that were not scored on the same patients: their means could not be compared."""
    first, *others = frames
    for row in others:
        odd = sorted(set(frames[first]["case"]) ^ set(frames[row]["case"]))
        if odd:
            raise InputError(
                explain(
                    f"{first} and {row} were not scored on the same patients",
                    got=f"{len(odd)} in one only: {', '.join(odd[:5])}{', ...' if len(odd) > 5 else ''}",
                    expected="the same test patients for every row",
                    mend=f"Score {row} again on all of them",
                )
            )


def _present(frames: Mapping[str, pd.DataFrame]) -> list[Metric]:
    """Metrics that at least one method has, in the fixed order."""
    return [m for m in METRICS if any(has_scores(frame, m.column) for frame in frames.values())]


def _with_lpips(metrics: Sequence[Metric]) -> list[Metric]:
    """The metrics with LPIPS in its place even where nothing could be computed, so that its absence shows."""
    return [m for m in METRICS if m in metrics or m.column == "lpips_fov"]


def _cells(
    frames: Mapping[str, pd.DataFrame],
    metric: Metric,
    block: str,
    *,
    against: str | None,
    level: float,
    seed: int,
    n_boot: int,
) -> pd.DataFrame:
    """One metric of one block: means, intervals, tests and marks."""
    frames = {row: frame for row, frame in frames.items() if has_scores(frame, metric.column)}
    values = pd.DataFrame({row: frame.set_index("case")[metric.column] for row, frame in frames.items()})
    ranked = block == "method" and metric.better is not None and len(values.columns) > 0
    tests = compare_with(values, against, seed=seed) if ranked and against in values.columns else None
    best, tied = best_and_tied(values, metric.better, level=level, seed=seed) if ranked else (None, [])
    rows = []
    for row, frame in frames.items():
        one = values[row].to_numpy(dtype=float)
        low, high = bootstrap_interval(one, seed=seed, n_boot=n_boot)
        settings = frame.iloc[0]
        rows.append(
            {
                "block": block,
                "row": row,
                "mode": _mode_text(settings),
                "temperature": settings["temperature"],
                "n_samples": settings["n_samples"],
                "metric": metric.column,
                "n_patients": len(one),
                "mean": float(one.mean()),
                "low": low,
                "high": high,
                **{k: np.nan if tests is None else float(tests.at[row, k]) for k in ("difference", "p", "p_holm")},
                "best": row == best,
                "tied": row in tied,
                "differs": tests is not None and bool(tests.at[row, "p_holm"] < level),
            }
        )
    return pd.DataFrame(rows)


def _notes(
    n_patients: int,
    n_methods: int,
    against: str | None,
    level: float,
    absent: Sequence[str],
    references: bool,
    published: bool,
) -> list[str]:
    """What a reader must know, in the order of the table."""
    notes = [
        "Mean over patients with 95 % bootstrap interval over patients; slices are averaged within a patient first.",
        f"Bold: best mean among the methods. ≈: not told from the best (exact sign-flip test of the mean paired "
        f"difference over {n_patients} patients, Holm over methods, p ≥ {level:g}).",
    ]
    if against is not None:
        notes.append(f"†: differs from {against} (same test, Holm over the methods of a column, p < {level:g}).")
    floor = smallest_p(n_patients) * max(n_methods - 1, 1)
    if floor >= level:
        notes.append(
            f"With {n_patients} patients no corrected p value can be below {min(floor, 1.0):.2g}: every method is tied."
        )
    if references:
        notes.append(
            "References are not ranked. The oracle is the mean over many speckle draws: a ceiling for PSNR and SSIM, "
            "but without speckle itself, so not for texture."
        )
    if published:
        notes.append(f"{PUBLISHED}: other patients, mask and data range unknown; shown, never ranked or averaged.")
    if absent:
        notes.append(f"Without this direction and mode: {', '.join(absent)}.")
    return notes
