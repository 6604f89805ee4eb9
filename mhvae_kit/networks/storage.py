"""From a config to the model it describes, and saving and loading models: safetensors and JSON, never pickle."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mhvae_kit.config import Architecture, MHVAEConfig, from_dict
from mhvae_kit.errors import DataError, InputError, MissingError, explain
from mhvae_kit.networks.backbone import MultimodalVAE
from mhvae_kit.networks.folders import load_exactly, read_network, write_network
from mhvae_kit.networks.mhvae import MHVAE
from mhvae_kit.networks.mvae import MVAE

ARCHITECTURES: dict[Architecture, type[MultimodalVAE]] = {cls.architecture: cls for cls in (MHVAE, MVAE)}
CONFIG_FILE = "model.json"
FORMAT_VERSION = 1
SHIPPED_FOLDER = Path(__file__).resolve().parent.parent / "weights"


def make_model(config: MHVAEConfig) -> MultimodalVAE:
    """An untrained model of the config's architecture; its initial weights come from torch's global generator."""
    return ARCHITECTURES[config.architecture](config)


def save_model(
    model: MultimodalVAE,
    folder: str | Path,
    card: Mapping[str, Any] | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a model's weights and config into a folder, which appears whole or not at all.

    Args:
        model: The model; gives the config, its architecture among it, and the weights unless `weights` is given.
        folder: Is replaced when it already holds a model.
        card: JSON types: data, command, seed, steps, scores, training_cases ... Kept as `model.card`.
        weights: A state dict to store in place of the model's own, for example averaged weights.
    Returns:
        The folder.
    Raises:
        InputError: The folder holds something else than a model.
    """
    content = {
        "format": FORMAT_VERSION,
        "config": dataclasses.asdict(model.config),
        "card": dict(model.card if card is None else card),
    }
    return write_network(folder, CONFIG_FILE, content, weights or model.state_dict(), "a model")


def load_model(folder: str | Path) -> MultimodalVAE:
    """Read a model that `save_model` wrote, an MHVAE or MVAE; it comes back in evaluation mode, with its card.

    Raises:
        MissingError: No model in the folder.
        InputError: The config has an unknown setting or architecture.
        DataError: A file is damaged, of another format version, or the weights do not fit the config.
    """
    content, state = read_network(folder, CONFIG_FILE, FORMAT_VERSION, ("config",), "a model")
    model = make_model(from_dict(MHVAEConfig, content["config"]))
    _check_architecture(model, state, folder)
    load_exactly(model, state, folder)
    model.card = content.get("card", {})
    return model.eval()


def _check_architecture(model: MultimodalVAE, state: Mapping[str, Tensor], folder: str | Path) -> None:
    """Refuse weights that have another architecture's own modules, by that architecture's name."""
    modules = {name.split(".")[0] for name in state}
    for name, other in ARCHITECTURES.items():
        if name != model.architecture and modules.intersection(other.own_modules):
            raise DataError(
                explain(
                    f"the weights in {folder} are those of another architecture",
                    got=name,
                    expected=f"{model.architecture}, as {CONFIG_FILE} says",
                    mend="save or copy the model again",
                )
            )


def shipped_models() -> list[str]:
    """Names of the models inside the package."""
    return sorted(path.parent.name for path in SHIPPED_FOLDER.glob(f"*/{CONFIG_FILE}"))


def load_shipped(name: str = "demo") -> MultimodalVAE:
    """Load a model that comes with the package: "demo" (without GAN) or "demo-gan". Trained on the phantom.

    Raises:
        InputError: There is no such model.
    """
    if name not in shipped_models():
        raise InputError(explain("no shipped model of that name", got=repr(name), expected=", ".join(shipped_models())))
    return load_model(SHIPPED_FOLDER / name)


def find_model(name: str | Path) -> MultimodalVAE:
    """Load a model by folder (its own, or a run folder with a `model/` in it) or by the name of a shipped one.

    Raises:
        MissingError: There is neither such a folder nor such a shipped model.
    """
    folder = Path(name).expanduser()
    for candidate in (folder, folder / "model"):
        if (candidate / CONFIG_FILE).is_file():
            return load_model(candidate)
    if str(name) in shipped_models():
        return load_shipped(str(name))
    shipped = " or ".join(shipped_models()) or "none"
    raise MissingError(
        explain(f"no model at {name}", expected=f"a model folder, a run folder, or a shipped model ({shipped})")
    )
