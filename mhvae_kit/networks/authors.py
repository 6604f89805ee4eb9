"""The authors' weights: state dicts of ReubenDo/MHVAE and ReubenDo/MMHVAE as models of the kit.

A pure renaming. What their code computes with a state dict, the kit's MHVAE computes with `fusion="scale"`; width,
depth, image heads and size are read off the tensors' shapes. What no tensor shows is taken as both repositories set it:
residual connections and squeeze-excitation on, tanh at the end of each image head (docs/decisions/0008).
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mhvae_kit.config import MHVAEConfig, Modality
from mhvae_kit.errors import DataError, InputError, MissingError, explain
from mhvae_kit.files import sha256
from mhvae_kit.networks.mhvae import MHVAE

State = dict[str, Tensor]
SPACING_MM = 0.5
"""Pixel size of the data both repositories train on."""

# Both spellings of a weight norm, as the kit has it.
_WEIGHT_NORM = {
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}
# Their name -> the kit's. M is a modality, I an image head, K an index from fine to coarse, Z one from coarse to fine.
_RULES = (
    ("first_conv.M", "encoder.M.first"),
    ("conv_blocks_context.M.K.conv_0", "encoder.M.cells.K.conv1"),
    ("conv_blocks_context.M.K.conv_1", "encoder.M.cells.K.conv2"),
    ("conv_blocks_context.M.K.se.se.0", "encoder.M.cells.K.gate.squeeze"),
    ("conv_blocks_context.M.K.se.se.2", "encoder.M.cells.K.gate.excite"),
    ("td.M.K", "encoder.M.down.K"),
    ("bottleneck_down.linear", "bottleneck_expert"),
    ("bottleneck_up.linear", "bottleneck_up"),
    ("tu.Z.conv_1", "up.Z.conv"),
    ("conv_blocks_localization.Z.conv_0", "top_down.Z.expand"),
    ("conv_blocks_localization.Z.dw_conv_1", "top_down.Z.depthwise"),
    ("conv_blocks_localization.Z.se_2.se.0", "top_down.Z.gate.squeeze"),
    ("conv_blocks_localization.Z.se_2.se.2", "top_down.Z.gate.excite"),
    ("conv_blocks_localization.Z.conv_2", "top_down.Z.project"),
    ("qz.Z.conv_0", "expert_head.Z.conv1"),
    ("qz.Z.conv_1", "expert_head.Z.conv2"),
    ("qz.Z.se.se.0", "expert_head.Z.gate.squeeze"),
    ("qz.Z.se.se.2", "expert_head.Z.gate.excite"),
    ("qz.Z.last_conv", "expert_head.Z.project"),
    ("pz.Z", "prior_head.Z"),
    ("final_blocks.I.res.J.conv_block.1", "image_head.I.blocks.J.conv1"),
    ("final_blocks.I.res.J.conv_block.5", "image_head.I.blocks.J.conv2"),
    ("final_blocks.I.res.0", "image_head.I.widen"),
    ("final_blocks.I.convt2", "image_head.I.conv"),
    ("final_blocks.I.convt3", "image_head.I.to_image"),
)


def _pattern(theirs: str) -> re.Pattern[str]:
    parts = {"M": r"(?P<M>[^.]+)", "I": r"(?P<I>[^.]+)", "K": r"(?P<K>\d+)", "Z": r"(?P<Z>\d+)", "J": r"(?P<J>\d+)"}
    body = r"\.".join(parts.get(part, re.escape(part)) for part in theirs.split("."))
    leaf = r"weight|bias|weight_g|weight_v|parametrizations\.weight\.original[01]"
    return re.compile(rf"{body}\.(?P<leaf>{leaf})")


_PATTERNS = tuple((_pattern(theirs), ours) for theirs, ours in _RULES)


def load_authors_checkpoint(
    path: str | Path,
    modalities: Iterable[Modality] | Mapping[str, Modality] | None = None,
    *,
    image_size: tuple[int, int] | None = None,
) -> MHVAE:
    """Read a state dict that the authors' training wrote, for example CP_main_1000.pth.

    Only tensors are read (`weights_only=True`): a file that holds code is refused, and nothing in it is run.

    Args:
        path: The file.
        modalities: The model's modalities. Names are matched with those in the file whatever their case ("us" takes
            "US"); a mapping {theirs: ours} renames. None takes those of the file in lower case. Where the file numbers
            its image heads (ReubenDo/MHVAE), the order must be that of the authors' training.
        image_size: Height and width in pixels; needed only where the bottleneck is not square, which the shapes
            do not show.
    Returns:
        The model in evaluation mode, `fusion="scale"`; its card says where the weights come from, and that they expect
        `protocol="authors"` at 0.5 mm.
    Raises:
        MissingError: There is no such file.
        DataError: The file is truncated, holds something else than tensors, or weights of something else.
        InputError: Names or image size do not fit the file.
    Source:
        ReubenDo/MHVAE:network/mhvae.py and ReubenDo/MMHVAE:network/mhvae.py.
    """
    path = Path(path).expanduser()
    state = read_state(path)
    _check_kind(path, state)
    names = _names(path, state, modalities)
    size = _image_size(path, state, image_size)
    config = _config(path, state, tuple(names.values()), size)
    weights = _renamed(path, state, names, config)
    model = MHVAE(config)
    _check_fit(path, model.state_dict(), weights)
    model.load_state_dict({k: v.to(torch.float32) for k, v in weights.items()})
    model.card = {
        "data": "unknown: weights trained elsewhere",
        "origin": "state dict of ReubenDo/MHVAE or ReubenDo/MMHVAE",
        "file": path.name,
        "sha256": sha256(path),
        "protocol": "authors",
        "spacing_mm": SPACING_MM,
    }
    return model.eval()


def read_state(path: str | Path) -> State:
    """Read a file of tensors by name with torch, without running any code in it.

    Raises:
        MissingError: There is no such file.
        DataError: It is damaged, or holds anything but finite floating-point tensors by name.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise MissingError(explain(f"{path} is not there", expected="the .pth file of a checkpoint"))
    wanted = "a state dict: tensors by name, as torch.save(model.state_dict()) writes it"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own text names the first thing in the file that is no tensor, and then how to run it all the same.
        unsafe = re.search(r"(?:GLOBAL|global|class) (\S+)", str(error))
        found = f"{unsafe[1]} in it" if unsafe else "no list of tensors"
        mend = "none of its code was run; ask its makers for a file with tensors alone"
        problem = f"{path} holds something else than tensors, or is damaged"
        raise DataError(explain(problem, got=found, expected=wanted, mend=mend)) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        reason = str(error).strip().splitlines() or ["it ends early"]
        mend = "copy or download it again and compare the sizes"
        raise DataError(explain(f"{path} is damaged or no torch file ({reason[0][:120]})", mend=mend)) from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()) or not state:
        inside = ", ".join(map(str, list(state)[:4])) if isinstance(state, Mapping) else type(state).__name__
        mend = "save the state dict of the network alone, without optimiser or settings around it"
        raise DataError(explain(f"{path} is not a state dict", got=inside or "nothing", expected=wanted, mend=mend))
    for name, value in state.items():
        if not value.is_floating_point() or not torch.isfinite(value).all():
            got = str(value.dtype) if not value.is_floating_point() else "NaN or infinity"
            mend = "take a checkpoint of a training that did not diverge"
            raise DataError(explain(f"{name} in {path} is no weight", got=got, expected="finite floats", mend=mend))
    return dict(state)


def _check_kind(path: Path, state: State) -> None:
    """Refuse weights of something else, by what they are."""
    tops = {name.split(".")[0] for name in state}
    mend = "give the file of the main network, CP_main_<epoch>.pth"
    known = {
        "critic of one modality (their discriminator)": "model" in tops and "first_conv" not in tops,
        "model of this kit": bool(tops & {"encoder", "bottleneck_expert"}),
        "network wrapped for several GPUs (names begin with 'module.')": tops == {"module"},
        "compiled network (names begin with '_orig_mod.')": tops == {"_orig_mod"},
        "MVAE, their model without a hierarchy": "first_conv" in tops and "pz" not in tops,
    }
    mends = {
        "model of this kit": "read it with mhvae_kit.load_model",
        "network wrapped for several GPUs (names begin with 'module.')": "save the state dict of network.module",
        "compiled network (names begin with '_orig_mod.')": "save the state dict of the network before compiling",
    }
    for kind, found in known.items():
        if found:
            wanted = "an MHVAE of ReubenDo/MHVAE or ReubenDo/MMHVAE"
            raise DataError(
                explain(
                    f"{path} has another architecture", got=f"a {kind}", expected=wanted, mend=mends.get(kind, mend)
                )
            )
    missing = sorted({theirs.split(".")[0] for theirs, _ in _RULES} - tops)
    odd = sorted(name for name in state if not any(p.fullmatch(name) for p, _ in _PATTERNS))
    if missing or odd:
        got = f"no {', '.join(missing)}" if missing else f"{len(odd)} unknown tensors, first {odd[0]}"
        wanted = "the tensors of an MHVAE of ReubenDo/MHVAE or ReubenDo/MMHVAE"
        raise DataError(explain(f"{path} has another architecture", got=got, expected=wanted, mend=mend))


def _names(
    path: Path, state: State, modalities: Iterable[Modality] | Mapping[str, Modality] | None
) -> dict[str, Modality]:
    """Their name of each modality -> the kit's, in the order of the file."""
    theirs = list(dict.fromkeys(name.split(".")[1] for name in state if name.startswith("first_conv.")))
    heads = list(dict.fromkeys(name.split(".")[1] for name in state if name.startswith("final_blocks.")))
    numbered = sorted(heads) == sorted(str(i) for i in range(len(heads))) and set(heads) != set(theirs)
    if len(heads) != len(theirs) or not (numbered or set(heads) == set(theirs)):
        raise DataError(
            explain(
                f"{path} has image heads that fit no modality",
                got=f"heads {', '.join(heads)} for {', '.join(theirs)}",
                expected="one image head a modality",
                mend="give a checkpoint that was trained to make each of its modalities",
            )
        )
    if isinstance(modalities, Mapping):
        given = {str(k): str(v) for k, v in modalities.items()}
    else:
        wanted = [t.lower() for t in theirs] if modalities is None else [str(m) for m in modalities]
        lower = {t.lower(): t for t in theirs}
        given = {lower.get(m.lower(), m): m for m in wanted}
    if set(given) != set(theirs) or (numbered and list(given) != theirs):
        raise InputError(
            explain(
                f"the modalities are not those of {path}",
                got=", ".join(given) or "none",
                expected=", ".join(theirs) + (", in this order" if numbered else ""),
                mend="name them so, or give a mapping from their names to yours",
            )
        )
    return {t: given[t] for t in theirs}


def _image_size(path: Path, state: State, given: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width from the bottleneck's area, which must be that of a square unless the size is given."""
    levels, channels = _depth(state)
    flat = next(v for k, v in state.items() if re.fullmatch(r"bottleneck_down\.linear\..*(weight_v|original1)", k))
    area, step = flat.shape[-1] // channels, 2 ** (levels - 1)
    side = math.isqrt(area)
    size = (side * step, side * step) if given is None else (int(given[0]), int(given[1]))
    if (size[0] // step) * (size[1] // step) != area or size[0] % step or size[1] % step:
        raise InputError(
            explain(
                f"the image size of {path} is not that",
                got="no size, and its bottleneck is not square" if given is None else f"{size[0]} x {size[1]}",
                expected=f"height x width = {area * step * step} pixels, both multiples of {step}",
                mend="give image_size=(height, width) of the training",
            )
        )
    return size


def _depth(state: State) -> tuple[int, int]:
    """Number of levels and channels of the coarsest."""
    found = {
        int(m[1]): v for k, v in state.items() if (m := re.match(r"conv_blocks_context\.[^.]+\.(\d+)\.conv_0\.w", k))
    }
    return max(found) + 1, found[max(found)].shape[0]


def _config(path: Path, state: State, modalities: tuple[str, ...], image_size: tuple[int, int]) -> MHVAEConfig:
    levels, channels = _depth(state)
    base = next(v for k, v in state.items() if k.startswith("first_conv.")).shape[0]
    head = next(k for k in state if k.startswith("final_blocks.")).split(".")[1]
    blocks = sum(k.startswith(f"final_blocks.{head}.res.") and k.endswith(".conv_block.1.weight") for k in state)
    wide, narrow = state["conv_blocks_localization.0.conv_0.weight"].shape[:2]
    width = state[f"final_blocks.{head}.convt2.weight"].shape[0]
    settings: dict[str, Any] = {"levels": levels, "base_channels": base, "max_channels": channels}
    settings |= {"decoder_blocks": blocks, "expansion": wide // narrow, "fusion": "scale"}
    settings["head_channels"] = None if width == base // 2 else width
    try:
        return MHVAEConfig(modalities=modalities, image_size=image_size, **settings)
    except InputError as error:
        raise DataError(f"{path} describes no model of the kit: {error}") from error


def _renamed(path: Path, state: State, names: dict[str, Modality], config: MHVAEConfig) -> State:
    """The same tensors under the kit's names."""
    heads = {**names, **{str(i): m for i, m in enumerate(names.values()) if str(i) not in names}}
    first = 1 if config.head_channels is not None else 0
    renamed: State = {}
    for name, value in state.items():
        for pattern, ours in _PATTERNS:
            found = pattern.fullmatch(name)
            if not found:
                continue
            parts = found.groupdict()
            fill = {"M": names.get(parts.get("M", "")), "I": heads.get(parts.get("I", "")), "K": parts.get("K")}
            fill["Z"] = f"z{config.levels - 1 - int(parts['Z'])}" if "Z" in parts else None
            fill["J"] = str(int(parts["J"]) - first) if "J" in parts else None
            leaf = _WEIGHT_NORM.get(parts["leaf"], parts["leaf"])
            target = ".".join(str(fill.get(part, part)) for part in ours.split(".")) + f".{leaf}"
            if target in renamed:
                raise DataError(explain(f"{path} has a tensor in two spellings", got=name, expected="one of them"))
            renamed[target] = value
            break
    return renamed


def _check_fit(path: Path, expected: Mapping[str, Tensor], given: State) -> None:
    """Every tensor must be there, with its shape, and no other."""
    wanted = {k: tuple(v.shape) for k, v in expected.items()}
    found = {k: tuple(v.shape) for k, v in given.items()}
    odd = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
    if odd:
        raise DataError(
            explain(
                f"{path} has another architecture",
                got=f"{len(odd)} tensors that do not fit, first {odd[0]} {found.get(odd[0], 'absent')}",
                expected=f"{wanted.get(odd[0], 'absent')}, as its other tensors say",
                mend="give a whole CP_main_<epoch>.pth of ReubenDo/MHVAE or ReubenDo/MMHVAE",
            )
        )
