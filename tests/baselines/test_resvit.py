"""ResViT: published sizes, one shared transformer, missing inputs, repeatable training, ImageNet weights, refusals."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mhvae_kit.baselines.registry import saved_settings
from mhvae_kit.baselines.resvit import ResViT, ResViTConfig, ResViTNetwork, parameters_as_released
from mhvae_kit.baselines.resvit_vit import POSITIONS, TokenEmbedding, VisionTransformer, load_imagenet_weights
from mhvae_kit.baselines.storage import load_method, save_method
from mhvae_kit.errors import DataError, InputError, MissingError

TINY = ResViTConfig(
    image_size=(32, 32), width=2, critic_width=2, vit_width=8, vit_layers=2, vit_heads=2, norm="instance"
)
SUBSETS = [("t2",), ("us",), ("us", "t2")]


def tiny_method(config: ResViTConfig = TINY, seed: int = 0) -> ResViT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResViT(config)


def tiny_images(n: int = 3, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    t2 = F.interpolate(torch.rand(n, 1, 4, 4, generator=generator) * 2 - 1, (32, 32), mode="bilinear")
    return {"us": -t2, "t2": t2}


def train(method: ResViT, steps: int, seed: int = 3, n: int = 3, progress: float = 0.5) -> list[dict[str, float]]:
    images, optimizers = tiny_images(n), method.optimizers()
    fov = torch.ones_like(images["us"], dtype=torch.bool)
    draws = (torch.Generator().manual_seed(seed + step) for step in range(steps))
    return [method.training_step(images, fov, optimizers, draw, progress) for draw in draws]


def weights(module: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def n_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("config", "parameters", "gmac"),
    [
        (ResViTConfig.preset("paper"), 123_269_505, 66.7),
        (ResViTConfig.preset("paper", image_size=(256, 256)), 123_441_537, 119.7),
        (ResViTConfig.preset("smoke", vit_layers=12), 7_725_153, 0.465),
        (ResViTConfig.preset("smoke"), 4_166_241, 0.350),
    ],
    ids=["paper", "256px", "small", "smoke"],
)
def test_size_and_cost_of_one_channel_in_and_out(config, parameters, gmac):
    with torch.device("meta"):
        network, image = ResViTNetwork(config, 1, 1), torch.zeros(1, 1, *config.image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    assert n_parameters(network) == parameters
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, rel=2e-3)


def test_the_published_293_million_count_the_transformer_three_times():
    with torch.device("meta"):
        network = ResViTNetwork(ResViTConfig.preset("paper", image_size=(256, 256)), 1, 1)
    assert n_parameters(network.vit) == 85_056_000
    assert parameters_as_released(network) == 293_553_537 == 123_441_537 + 2 * 85_056_000


def test_without_its_transformer_it_is_the_residual_network_of_9_blocks():
    with torch.device("meta"):
        network = ResViTNetwork(ResViTConfig.preset("paper"), 1, 1)
    assert n_parameters(network) - n_parameters(network.vit) - n_parameters(network.transformer_paths) == 11_370_881


def test_both_modalities_are_one_network_at_paper_size():
    with torch.device("meta"):
        method = ResViT(ResViTConfig.preset("paper"))
    more = 7 * 7 * 64 + 7 * 7 * 64 + 1  # one more channel in, one more out
    assert method.n_unique_parameters() == 123_269_505 + more
    assert n_parameters(method.critic) == 2_764_609 + 2 * 4 * 4 * 64


def test_the_transformer_is_registered_once_and_used_twice():
    method = tiny_method().eval()
    assert sum(value.numel() for value in method.averaged().state_dict().values()) == method.n_unique_parameters()
    calls = []
    method.network.vit.register_forward_hook(lambda *_: calls.append(1))
    method({"t2": tiny_images()["t2"]}, targets=["us"])
    assert len(calls) == 2


@pytest.mark.parametrize(("preset", "side", "layers"), [("paper", 192, 12), ("demo", 96, 12), ("smoke", 64, 4)])
def test_presets(preset, side, layers):
    config = ResViTConfig.preset(preset)
    assert config.image_size == (side, side) and config.vit_layers == layers
    assert (config.norm == "batch") == (preset == "paper")  # the others have batches smaller than 8


def test_directions():
    both = ("t2", "us")
    assert tiny_method().directions == (
        (("t2",), "us"),
        (("us",), "t2"),
        (("t2",), "t2"),
        (("us",), "us"),
        (both, "us"),
        (both, "t2"),
    )


@pytest.mark.parametrize("observed", SUBSETS)
def test_every_direction_gives_images_in_range(observed):
    method = tiny_method().eval()
    made = method.decode(method.encode(tiny_images()), observed).images
    assert set(made) == {"us", "t2"}
    for image in made.values():
        assert image.shape == (3, 1, 32, 32) and image.abs().max() <= 1 and image.std() > 0


def test_a_modality_that_is_not_observed_has_no_influence():
    method, images = tiny_method().eval(), tiny_images()
    alone = method({"t2": images["t2"]}).images["us"]
    for us in (images["us"], torch.full_like(images["us"], 0.5)):
        encoding = method.encode({"us": us, "t2": images["t2"]})
        assert torch.equal(method.decode(encoding, ["t2"]).images["us"], alone)
    assert not torch.equal(method.decode(encoding, ["us", "t2"]).images["us"], alone)


def test_missing_is_not_the_same_as_empty():
    method, images = tiny_method().eval(), tiny_images()
    empty = torch.full_like(images["us"], -1)
    missing = method({"t2": images["t2"]}).images["us"]
    assert not torch.equal(method({"t2": images["t2"], "us": empty}).images["us"], missing)


def test_a_missing_input_adds_nothing_to_the_first_convolution():
    method, images = tiny_method().eval(), tiny_images()
    convolution, seen = method.network.head[0], []
    convolution.register_forward_hook(lambda module, inputs, output: seen.append(output))
    method({"t2": images["t2"]}, targets=["us"])
    padded = F.pad(images["t2"], (3, 3, 3, 3), mode="reflect")
    assert torch.allclose(seen[0], F.conv2d(padded, convolution.weight[:, 1:]), atol=1e-6)


def test_the_order_of_the_given_images_changes_nothing():
    method, images = tiny_method().eval(), tiny_images()
    turned = {m: images[m] for m in ("t2", "us")}
    assert torch.equal(method(images).images["us"], method(turned).images["us"])


def test_what_it_cannot_make_is_refused():
    method = tiny_method()
    with pytest.raises(InputError, match="resvit cannot make flair from us"):
        method({"us": tiny_images()["us"]}, targets=["flair"])
    with pytest.raises(InputError, match="resvit cannot use this temperature"):
        method({"us": tiny_images()["us"]}, temperature=1.0)


def test_dropout_is_off_in_evaluation():
    method, image = tiny_method(), {"t2": tiny_images()["t2"]}
    assert not torch.equal(method(image).images["us"], method(image).images["us"])
    method.eval()
    assert torch.equal(method(image).images["us"], method(image).images["us"])


def test_a_batch_shows_all_subsets_in_turn():
    method, orders = tiny_method(), set()
    for seed in range(30):
        given = method._draw_given(7, torch.Generator().manual_seed(seed)).flatten(1)
        rows = [tuple(m for m, there in zip(("us", "t2"), row, strict=True) if there) for row in given]
        assert set(rows[:3]) == set(SUBSETS) and rows[3:6] == rows[:3] and rows[6] == rows[0]
        orders.add(tuple(rows[:3]))
    assert len(orders) == 6


@pytest.mark.parametrize("gan", ["bce", "lsgan"])
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_step_changes_network_and_critic_and_reports_finite_numbers(gan, norm):
    method = tiny_method(dataclasses.replace(TINY, gan=gan, norm=norm))
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    (values,) = train(method, 1)
    assert set(values) == {"loss", "l1_missing", "l1_given", "adversarial", "critic"}
    assert torch.isfinite(torch.tensor(list(values.values()))).all()
    assert [name for name, p in method.named_parameters() if torch.equal(p.detach(), before[name])] == []


def test_the_loss_counts_every_image_and_every_slice_alike():
    (values,) = train(tiny_method(), 1)  # three slices: 4 given images, 2 missing ones, 2 slices judged
    errors = (4 * values["l1_given"] + 2 * values["l1_missing"]) / 3
    assert values["loss"] == pytest.approx(100 * errors + values["adversarial"], rel=1e-5)


def test_the_critic_sees_given_and_missing_images_apart():
    method, seen, images = tiny_method(), [], tiny_images()
    method.critic.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    train(method, 1)
    condition, real = seen[0]
    assert len(condition) == 2  # the slice with both images is not judged
    for row in range(2):
        shown, hidden = ((x[row].flatten(1) != 0).any(1) for x in (condition, real))
        assert torch.equal(shown, ~hidden) and int(shown.sum()) == 1
    whole = torch.cat([images["us"], images["t2"]], 1)
    assert all((condition[row] + real[row] == whole).flatten(1).all(1).any() for row in range(2))


def test_a_batch_with_nothing_missing_leaves_the_critic_alone(monkeypatch):
    method = tiny_method()
    monkeypatch.setattr(method, "_draw_given", lambda n, generator: torch.ones(n, 2, 1, 1))
    critic, network = weights(method.critic), weights(method.network)
    (values,) = train(method, 1, n=1)
    assert values["critic"] == values["adversarial"] == values["l1_missing"] == 0 and values["l1_given"] > 0
    assert torch.equal(weights(method.critic), critic) and not torch.equal(weights(method.network), network)


def test_it_learns_one_batch_by_heart():
    method = tiny_method(dataclasses.replace(TINY, width=4, learning_rate=2e-3))
    values = train(method, 40)
    for name in ("l1_missing", "l1_given"):
        assert values[-1][name] < 0.5 * values[0][name]


def test_training_depends_on_its_generator_alone():
    ends = []
    for global_seed, seed in ((1, 3), (2, 3), (1, 40)):
        method = tiny_method()
        torch.manual_seed(global_seed)
        train(method, 2, seed=seed)
        ends.append(weights(method))
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_the_transformer_can_join_later():
    method = tiny_method(dataclasses.replace(TINY, transformer_from=0.6))
    vit, rest = weights(method.network.vit), weights(method.network.residual_blocks)
    train(method, 1, progress=0.59)
    assert torch.equal(weights(method.network.vit), vit) and not torch.equal(
        weights(method.network.residual_blocks), rest
    )
    train(method, 1, progress=0.6)
    assert not torch.equal(weights(method.network.vit), vit)


def test_it_comes_back_from_disk_without_its_imagenet_file(tmp_path):
    method = tiny_method(dataclasses.replace(TINY, pretrained="gone.npz")).eval()
    loaded = load_method(save_method(method, tmp_path / "model"))
    image = {"t2": tiny_images()["t2"]}
    assert torch.equal(loaded(image).images["us"], method(image).images["us"])


def test_settings_survive_json():
    config = ResViTConfig.preset("demo", pretrained="a.npz")
    assert saved_settings("resvit", json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": (100, 96)}, "image_size does not fit the tokens; got .100, 96.; expected multiples of 16"),
        ({"vit_heads": 5}, "vit_width must be a multiple of vit_heads"),
        ({"vit_layers": 0}, "vit_layers must be a whole number of at least 1"),
        ({"transformer_from": 1.0}, "transformer_from must lie in .0, 1."),
        ({"norm": "layer"}, "unknown norm"),
        ({"heads": 3}, "has no setting heads"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(settings, message):
    with pytest.raises(InputError, match=message):
        ResViTConfig.preset("paper", **settings)


# ImageNet weights: files in the published format, made here at tiny size.


def published_arrays(channels=8, layers=2, heads=2, side=2, class_token=True, seed=0) -> dict[str, np.ndarray]:
    """Names and shapes as in R50+ViT-B_16.npz, with a part of its ResNet and head, which are not used."""
    draw = np.random.default_rng(seed)
    head, tokens = channels // heads, side * side + class_token
    shapes = {"embedding/kernel": (1, 1, 32, channels), "embedding/bias": (channels,), "cls": (1, 1, channels)}
    shapes |= {"conv_root/kernel": (7, 7, 3, 4), "head/kernel": (channels, 5), POSITIONS: (1, tokens, channels)}
    norms = ["encoder_norm"]
    for i in range(layers):
        block = f"encoderblock_{i}"
        norms += [f"{block}/LayerNorm_0", f"{block}/LayerNorm_2"]
        attention = f"Transformer/{block}/MultiHeadDotProductAttention_1"
        for name in ("query", "key", "value"):
            shapes |= {f"{attention}/{name}/kernel": (channels, heads, head), f"{attention}/{name}/bias": (heads, head)}
        shapes |= {f"{attention}/out/kernel": (heads, head, channels), f"{attention}/out/bias": (channels,)}
        for k, (a, b) in enumerate(((channels, 4 * channels), (4 * channels, channels))):
            dense = f"Transformer/{block}/MlpBlock_3/Dense_{k}"
            shapes |= {f"{dense}/kernel": (a, b), f"{dense}/bias": (b,)}
    shapes |= {f"Transformer/{name}/{part}": (channels,) for name in norms for part in ("scale", "bias")}
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def as_published(arrays: dict[str, np.ndarray], tokens: np.ndarray, layers: int = 2) -> np.ndarray:
    """The transformer written out from the file's own names, (T, C) to (T, C): an implementation of its own."""
    from scipy.special import erf

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * arrays[f"Transformer/{name}/scale"] + arrays[f"Transformer/{name}/bias"]

    def dense(x, name, product):
        return np.einsum(product, x, arrays[f"Transformer/{name}/kernel"]) + arrays[f"Transformer/{name}/bias"]

    for i in range(layers):
        block = f"encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        x = norm(tokens, f"{block}/LayerNorm_0")
        q, k, v = (dense(x, f"{attention}/{name}", "tc,chd->thd") for name in ("query", "key", "value"))
        scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(q.shape[-1])
        share = np.exp(scores - scores.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        tokens = tokens + dense(np.einsum("hts,shd->thd", share, v), f"{attention}/out", "thd,hdc->tc")
        x = dense(norm(tokens, f"{block}/LayerNorm_2"), f"{block}/MlpBlock_3/Dense_0", "tc,cd->td")
        tokens = tokens + dense(x * (1 + erf(x / np.sqrt(2))) / 2, f"{block}/MlpBlock_3/Dense_1", "tc,cd->td")
    return norm(tokens, "encoder_norm")


def tiny_parts(grid=(2, 2)) -> tuple[VisionTransformer, TokenEmbedding]:
    return VisionTransformer(8, 2, 2, 0.1).eval(), TokenEmbedding(32, 8, grid)


def save(path, arrays) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_loaded_weights_compute_what_the_file_means(tmp_path):
    arrays = published_arrays()
    vit, embedding = tiny_parts()
    load_imagenet_weights(save(tmp_path / "vit.npz", arrays), vit, [embedding])
    feature = np.random.default_rng(1).normal(size=(32, 2, 2)).astype(np.float32)
    tokens = np.einsum("chw,cd->hwd", feature, arrays["embedding/kernel"][0, 0]).reshape(4, 8)
    tokens = tokens + arrays["embedding/bias"] + arrays[POSITIONS][0, 1:]
    with torch.no_grad():
        embedded = embedding(torch.from_numpy(feature)[None])
        made = vit(embedded)
    assert np.allclose(embedded[0].numpy(), tokens, atol=1e-4)
    assert np.allclose(made[0].numpy(), as_published(arrays, tokens), atol=1e-3)


@pytest.mark.parametrize("class_token", [True, False])
def test_positions_are_resized_linearly_to_the_grid(tmp_path, class_token):
    arrays = published_arrays(side=3, class_token=class_token)
    rows, columns = np.mgrid[:3, :3].reshape(2, 9)
    ramp = np.stack([rows, columns], 1).astype(np.float32) / 2  # 0 to 1 each way
    arrays[POSITIONS][0, int(class_token) :] = np.tile(ramp, 4)
    vit, embedding = tiny_parts(grid=(5, 2))
    load_imagenet_weights(save(tmp_path / "vit.npz", arrays), vit, [embedding])
    placed = embedding.positions.detach().view(5, 2, 8)
    assert torch.allclose(placed[:, 0, 0], torch.linspace(0, 1, 5), atol=1e-6)
    assert torch.allclose(placed[0, :, 1], torch.linspace(0, 1, 2), atol=1e-6)


def test_training_begins_with_the_imagenet_weights_in_both_blocks(tmp_path):
    arrays = published_arrays()
    path = save(tmp_path / "R50+ViT-B_16.npz", arrays)
    method = tiny_method(dataclasses.replace(TINY, pretrained=path))
    method.optimizers()
    for part in method.network.transformer_paths.values():
        assert np.array_equal(part.embedding.project.bias.detach().numpy(), arrays["embedding/bias"])
    scale = method.network.vit.norm.weight.detach().numpy()
    assert np.array_equal(scale, arrays["Transformer/encoder_norm/scale"])
    assert method.card["transformer"] == "started from R50+ViT-B_16.npz"


def test_from_scratch_is_said_so():
    method = tiny_method()
    method.optimizers()
    assert method.card["transformer"] == "from scratch"


def test_an_absent_file_is_named_when_training_begins():
    method = tiny_method(dataclasses.replace(TINY, pretrained="nowhere/R50.npz"))
    with pytest.raises(MissingError, match="no ImageNet weights at nowhere/R50.npz.*set pretrained to None"):
        method.optimizers()


QUERY = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/kernel"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({QUERY: None}, f"1 arrays differ, first {QUERY}; got none; expected .8, 2, 4."),
        ({QUERY: np.zeros((8, 4, 2))}, f"first {QUERY}; got .8, 4, 2."),
        ({"embedding/kernel": np.zeros((16, 16, 3, 8))}, "first embedding/kernel; got .16, 16, 3, 8."),
        ({POSITIONS: None}, f"{POSITIONS}; got none"),
        ({POSITIONS: np.zeros((1, 7, 8))}, f"{POSITIONS}; got .1, 7, 8.; expected .1, n . n"),
        ({POSITIONS: np.zeros((1, 5, 4))}, f"{POSITIONS}; got .1, 5, 4."),
        ({POSITIONS: np.full((1, 5, 8), np.nan)}, f"NaN or infinity in {POSITIONS}"),
        ({"Transformer/encoderblock_2/LayerNorm_0/scale": np.zeros(8)}, "another depth; got 3 blocks; expected 2"),
        ({"embedding/bias": np.array(["a"] * 8, dtype=object)}, "is not a file of arrays .*pickle"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(tmp_path, change, message):
    arrays = {name: value for name, value in {**published_arrays(), **change}.items() if value is not None}
    vit, embedding = tiny_parts()
    before = weights(vit), weights(embedding)
    with pytest.raises(DataError, match=message):
        load_imagenet_weights(save(tmp_path / "vit.npz", arrays), vit, [embedding])
    assert torch.equal(weights(vit), before[0]) and torch.equal(weights(embedding), before[1])


def test_a_damaged_file_is_refused(tmp_path):
    vit, embedding = tiny_parts()
    path = tmp_path / "vit.npz"
    np.savez_compressed(path, **published_arrays())
    whole = path.read_bytes()
    flipped = whole[:300] + bytes(255 - byte for byte in whole[300:340]) + whole[340:]
    for content in (whole[:500], flipped, b"<html>not found</html>", b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match="vit.npz is not a file of arrays"):
            load_imagenet_weights(path, vit, [embedding])


def test_a_single_array_is_refused(tmp_path):
    vit, embedding = tiny_parts()
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(DataError, match="one.npy is not a file of arrays .it holds a single array"):
        load_imagenet_weights(tmp_path / "one.npy", vit, [embedding])
