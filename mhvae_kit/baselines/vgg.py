"""The perceptual term of SPADE: distances between VGG19 features, with weights from a file that is already here.

Nothing is downloaded and nothing is drawn at random: without the file there is no term, and the caller is told.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mhvae_kit.errors import DataError, MissingError, explain

VARIABLE = "MHVAE_VGG19"
FILE = "vgg19-dcbb9e9d.pth"  # as torchvision names VGG19_Weights.IMAGENET1K_V1
FETCH = "python -c \"import torchvision; torchvision.models.vgg19(weights='IMAGENET1K_V1')\""
# Width of each 3x3 convolution; a stage ends with a 2x2 maximum (Simonyan and Zisserman, ICLR 2015, table 1, E).
STAGES: tuple[tuple[int, ...], ...] = ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4)
STAGE_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
# Mean and standard deviation of red, green and blue in [0, 1] that torchvision trained with.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def find_vgg19() -> Path | None:
    """The file of VGG19's weights: named by MHVAE_VGG19, else in torch's cache; None when it is not there.

    Raises:
        MissingError: MHVAE_VGG19 names no file; a wrong path must not lead to another loss in silence.
    """
    named = os.environ.get(VARIABLE)
    path = Path(named) if named else Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if path.is_file():
        return path
    if named:
        raise MissingError(explain(f"{VARIABLE} names no file", got=named, mend="correct or unset it"))
    return None


def vgg19_layers(stages: Sequence[Sequence[int]] = STAGES) -> dict[str, tuple[int, int]]:
    """Input and output channels of each convolution by its name in torchvision, "features.0" ... "features.34".

    In torchvision's numbering a convolution, its ReLU and the maximum that ends a stage each take one place.
    """
    layers, place, before = {}, 0, 3
    for stage in stages:
        for width in stage:
            layers[f"features.{place}"] = (before, width)
            before, place = width, place + 2
        place += 1
    return layers


class VGG19Features(nn.Module):
    """VGG19 up to the first ReLU of its fifth stage, frozen, without the classifier.

    Args:
        state: Weights by torchvision's names.
        stages: Widths of the convolutions.
    """

    def __init__(self, state: dict[str, Tensor], stages: Sequence[Sequence[int]] = STAGES) -> None:
        super().__init__()
        names = iter(vgg19_layers(stages).items())
        used = [*stages[:-1], stages[-1][:1]]
        self.stages = nn.ModuleList()
        for stage in used:
            convolutions = nn.ModuleList()
            for _ in stage:
                name, (channels_in, channels_out) = next(names)
                convolutions.append(nn.utils.skip_init(nn.Conv2d, channels_in, channels_out, 3, padding=1))
                convolutions[-1].load_state_dict({k: state[f"{name}.{k}"].float() for k in ("weight", "bias")})
            self.stages.append(convolutions)
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W), normalised as ImageNet, to the map after the first ReLU of each stage, fine to coarse."""
        found, x = [], image
        for i, stage in enumerate(self.stages):
            x = F.max_pool2d(x, 2) if i else x
            for j, convolution in enumerate(stage):
                x = F.relu(convolution(x))
                if j == 0:
                    found.append(x)
        return found


class PerceptualLoss(nn.Module):
    """Mean absolute difference of VGG19 features, summed over the five stages with weights 1/32 ... 1.

    Grey is given as red, green and blue alike, moved from [-1, 1] to the mean and scale of ImageNet, as the weights
    expect it.

    Source:
        Park et al., CVPR 2019, supplement; layers and weights as in Wang et al., CVPR 2018 (pix2pixHD).
    """

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None])

    def forward(self, synthetic: Tensor, real: Tensor) -> Tensor:
        """Two (B, 1, H, W) in [-1, 1] to a scalar; the gradient goes to the synthetic image alone."""
        with torch.no_grad():
            wanted = self.features(self._normalised(real))
        found = self.features(self._normalised(synthetic))
        return sum(w * F.l1_loss(a, b) for w, a, b in zip(STAGE_WEIGHTS, found, wanted, strict=True))

    def _normalised(self, image: Tensor) -> Tensor:
        return ((image + 1) / 2 - self.mean) / self.std


def load_vgg19(path: str | Path | None = None, stages: Sequence[Sequence[int]] = STAGES) -> VGG19Features:
    """Read VGG19's weights from a torchvision state dict.

    Args:
        path: The file; None = as `find_vgg19`.
        stages: Widths of the convolutions that the file must have.
    Raises:
        MissingError: There is no such file; the message says how to fetch it.
        DataError: It is damaged, or holds weights of another network.
    """
    path = find_vgg19() if path is None else Path(path)
    if path is None or not path.is_file():
        where = path or Path(torch.hub.get_dir()) / "checkpoints" / FILE
        mend = f"fetch it once online with: {FETCH}, or name a copy in {VARIABLE}"
        raise MissingError(explain(f"no VGG19 weights at {where}", mend=mend))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise DataError(explain(f"{path} is no readable weights file ({error})", mend="fetch it again")) from error
    expected = {}
    for name, (channels_in, channels_out) in vgg19_layers(stages).items():
        expected[f"{name}.weight"] = (channels_out, channels_in, 3, 3)
        expected[f"{name}.bias"] = (channels_out,)
    given = {k: tuple(getattr(v, "shape", ())) for k, v in state.items()} if isinstance(state, dict) else {}
    odd = [name for name in expected if given.get(name) != expected[name]]
    if odd:
        raise DataError(
            explain(
                f"{path} holds no weights of VGG19",
                got=f"{len(odd)} tensors that differ, first {odd[0]} {given.get(odd[0], 'absent')}",
                expected=expected[odd[0]],
                mend="give torchvision's file",
            )
        )
    unfit = [name for name in expected if not torch.isfinite(state[name]).all()]
    if unfit:
        raise DataError(explain(f"{path} holds NaN or infinity", got=unfit[0], mend="fetch it again"))
    return VGG19Features(state, stages).eval()
