"""What is measured: each case is one kind of work at one size. Nothing here needs torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from mhvae_kit.errors import InputError, explain

Kind = Literal["arithmetic", "inference", "temperatures", "volume", "training", "loading", "phantom"]
Preset = Literal["smoke", "demo", "paper"]
Precision = Literal["float32", "bfloat16"]
Device = Literal["cpu", "cuda"]
MODALITIES = ("us", "t2", "flair", "cet1")
OBSERVED, TARGET = "t2", "us"
# By kind: the file in its checkout that has the network.
PEER_FILES = {
    "authors": "network/mhvae.py",
    "fast": "networks/mhvae_fast.py",
    "multivae": "src/multivae/models/mhvae/mhvae_model.py",
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing to measure; a process of its own runs it.

    Args:
        name: Unique, as it stands in the table.
        kind: "arithmetic" (one large convolution: as many operations a second as the machine does), "inference" (t2 to
            us, encode and decode), "temperatures" (one encoding, decoded at several), "volume" (slice by slice through
            a volume), "training" (one step over all observed subsets), "loading" (batches of slices from disk) or
            "phantom" (one patient made anew).
        preset: Whose width, depth and size the network has; the image heads have six blocks, as the authors' code.
        batch: Slices at a time.
        size: Height and width in pixels; None = the preset's.
        precision: Of the convolutions; on a GPU "float32" lets torch take TF32 for them, its default.
        n_observed: Images that are given, 1 to 4; one of them is never the target.
        n_temperatures: Decodings of one encoding.
        depth: Slices of the volume.
        accumulate: Parts that a training step cuts its batch into, to save memory.
        checkpoint_gradients: Whether a training step computes its wide blocks twice, to save memory.
        growth: The axis of the growth curve that the case is a point of: "batch", "pixels", ...
    Raises:
        InputError: An unknown kind, or a number that is not positive.
    """

    name: str
    kind: Kind
    preset: Preset = "paper"
    batch: int = 1
    size: int | None = None
    precision: Precision = "float32"
    n_observed: int = 1
    n_temperatures: int = 1
    depth: int = 0
    accumulate: int = 1
    checkpoint_gradients: bool = False
    growth: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(explain("unknown kind of case", got=repr(self.kind), expected=", ".join(get_args(Kind))))
        numbers = (self.batch, self.n_observed, self.n_temperatures, self.accumulate, self.size or 1)
        if min(numbers) < 1 or (self.kind == "volume" and self.depth < 1) or self.n_observed > len(MODALITIES):
            raise InputError(explain(f"case {self.name} has a number that does not fit", got=dataclasses.asdict(self)))

    @property
    def slices(self) -> int:
        """Slices that one run makes or trains on; times per slice are divided by it."""
        return self.depth or self.batch

    @property
    def is_counted(self) -> bool:
        """Whether its operations can be counted: torch's counter is wrong for gradients of depthwise convolutions."""
        return self.kind in ("arithmetic", "inference", "temperatures", "volume")

    def can(self, kind: str) -> bool:
        """Whether a kind of peer can do the same: mhvae_fast does not train, MultiVae knows no temperature."""
        refused = {"fast": "training", "multivae": "temperatures"}
        return self.has_peer and self.kind != refused.get(kind)

    @property
    def has_peer(self) -> bool:
        """Whether other code can do the same."""
        return self.kind not in ("arithmetic", "loading", "phantom") and self.n_observed == 1 and self.growth is None


def all_cases() -> list[Case]:
    """The cases of a full run, at the paper's size; the last training case is at the demo's, where more fits."""
    return [
        Case(name="arithmetic", kind="arithmetic", batch=2, size=96),
        Case(name="arithmetic_bfloat16", kind="arithmetic", batch=2, size=96, precision="bfloat16"),
        Case(name="inference_1", kind="inference"),
        Case(name="inference_16", kind="inference", batch=16),
        Case(name="inference_1_bfloat16", kind="inference", precision="bfloat16"),
        Case(name="inference_16_bfloat16", kind="inference", batch=16, precision="bfloat16"),
        Case(name="five_temperatures_1", kind="temperatures", n_temperatures=5),
        Case(name="five_temperatures_16", kind="temperatures", batch=16, n_temperatures=5),
        Case(name="volume_160", kind="volume", batch=16, depth=160),
        Case(name="training_4", kind="training", batch=4),
        Case(name="training_4_checkpointed", kind="training", batch=4, checkpoint_gradients=True),
        Case(name="training_16_96px", kind="training", preset="demo", batch=16),
        Case(name="training_16", kind="training", batch=16, accumulate=4),
        Case(name="loading_16", kind="loading", preset="demo", batch=16),
        Case(name="phantom_patient", kind="phantom", preset="demo"),
    ]


def gpu_cases() -> list[Case]:
    """The cases of a full run on a GPU, all at the paper's size; a step of 16 slices fits there as one piece."""
    cases = [
        Case(name="arithmetic", kind="arithmetic", batch=64),
        Case(name="arithmetic_bfloat16", kind="arithmetic", batch=64, precision="bfloat16"),
    ]
    kinds: tuple[Kind, ...] = ("inference", "temperatures", "volume")
    cases += [case for case in all_cases() if case.kind in kinds]
    return [
        *cases,
        Case(name="training_4", kind="training", batch=4),
        Case(name="training_16", kind="training", batch=16),
        Case(name="training_16_checkpointed", kind="training", batch=16, checkpoint_gradients=True),
        Case(name="training_16_bfloat16", kind="training", batch=16, precision="bfloat16"),
    ]


def quick_cases() -> list[Case]:
    """One case of each kind at a size that takes seconds; shows that the bench works, not how quick the kit is."""
    kinds: tuple[Kind, ...] = ("arithmetic", "inference", "temperatures", "volume", "training", "loading", "phantom")
    return [
        Case(
            name=kind,
            kind=kind,
            preset="smoke",
            batch=2,
            n_temperatures=2 if kind == "temperatures" else 1,
            depth=5 if kind == "volume" else 0,
        )
        for kind in kinds
    ]


def growth_cases() -> list[Case]:
    """Points of the growth curves of inference: batch, pixels, observed modalities and temperatures."""
    points = [("batch", n, {"batch": n}) for n in (1, 2, 4, 8, 16)]
    points += [("pixels", n, {"size": n}) for n in (128, 192, 256, 384)]
    points += [("modalities", n, {"n_observed": n}) for n in (1, 2, 3)]
    points += [("temperatures", n, {"n_temperatures": n, "kind": "temperatures"}) for n in (1, 2, 4, 8)]
    return [Case(**{"name": f"{axis}_{n}", "kind": "inference", "growth": axis, **how}) for axis, n, how in points]


def choose(cases: Sequence[Case], names: Sequence[str]) -> list[Case]:
    """Those of the cases that are named; no name = all.

    Raises:
        InputError: There is no case of a name.
    """
    known = {case.name: case for case in cases}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(explain("no such case", got=", ".join(unknown), expected="some of " + ", ".join(known)))
    return [known[name] for name in names] if names else list(cases)


def kind_of(checkout: Path) -> str:
    """Which peer a folder is a checkout of.

    Raises:
        InputError: None that is known.
    """
    for kind, file in PEER_FILES.items():
        if (checkout / file).is_file():
            return kind
    raise InputError(
        explain(
            "this is no checkout that the bench can run",
            got=str(checkout),
            expected="a folder with network/mhvae.py (ReubenDo/MHVAE), networks/mhvae_fast.py "
            "(cate-galata/TrackerlessIUS) or src/multivae (AgatheSenellart/MultiVae)",
            mend="clone one of them and give that folder",
        )
    )
