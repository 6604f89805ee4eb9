"""Does an imported checkpoint compute what the authors' own code computes? Asked of a checkout of their repository.

The only place where the kit runs code of theirs, in this process and because the caller named the checkout.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import itertools
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mhvae_kit.errors import DataError, MissingError, explain
from mhvae_kit.networks.authors import read_state
from mhvae_kit.networks.mhvae import MHVAE

TINY_TEMPERATURE = 1e-9  # their code refuses 0: a normal distribution of width 0
IMAGE_TOLERANCE = 1e-4
MEAN_RATIO_LIMIT, SPREAD_TOLERANCE = 2.0, 0.1
Images = dict[str, Tensor]


@dataclass(frozen=True)
class Agreement:
    """How well both agree for one observed subset and one decoded modality.

    Args:
        observed, target: The kit's names.
        largest_difference: Of any pixel of the images in [-1, 1]: the kit's, in its own precision at temperature 0,
            against theirs in float64 at `TINY_TEMPERATURE`.
        mean_ratio: At the drawn temperature, root mean square of the difference of both mean images over what the
            number of draws lets expect; about 1 when the means agree. None where nothing was drawn.
        spread_ratio: The kit's standard deviation over theirs, each the root mean square over pixels; about 1.
    """

    observed: str
    target: str
    largest_difference: float
    mean_ratio: float | None = None
    spread_ratio: float | None = None

    @property
    def holds(self) -> bool:
        """Whether every measured figure is within its limit."""
        drawn = self.mean_ratio is None or (
            self.mean_ratio <= MEAN_RATIO_LIMIT and abs(float(self.spread_ratio or 0) - 1) <= SPREAD_TOLERANCE
        )
        return self.largest_difference <= IMAGE_TOLERANCE and drawn

    def __str__(self) -> str:
        text = f"{self.observed} -> {self.target}: largest difference {self.largest_difference:.1e}"
        if self.mean_ratio is not None:
            text += f", mean off by {self.mean_ratio:.2f} x its sampling error, spread ratio {self.spread_ratio:.3f}"
        return text


def mask_by_first(images: Images, inputs: Images) -> Images:
    """ReubenDo/MMHVAE's output mask: -1 wherever the first supplied input is not above -1."""
    inside = next(iter(inputs.values())) > -1
    return {m: torch.where(inside, image, torch.full_like(image, -1.0)) for m, image in images.items()}


def verify_against(
    repo: str | Path,
    path: str | Path,
    model: MHVAE,
    *,
    temperature: float = 0.2,
    draws: int = 16,
    batch_size: int = 4,
    seed: int = 0,
) -> list[Agreement]:
    """Give the same weights and the same made images to their network and to the kit's, and compare what comes out.

    Args:
        repo: A checkout of ReubenDo/MHVAE or ReubenDo/MMHVAE: the one the checkpoint belongs to. Its code is run.
        path: The checkpoint.
        model: What `load_authors_checkpoint` made of it.
        temperature, draws: Of the comparison of mean and spread, done for each single input; at a small temperature
            the spread of the images says most about that of the latents.
        batch_size: How many draws are made at once.
        seed: Of the made images and the draws.
    Returns:
        A line per observed subset and target.
    Raises:
        MissingError: `repo` is no checkout with network/mhvae.py.
        DataError: Their code cannot be built or does not take the checkpoint.
    """
    theirs = _Theirs(repo, path, model)
    generator = torch.Generator().manual_seed(seed)
    size = model.config.image_size
    images = {m: made_image(size, generator) for m in model.config.modalities}
    subsets = [s for k in range(1, len(images) + 1) for s in itertools.combinations(images, k)]
    lines = []
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        for subset in subsets:
            given = {m: images[m] for m in subset}
            mine, other = model(given, temperature=0.0).images, theirs.exactly(given, TINY_TEMPERATURE)
            mine = mask_by_first(mine, given) if theirs.masks else mine
            far = {m: float((mine[m] - other[m]).abs().max()) for m in mine}
            drawn: dict[str, tuple[float, float]] = {}
            if draws >= 2 and len(subset) == 1:
                torch.manual_seed(seed)
                options = (temperature, draws, batch_size)
                drawn = _compare_draws(model, theirs, given, *options)
            name = "+".join(subset)
            lines += [Agreement(name, m, far[m], *drawn.get(m, (None, None))) for m in mine]
    return lines


def check_agreement(lines: Sequence[Agreement], repo: str | Path) -> None:
    """Refuse weights whose images are not those of the authors' code.

    Raises:
        DataError: Names the worst line.
    """
    wrong = [line for line in lines if not line.holds]
    if wrong:
        worst = max(wrong, key=lambda line: line.largest_difference)
        raise DataError(
            explain(
                f"the imported model does not compute what {repo} computes",
                got=str(worst),
                expected=f"at most {IMAGE_TOLERANCE:g}, the mean within {MEAN_RATIO_LIMIT:g} x its sampling error, "
                f"the spread within {SPREAD_TOLERANCE:.0%}",
                mend="check that the checkout is the one the weights were trained with, without changes to network/",
            )
        )


def made_image(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A made image (1, 1, H, W) in [-1, 1]: smooth noise, and a border of background at exactly -1."""
    coarse = torch.randn(1, 1, max(size[0] // 8, 1), max(size[1] // 8, 1), generator=generator)
    image = nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    image = (image + 0.3 * torch.randn(1, 1, *size, generator=generator)).tanh().clamp(-0.99, 1)
    rows, columns = size[0] // 8, size[1] // 8
    image[..., :rows, :] = -1
    image[..., :columns] = -1
    return image


class _Theirs:
    """Their network with the checkpoint's weights; takes and gives images by the kit's names."""

    def __init__(self, repo: str | Path, path: str | Path, model: MHVAE) -> None:
        repo = Path(repo).expanduser().resolve()
        state = read_state(path)
        names = list(dict.fromkeys(k.split(".")[1] for k in state if k.startswith("first_conv.")))
        self._theirs = dict(zip(model.config.modalities, names, strict=True))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # their weight norm is an old spelling, of which torch warns
            with _module(repo, "network.mhvae") as module:
                try:
                    network = _build(module.MHVAE2D, names, model)
                    network.load_state_dict(state)
                except (RuntimeError, TypeError, AttributeError) as error:
                    reason = str(error).strip().splitlines()[0][:160]
                    mend = "take the checkout the weights were trained with: ReubenDo/MHVAE or ReubenDo/MMHVAE"
                    raise DataError(
                        explain(f"the code in {repo} does not take {path} ({reason})", mend=mend)
                    ) from error
        self._network = network.eval()
        # Only the later repository masks its output, and it is the one whose forward can return a dict.
        self.masks = "return_cat" in inspect.signature(network.forward).parameters

    def __call__(self, images: Images, temperature: float) -> Images:
        given = {self._theirs[m]: image.clone() for m, image in images.items()}  # they overwrite what they are given
        made = self._network(given, temperature)[0]
        if isinstance(made, dict):
            return {m: made[name] for m, name in self._theirs.items()}
        parts = made.split(1, dim=1) if isinstance(made, Tensor) else made
        return dict(zip(self._theirs, parts, strict=True))

    def exactly(self, images: Images, temperature: float) -> Images:
        """The same in float64: what their code computes, without its own rounding, which can reach 1e-4."""
        self._network.double()
        try:
            return self({m: image.double() for m, image in images.items()}, temperature)
        finally:
            self._network.float()


def _build(network: Any, names: list[str], model: MHVAE) -> nn.Module:
    """Their constructor with the settings of the checkpoint; the two repositories name them differently."""
    config = model.config
    settings = {
        "num_img": len(names),
        "original_shape": config.image_size,
        "max_features": config.max_channels,
        "with_residual": True,
        "with_se": True,
        "nb_finalblocks": config.decoder_blocks,
        "nfeat_finalblock": config.head_channels or config.map_channels("z1"),
    }
    takes = inspect.signature(network).parameters
    kept = {k: v for k, v in settings.items() if k in takes}
    return network(modalities=names, base_num_features=config.base_channels, num_pool=config.levels - 1, **kept)


@contextlib.contextmanager
def _module(repo: Path, name: str) -> Iterator[Any]:
    """Import a module of a checkout, and leave neither its path nor its modules behind."""
    if not repo.joinpath(*name.split(".")).with_suffix(".py").is_file():
        wanted = "a checkout of ReubenDo/MHVAE or ReubenDo/MMHVAE"
        raise MissingError(explain(f"{repo} has no {name.replace('.', '/')}.py", expected=wanted))
    top = name.split(".")[0]
    aside = {k: sys.modules.pop(k) for k in list(sys.modules) if k == top or k.startswith(f"{top}.")}
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(repo))
    try:
        importlib.invalidate_caches()
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(repo))
        sys.dont_write_bytecode = written
        for k in [k for k in sys.modules if k == top or k.startswith(f"{top}.")]:
            del sys.modules[k]
        sys.modules.update(aside)


def _compare_draws(
    model: MHVAE, theirs: _Theirs, images: Images, temperature: float, draws: int, batch_size: int
) -> dict[str, tuple[float, float]]:
    """By target: how far the mean images are apart in units of the sampling error, and the ratio of the spreads."""
    found = {}
    sides: list[dict[str, list[Tensor]]] = []
    for call in (lambda x: model(x, temperature=temperature).images, lambda x: theirs(x, temperature)):
        made: dict[str, list[Tensor]] = {}
        for start in range(0, draws, batch_size):
            n = min(batch_size, draws - start)
            given = {m: image.expand(n, -1, -1, -1).clone() for m, image in images.items()}
            result = call(given)
            result = mask_by_first(result, given) if theirs.masks else result
            for m, image in result.items():
                made.setdefault(m, []).append(image)
        sides.append(made)
    for m in sides[0]:
        mine, other = (torch.cat(side[m]).double() for side in sides)
        expected = ((mine.var(0) + other.var(0)) / draws).mean().sqrt()
        apart = (mine.mean(0) - other.mean(0)).square().mean().sqrt()
        spread = mine.var(0).mean().sqrt() / other.var(0).mean().sqrt()
        found[m] = (float(apart / expected), float(spread))
    return found
