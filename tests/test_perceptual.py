"""LPIPS on fake weights in the real format: its arithmetic, its mask and range, and every file it must not accept."""

from __future__ import annotations

import inspect
import itertools
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional

from mhvae_kit import metrics
from mhvae_kit.errors import DataError, InputError, MissingError, RunError
from mhvae_kit.files import sha256
from mhvae_kit.metrics import perceptual

CONVOLUTIONS = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
CLASSIFIER = {1: (4096, 9216), 4: (4096, 4096), 6: (1000, 4096)}


def fake_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """All 16 tensors of torchvision's AlexNet; the classifier's, which nobody reads, take one number of the file."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for layer, shape in CONVOLUTIONS.items():
        scale = (2 / np.prod(shape[1:])) ** 0.5
        state[f"features.{layer}.weight"] = scale * torch.randn(shape, generator=generator)
        state[f"features.{layer}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
    for layer, shape in CLASSIFIER.items():
        state[f"classifier.{layer}.weight"] = torch.zeros(()).expand(shape)
        state[f"classifier.{layer}.bias"] = torch.zeros(()).expand(shape[0])
    return state


@pytest.fixture(scope="module")
def fake_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / perceptual.ALEXNET_FILE
    torch.save(fake_state(), path)
    return path


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache folder of torch's; whatever reaches for the network fails."""

    def refuse(*args, **options):
        raise AssertionError("reached for the network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def accept(path: Path, monkeypatch) -> None:
    """Let a fake file pass as the real one by its digest."""
    monkeypatch.setattr(perceptual, "ALEXNET_SHA256", sha256(path)[:8])


@pytest.fixture
def weights(hub, fake_file, monkeypatch) -> Path:
    """The fake file where torch keeps the real one."""
    path = hub / perceptual.ALEXNET_FILE
    path.symlink_to(fake_file)
    accept(path, monkeypatch)
    return path


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    target = np.clip(ndimage.gaussian_filter(rng.normal(0, 4, (2, 68, 72)), (0, 2, 2)), -1, 1)
    return np.clip(target + rng.normal(0, 0.1, target.shape), -1, 1), target


def disc() -> np.ndarray:
    row, column = np.mgrid[:68, :72]
    return np.hypot(row - 34, column - 36) < 30


def plain_lpips(a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    """Distance of each layer at each of its pixels, written with plain convolutions."""
    import lpips

    heads = torch.load(
        Path(inspect.getfile(lpips.LPIPS)).parent / "weights/v0.1/alex.pth", map_location="cpu", weights_only=True
    )
    state, features = fake_state(), []
    for image in (a, b):
        x = torch.from_numpy(image).float()[None, None].repeat(1, 3, 1, 1)
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        x, layers = (x - shift[:, None, None]) / scale[:, None, None], []
        for layer, (stride, padding) in zip(CONVOLUTIONS, [(4, 2), (1, 2), (1, 1), (1, 1), (1, 1)], strict=True):
            x = functional.max_pool2d(x, 3, 2) if layer in (3, 6) else x
            weight, bias = state[f"features.{layer}.weight"], state[f"features.{layer}.bias"]
            x = functional.relu(functional.conv2d(x, weight, bias, stride=stride, padding=padding))
            layers.append(x / x.square().sum(1, keepdim=True).sqrt())
        features.append(layers)
    maps = []
    for number, (one, other) in enumerate(zip(*features, strict=True)):
        maps.append(functional.conv2d((one - other).square(), heads[f"lin{number}.model.1.weight"])[0, 0].numpy())
    return maps


# --- Values ---


def test_the_full_frame_agrees_with_plain_convolutions(weights, pair):
    expected = [sum(float(m.mean()) for m in plain_lpips(a, b)) for a, b in zip(*pair, strict=True)]
    made = metrics.lpips(*pair, data_range=2)
    assert made.dtype == np.float64 and min(expected) > 1e-3
    np.testing.assert_allclose(made, expected, rtol=1e-4)


def test_inside_a_mask_the_interpolated_maps_are_averaged(weights, pair):
    mask = disc()
    a, b = (np.where(mask, x[0], -1.0) for x in pair)
    whole = np.zeros(mask.shape)
    for layer in plain_lpips(a, b):
        tensor = torch.from_numpy(layer)[None, None]
        whole += functional.interpolate(tensor, size=mask.shape, mode="bilinear", align_corners=False)[0, 0].numpy()
    made = metrics.lpips(pair[0][0], pair[1][0], data_range=2, mask=mask)
    np.testing.assert_allclose(made, whole[mask].mean(), rtol=1e-4)


def test_identical_images_have_no_distance_and_the_order_does_not_matter(weights, pair):
    assert (metrics.lpips(pair[0], pair[0], data_range=2, mask=disc()) == 0).all()
    np.testing.assert_allclose(metrics.lpips(*pair, data_range=2), metrics.lpips(*pair[::-1], data_range=2), rtol=1e-5)


def test_more_noise_means_a_larger_distance(weights, pair):
    noise = np.random.default_rng(1).normal(0, 1, pair[1].shape)
    scores = [metrics.lpips(np.clip(pair[1] + s * noise, -1, 1), pair[1], data_range=2) for s in (0, 0.05, 0.15, 0.5)]
    assert all((a < b).all() for a, b in itertools.pairwise(scores))


def test_nothing_outside_the_mask_counts(weights, pair):
    expected = metrics.lpips(*pair, data_range=2, mask=disc())
    spoilt = [np.where(disc(), x, v) for x, v in zip(pair, (0.9, -0.3), strict=True)]
    np.testing.assert_array_equal(metrics.lpips(*spoilt, data_range=2, mask=disc()), expected)


def test_the_background_dilutes_the_full_frame(weights, pair):
    framed = [np.where(disc(), x, -1.0) for x in pair]
    full, inside = metrics.lpips(*framed, data_range=2), metrics.lpips(*framed, data_range=2, mask=disc())
    assert (full < inside).all()


def test_images_in_any_declared_range_are_mapped_to_the_same(weights, pair):
    expected = metrics.lpips(*pair, data_range=2)
    shifted = [(x + 1) / 2 for x in pair]
    np.testing.assert_allclose(metrics.lpips(*shifted, data_range=1), expected, rtol=1e-4)
    np.testing.assert_allclose(metrics.lpips(*(x * 255 for x in shifted), data_range=255), expected, rtol=1e-4)


def test_batches_single_images_and_tensors_agree(weights, pair):
    expected = metrics.lpips(*pair, data_range=2)
    single = [metrics.lpips(a, b, data_range=2)[0] for a, b in zip(*pair, strict=True)]
    np.testing.assert_allclose(single, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics.lpips(*pair, data_range=2, batch_size=1), expected, rtol=1e-5)
    tensors = [torch.from_numpy(x)[:, None].requires_grad_() for x in pair]
    np.testing.assert_allclose(metrics.lpips(*tensors, data_range=2), expected, rtol=1e-5)


def test_no_weight_is_drawn_and_no_random_state_moves(weights, pair):
    state = torch.get_rng_state()
    perceptual._build.cache_clear()
    network = perceptual._network()
    assert torch.equal(torch.get_rng_state(), state)
    names = dict(network.named_parameters())
    assert not any(p.is_meta or p.requires_grad for p in names.values()) and not network.training
    assert torch.equal(names["net.slice3.6.weight"], fake_state()["features.6.weight"])
    assert float(names["lin0.model.1.weight"].min()) >= 0  # the fitted heads are not negative; random ones would be


@pytest.mark.parametrize(
    ("prediction", "target", "options", "message"),
    [
        (np.zeros((60, 72)), np.zeros((60, 72)), {}, "too small for LPIPS; got 60 x 72 px.*moveaxis"),
        (np.zeros((96, 96, 24)), np.zeros((96, 96, 24)), {}, "too small for LPIPS"),
        (np.full((68, 72), np.nan), np.zeros((68, 72)), {}, "prediction holds NaN"),
        (np.full((68, 72), 1.5), np.zeros((68, 72)), {}, "outside the declared range"),
        (np.zeros((68, 72)), np.zeros((68, 72)), {"mask": np.zeros((68, 72))}, "mask is empty"),
        (np.zeros((2, 3, 68, 72)), np.zeros((2, 3, 68, 72)), {}, "not an image"),
    ],
)
def test_unfit_images_are_refused(weights, prediction, target, options, message):
    with pytest.raises(InputError, match=message):
        metrics.lpips(prediction, target, data_range=2, **options)


# --- Files ---


def test_missing_weights_mean_no_number_and_a_reason_without_paths(hub, pair):
    available, reason = metrics.lpips_available()
    assert not available and "mhvae fetch lpips" in reason and str(hub) not in reason
    with pytest.raises(MissingError, match="AlexNet's weights are not there.*mhvae fetch lpips"):
        metrics.lpips(*pair, data_range=2)


def test_weights_that_are_there_make_it_available(weights):
    assert metrics.lpips_available() == (True, "")


def test_a_file_with_another_digest_is_refused_by_name(hub, fake_file, pair):
    (hub / perceptual.ALEXNET_FILE).symlink_to(fake_file)
    with pytest.raises(DataError, match=r"alexnet-owt-7be5be79.pth is not the file LPIPS needs.*sha256.*7be5be79"):
        metrics.lpips(*pair, data_range=2)
    available, reason = metrics.lpips_available()
    assert not available and "not the file LPIPS needs" in reason and str(hub) not in reason


def _changed(name: str, value: object) -> dict:
    state = {**fake_state(), name: value}
    return {k: v for k, v in state.items() if v is not None}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("features.3.weight", None, r"nothing under features.3.weight; expected floats of shape \(192, 64, 5, 5\)"),
        ("features.8.bias", torch.zeros(255), r"\(255,\) under features.8.bias"),
        ("features.0.weight", torch.zeros(64, 3, 11, 11, dtype=torch.int64), "under features.0.weight"),
        ("features.10.bias", torch.full((256,), torch.nan), "NaN or infinity under features.10.bias"),
    ],
)
def test_a_file_with_other_weights_is_refused(hub, monkeypatch, name, value, message):
    path = hub / perceptual.ALEXNET_FILE
    torch.save(_changed(name, value), path)
    accept(path, monkeypatch)
    with pytest.raises(DataError, match=message):
        perceptual.read_alexnet(path)


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("sprung"),))


def test_no_code_in_a_file_is_run(hub, monkeypatch, tmp_path):
    path = hub / perceptual.ALEXNET_FILE
    monkeypatch.chdir(tmp_path)
    torch.save(Trap(), path)
    accept(path, monkeypatch)
    with pytest.raises(DataError, match="cannot be read"):
        perceptual.read_alexnet(path)
    assert not Path("sprung").exists()


def test_a_truncated_file_and_a_bare_tensor_are_refused(hub, fake_file, monkeypatch):
    path = hub / perceptual.ALEXNET_FILE
    path.write_bytes(fake_file.read_bytes()[:100_000])
    accept(path, monkeypatch)
    with pytest.raises(DataError, match="cannot be read"):
        perceptual.read_alexnet(path)
    torch.save(torch.zeros(3), path)
    accept(path, monkeypatch)
    with pytest.raises(DataError, match="got Tensor; expected a dict"):
        perceptual.read_alexnet(path)


def test_a_package_without_its_heads_is_refused_instead_of_leaving_them_to_chance(weights, monkeypatch):
    read = perceptual._read
    monkeypatch.setattr(perceptual, "_read", lambda path: {} if path.name == "alex.pth" else read(path))
    perceptual._build.cache_clear()
    with pytest.raises(DataError, match=r"alex.pth is not the file LPIPS needs.*lin0.*reinstall the lpips package"):
        perceptual._network()


def test_the_older_file_format_is_read_too(hub, monkeypatch):
    path = hub / perceptual.ALEXNET_FILE
    torch.save(fake_state(), path, _use_new_zipfile_serialization=False)
    accept(path, monkeypatch)
    assert torch.equal(perceptual.read_alexnet(path)["features.0.bias"], fake_state()["features.0.bias"])


def test_a_replaced_file_is_read_again(weights, pair, monkeypatch):
    before = metrics.lpips(*pair, data_range=2)
    weights.unlink()
    torch.save(fake_state(seed=1), weights)
    accept(weights, monkeypatch)
    assert (metrics.lpips(*pair, data_range=2) != before).all()


# --- Fetching ---


@pytest.fixture
def server(hub, fake_file, monkeypatch) -> Path:
    """A local copy of the fake file stands for the server."""
    from torchvision.models import AlexNet_Weights

    monkeypatch.undo()
    monkeypatch.setenv("TORCH_HOME", str(hub.parent.parent))
    weights = AlexNet_Weights.IMAGENET1K_V1
    assert weights.url.endswith(perceptual.ALEXNET_FILE)
    opened = urllib.request.urlopen
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: opened(fake_file.as_uri(), timeout=timeout))
    return fake_file


def test_the_weights_are_fetched_once(server, hub, monkeypatch, capsys):
    accept(server, monkeypatch)
    path = metrics.fetch_lpips_weights()
    assert path == hub / perceptual.ALEXNET_FILE and path.read_bytes() == server.read_bytes()
    assert "fetching" in capsys.readouterr().err
    monkeypatch.setattr(urllib.request, "urlopen", None)
    assert metrics.fetch_lpips_weights() == path


def test_another_file_from_the_server_is_thrown_away(server, hub):
    with pytest.raises(RunError, match="the server did not send alexnet-owt-7be5be79.pth.*copy .* from another"):
        metrics.fetch_lpips_weights(show_progress=False)
    assert list(hub.iterdir()) == []


@pytest.mark.parametrize("error", [urllib.error.URLError("no route"), TimeoutError("silent")])
def test_without_a_network_the_error_says_what_to_do(hub, monkeypatch, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    with pytest.raises(RunError, match="could not be fetched.*Check the network, or copy"):
        metrics.fetch_lpips_weights(show_progress=False)
    assert list(hub.iterdir()) == []
