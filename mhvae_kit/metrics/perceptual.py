"""LPIPS with AlexNet, from the `lpips` package, without its downloads and without its silent fallbacks.

The package carries only its five linear heads; AlexNet's weights are a file of torchvision's, in torch's cache folder.
Here the network is built without values, both files are read and checked, and nothing is ever drawn at random. Where
the file is missing there is no number: `lpips_available` says why.
"""

from __future__ import annotations

import hashlib
import http.client
import inspect
import pickle
import urllib.request
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mhvae_kit.errors import DataError, InputError, KitError, MissingError, RunError, explain
from mhvae_kit.files import atomic_path, sha256
from mhvae_kit.metrics.arrays import ArrayLike, as_masks, paired_images
from mhvae_kit.progress import progress

ALEXNET_FILE = "alexnet-owt-7be5be79.pth"
# torchvision puts the first digits of a file's sha256 into its name.
ALEXNET_SHA256 = "7be5be79"
# Calibrated on 64 x 64 patches (richzhang/PerceptualSimilarity#12); much smaller ones do not pass AlexNet's pooling.
MIN_SIDE_PX = 64

_FETCH = "fetch it once where there is a network: mhvae fetch lpips"
# Layer of torchvision's AlexNet.features -> shape of its weight; a bias has the first of these lengths.
_CONVOLUTIONS = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
_BLOCK_BYTES = 1 << 20


def alexnet_path() -> Path:
    """Where torch keeps AlexNet's weights; the variable TORCH_HOME moves it."""
    return Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET_FILE


def lpips_available() -> tuple[bool, str]:
    """Whether LPIPS can be computed here, and if not, why, in one sentence without this machine's paths.

    Nothing is downloaded. The first call reads and checks the weights (244 MB).
    """
    if not alexnet_path().is_file():
        return False, f"{ALEXNET_FILE} is not in torch's cache folder (TORCH_HOME); {_FETCH}"
    try:
        _network()
    except KitError as error:
        return False, str(error).replace(str(alexnet_path()), ALEXNET_FILE)
    return True, ""


def fetch_lpips_weights(*, timeout_s: float = 30.0, show_progress: bool = True) -> Path:
    """Download AlexNet's weights into torch's cache folder, unless the right file is there already.

    Args:
        timeout_s: How long a silent connection is waited for.
        show_progress: Whether to show how far it has come (244 MB).
    Returns:
        The path of the file.
    Raises:
        RunError: No network, or the server answered with another file; nothing is left behind.
    """
    from torchvision.models import AlexNet_Weights

    path, url = alexnet_path(), AlexNet_Weights.IMAGENET1K_V1.url
    if path.is_file() and sha256(path).startswith(ALEXNET_SHA256):
        return path
    by_hand = f"or copy {ALEXNET_FILE} from another machine to {path}"
    try:
        with atomic_path(path) as temporary:
            digest = _download(url, temporary, timeout_s, show_progress)
            if not digest.startswith(ALEXNET_SHA256):
                raise RunError(
                    explain(
                        f"the server did not send {ALEXNET_FILE}",
                        got=f"sha256 {digest[:8]}",
                        expected=ALEXNET_SHA256,
                        mend=f"Try again, {by_hand}",
                    )
                )
    except (OSError, http.client.HTTPException) as error:
        mend = f"Check the network, {by_hand}"
        raise RunError(explain(f"{ALEXNET_FILE} could not be fetched", got=error, mend=mend)) from error
    return path


def _download(url: str, path: Path, timeout_s: float, show_progress: bool) -> str:
    """Write what `url` holds to `path`; its sha256."""
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=timeout_s) as answer, open(path, "wb") as file:
        total = int(answer.headers.get("Content-Length") or 0) // 1_000_000 or None
        with progress(total=total, desc=f"fetching {ALEXNET_FILE}", unit="MB", disable=not show_progress) as bar:
            done = 0
            while block := answer.read(_BLOCK_BYTES):
                file.write(block)
                digest.update(block)
                done += len(block)
                bar.update(done // 1_000_000 - (done - len(block)) // 1_000_000)
    return digest.hexdigest()


def read_alexnet(path: Path) -> dict[str, Tensor]:
    """The convolutions of torchvision's AlexNet, "features.N.weight" and ".bias", float32.

    Raises:
        MissingError: There is no such file.
        DataError: Another file: wrong digest, unreadable, or weights that are missing or have other shapes.
    """
    if not path.is_file():
        raise MissingError(explain("AlexNet's weights are not there", got=path, mend=_FETCH))
    digest = sha256(path)
    if not digest.startswith(ALEXNET_SHA256):
        raise _wrong(path, f"sha256 {digest[:8]}", f"a digest that begins with {ALEXNET_SHA256}")
    state = _read(path)
    convolutions = {}
    for layer, shape in _CONVOLUTIONS.items():
        for name, wanted in ((f"features.{layer}.weight", shape), (f"features.{layer}.bias", shape[:1])):
            value = state.get(name)
            if not isinstance(value, Tensor) or tuple(value.shape) != wanted or not value.is_floating_point():
                found = tuple(value.shape) if isinstance(value, Tensor) else "nothing"
                raise _wrong(path, f"{found} under {name}", f"floats of shape {wanted}")
            if not torch.isfinite(value).all():
                raise _wrong(path, f"NaN or infinity under {name}", "finite weights")
            convolutions[name] = value.float().contiguous()
    return convolutions


def _read(path: Path) -> dict:
    """A file of tensors, without running any code in it."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise _wrong(path, f"a file that cannot be read ({str(error).splitlines()[0]})", "weights") from error
    if not isinstance(state, dict):
        raise _wrong(path, type(state).__name__, "a dict of tensors")
    return state


def _wrong(path: Path, got: str, expected: str) -> DataError:
    mend = f"delete it and {_FETCH}" if path.name == ALEXNET_FILE else "reinstall the lpips package"
    return DataError(explain(f"{path} is not the file LPIPS needs", got=got, expected=expected, mend=mend))


def _network() -> nn.Module:
    """The LPIPS network, read once for each state of the file."""
    path = alexnet_path()
    stamp = path.stat().st_mtime_ns if path.is_file() else 0
    return _build(path, stamp)


@lru_cache(maxsize=1)
def _build(path: Path, stamp: int) -> nn.Module:
    """LPIPS v0.1 with every weight taken from a checked file; `stamp` makes a changed file be read again."""
    convolutions = read_alexnet(path)
    import lpips

    with warnings.catch_warnings(), torch.device("meta"):
        # lpips 0.1.4 asks torchvision for AlexNet in a way that is deprecated there.
        warnings.filterwarnings("ignore", message="The parameter 'pretrained' is deprecated", category=UserWarning)
        warnings.filterwarnings("ignore", message="Arguments other than a weight enum", category=UserWarning)
        network = lpips.LPIPS(net="alex", version="0.1", pretrained=False, pnet_rand=True, verbose=False)
    heads_file = Path(inspect.getfile(lpips.LPIPS)).parent / "weights" / "v0.1" / "alex.pth"
    heads = _read(heads_file)
    state = {name: value for name, value in network.state_dict().items() if name.startswith("scaling_layer.")}
    for slice_number, layer in enumerate(_CONVOLUTIONS, start=1):
        for kind in ("weight", "bias"):
            state[f"net.slice{slice_number}.{layer}.{kind}"] = convolutions[f"features.{layer}.{kind}"]
    # The network holds each head under two names, its file under one: without the plural.
    names = {name: name.replace("s.", "", 1) for name in network.state_dict() if name.startswith("lin")}
    state |= {name: heads[own] for name, own in names.items() if own in heads}
    try:
        network.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise _wrong(heads_file, str(error).splitlines()[-1].strip(), "the heads of LPIPS v0.1, AlexNet") from error
    return network.eval().requires_grad_(False)


def lpips(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    data_range: float,
    mask: ArrayLike | None = None,
    low: float | None = None,
    batch_size: int = 16,
) -> np.ndarray:
    """Learned perceptual distance (LPIPS v0.1, AlexNet) of each image; 0 for identical images, lower is nearer.

    Grey images are repeated to three channels, as the package's author advises; the heads were fitted to photographs,
    so the values rank methods but have no calibrated meaning for ultrasound. Computed in float32 on the CPU.

    Args:
        prediction: (H, W), (N, H, W) or (N, 1, H, W), NumPy or torch; sides of at least 64 px.
        target: As many images of the same size.
        data_range: Length of the interval in which the values lie; they are mapped to [-1, 1] from there.
        mask: Pixels to score. Both images are set to the lower end of the interval outside it, the distance of each
            layer is interpolated to the size of the image, as the package does for maps, and their sum is averaged over
            the mask. None averages over the full frame, background included: the package's plain number.
        low: Lower end of the interval; None means -1 for a data range of 2 and 0 otherwise.
        batch_size: Images per pass; changes no value but by rounding.
    Returns:
        Float array (N,); a single image gives (1,).
    Raises:
        MissingError, DataError: AlexNet's weights are missing or wrong; see `lpips_available`.
        InputError: See `paired_images` and `as_masks`; also images that are too small.
    Source:
        R. Zhang et al., The unreasonable effectiveness of deep features as a perceptual metric, CVPR 2018.
    """
    first, second = paired_images(prediction, target, data_range=data_range, low=low)
    if min(first.shape[1:]) < MIN_SIDE_PX:
        raise InputError(
            explain(
                "the images are too small for LPIPS",
                got=f"{first.shape[1]} x {first.shape[2]} px",
                expected=f"sides of at least {MIN_SIDE_PX} px",
                mend="Leave LPIPS out, or bring the slices of a volume to the front: numpy.moveaxis(volume, 2, 0)",
            )
        )
    masks = None if mask is None else as_masks(mask, first.shape)
    lower = float(low) if low is not None else (-1.0 if data_range == 2 else 0.0)
    network, scores = _network(), []
    for start in range(0, len(first), batch_size):
        part = slice(start, start + batch_size)
        inside = None if masks is None else masks[part]
        pair = [_network_input(x[part], inside, lower, float(data_range)) for x in (first, second)]
        scores.append(_scores(network, *pair, inside))
    return np.concatenate(scores)


def _network_input(images: np.ndarray, mask: np.ndarray | None, low: float, data_range: float) -> Tensor:
    """(N, H, W) as (N, 3, H, W) float32 in [-1, 1], with the background put outside the mask."""
    framed = images if mask is None else np.where(mask, images, low)
    scaled = (framed - low) / data_range * 2.0 - 1.0
    return torch.from_numpy(scaled.astype(np.float32))[:, None].repeat(1, 3, 1, 1)


def _scores(network: nn.Module, first: Tensor, second: Tensor, mask: np.ndarray | None) -> np.ndarray:
    """One value an image: the package's spatial mean, or the mean of its map over the mask."""
    network.spatial = mask is not None
    with torch.inference_mode():
        value = network(first, second)[:, 0].double().numpy()
    if mask is None:
        return value[:, 0, 0]
    return np.where(mask, value, 0.0).sum(axis=(1, 2)) / mask.sum(axis=(1, 2))
