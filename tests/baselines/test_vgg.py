"""VGG19's weights: found, refused or missing, never invented; and the perceptual term on thin ones, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mhvae_kit.baselines import vgg
from mhvae_kit.baselines.vgg import PerceptualLoss, VGG19Features, find_vgg19, load_vgg19, vgg19_layers
from mhvae_kit.errors import DataError, MissingError

THIN = ((2, 2), (3, 3), (4,) * 4, (5,) * 4, (5,) * 4)


def thin_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict with the names of torchvision's vgg19, a few channels wide, with a stump of the classifier."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, (channels_in, channels_out) in vgg19_layers(THIN).items():
        state[f"{name}.weight"] = 0.3 * torch.randn(channels_out, channels_in, 3, 3, generator=generator)
        state[f"{name}.bias"] = torch.randn(channels_out, generator=generator)
    return {**state, "classifier.0.weight": torch.zeros(2, 2)}


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    """A torch cache without weights; returns the path at which they would be."""
    monkeypatch.delenv("MHVAE_VGG19", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints" / "vgg19-dcbb9e9d.pth"


def test_names_and_shapes_are_torchvisions():
    from torchvision.models import vgg19

    with torch.device("meta"):
        real = vgg19(weights=None).state_dict()
    expected = {f"{name}.weight": (b, a, 3, 3) for name, (a, b) in vgg19_layers().items()}
    assert expected == {k: tuple(v.shape) for k, v in real.items() if k.startswith("features") and "weight" in k}


def test_the_file_name_is_torchvisions():
    from torchvision.models import VGG19_Weights

    assert VGG19_Weights.IMAGENET1K_V1.url.endswith("/" + vgg.FILE)


@pytest.mark.parametrize("new_format", [True, False])
def test_features_are_those_of_the_same_layers_in_sequence(tmp_path, new_format):
    path, state = tmp_path / "vgg.pth", thin_state()
    torch.save(state, path, _use_new_zipfile_serialization=new_format)  # torchvision's file has the old format
    image = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    x, expected = image, []
    # torchvision's numbering: ReLU after each convolution, a maximum at 4, 9, 18 and 27; relu1_1 ... relu5_1 are taken.
    for place in range(30):
        if f"features.{place}.weight" in state:
            x = F.conv2d(x, state[f"features.{place}.weight"], state[f"features.{place}.bias"], padding=1)
        elif place in (4, 9, 18, 27):
            x = F.max_pool2d(x, 2)
        else:
            x = F.relu(x)
        if place in (1, 6, 11, 20, 29):
            expected.append(x)
    found = load_vgg19(path, THIN)(image)
    assert [tuple(f.shape[1:]) for f in found] == [(2, 32, 48), (3, 16, 24), (4, 8, 12), (5, 4, 6), (5, 2, 3)]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_the_network_is_frozen(tmp_path):
    torch.save(thin_state(), tmp_path / "vgg.pth")
    network = load_vgg19(tmp_path / "vgg.pth", THIN)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


class Scaled(nn.Module):
    """Five "features": the normalised image times 1 ... 5."""

    def forward(self, x):
        return [x * i for i in range(1, 6)]


def test_perceptual_loss_by_hand():
    real, synthetic = torch.full((1, 1, 2, 2), -1.0), torch.full((1, 1, 2, 2), 0.0)
    # half of [0, 1] apart, divided by each colour's standard deviation
    apart = sum(0.5 / std for std in (0.229, 0.224, 0.225)) / 3
    expected = apart * (1 / 32 + 2 / 16 + 3 / 8 + 4 / 4 + 5)
    assert PerceptualLoss(Scaled())(synthetic, real).item() == pytest.approx(expected, rel=1e-5)


def test_black_is_black_of_imagenet():
    seen = []

    class Keep(nn.Module):
        def forward(self, x):
            seen.append(x)
            return [x] * 5

    PerceptualLoss(Keep())(torch.full((1, 1, 2, 2), -1.0), torch.full((1, 1, 2, 2), 1.0))
    torch.testing.assert_close(seen[1][0, :, 0, 0], -torch.tensor([0.485 / 0.229, 0.456 / 0.224, 0.406 / 0.225]))
    torch.testing.assert_close(seen[0][0, 0, 0, 0], torch.tensor((1 - 0.485) / 0.229))


def test_the_gradient_goes_to_the_synthetic_image_alone():
    loss = PerceptualLoss(VGG19Features(thin_state(), THIN))
    real, synthetic = torch.zeros(1, 1, 16, 16, requires_grad=True), torch.ones(1, 1, 16, 16, requires_grad=True)
    loss(synthetic, real).backward()
    assert real.grad is None
    assert synthetic.grad.abs().sum() > 0
    assert loss(real, real).item() == 0


def test_found_in_the_torch_cache(no_weights):
    assert find_vgg19() is None
    no_weights.parent.mkdir(parents=True)
    torch.save(thin_state(), no_weights)
    assert find_vgg19() == no_weights
    assert isinstance(load_vgg19(stages=THIN), VGG19Features)


def test_the_variable_comes_first(no_weights, monkeypatch, tmp_path):
    torch.save(thin_state(), tmp_path / "mine.pth")
    monkeypatch.setenv("MHVAE_VGG19", str(tmp_path / "mine.pth"))
    assert find_vgg19() == tmp_path / "mine.pth"


def test_a_variable_that_names_no_file_is_refused(no_weights, monkeypatch, tmp_path):
    monkeypatch.setenv("MHVAE_VGG19", str(tmp_path / "absent.pth"))
    with pytest.raises(MissingError, match="MHVAE_VGG19 names no file; got .*absent.pth"):
        find_vgg19()


def test_missing_weights_say_how_to_fetch_them(no_weights, tmp_path):
    with pytest.raises(MissingError, match="no VGG19 weights at .*vgg19-dcbb9e9d.pth; fetch it once online"):
        load_vgg19()
    with pytest.raises(MissingError, match="no VGG19 weights at .*absent.pth"):
        load_vgg19(tmp_path / "absent.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("features.28.weight"), r"features.28.weight absent; expected \(5, 5, 3, 3\)"),
        (lambda s: s.update({"features.0.bias": torch.zeros(3)}), r"features.0.bias \(3,\); expected \(2,\)"),
        (lambda s: s["features.5.bias"].fill_(float("nan")), "NaN or infinity; got features.5.bias"),
    ],
)
def test_other_weights_are_refused(tmp_path, change, message):
    state = thin_state()
    change(state)
    torch.save(state, tmp_path / "vgg.pth")
    with pytest.raises(DataError, match=message):
        load_vgg19(tmp_path / "vgg.pth", THIN)


def test_a_whole_module_or_a_list_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(DataError, match="holds no weights of VGG19"):
        load_vgg19(tmp_path / "list.pth", THIN)
    torch.save(nn.Linear(1, 1), tmp_path / "module.pth")  # would run code when unpickled
    with pytest.raises(DataError, match="no readable weights file"):
        load_vgg19(tmp_path / "module.pth", THIN)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_truncated_file_is_refused(tmp_path, new_format):
    path = tmp_path / "vgg.pth"
    torch.save(thin_state(), path, _use_new_zipfile_serialization=new_format)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="no readable weights file"):
        load_vgg19(path, THIN)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="no readable weights file"):
        load_vgg19(path, THIN)
