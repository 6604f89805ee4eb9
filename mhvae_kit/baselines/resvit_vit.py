"""The vision transformer of ResViT, and the reader of its ImageNet weights."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import zoom
from torch import Tensor, nn
from torch.nn import functional as F

from mhvae_kit.errors import DataError, MissingError, explain

USED = ("Transformer/", "embedding/")  # how the names of the arrays begin
POSITIONS = "Transformer/posembed_input/pos_embedding"


class EncoderLayer(nn.Module):
    """Pre-normalised self-attention and two-layer perceptron (4 times as wide, GELU), each residual."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(channels, eps=1e-6)
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.from_heads = nn.Linear(channels, channels)
        self.mlp_norm = nn.LayerNorm(channels, eps=1e-6)
        self.widen = nn.Linear(channels, 4 * channels)
        self.narrow = nn.Linear(4 * channels, channels)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.to_qkv, self.from_heads, self.widen, self.narrow):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, C) to the same shape."""
        q, k, v = self.to_qkv(self.attention_norm(tokens)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, T, C)
        tokens = tokens + self.from_heads(mixed)
        hidden = self.dropout(F.gelu(self.widen(self.mlp_norm(tokens))))
        return tokens + self.dropout(self.narrow(hidden))


class VisionTransformer(nn.Module):
    """Transformer layers and a last norm on tokens that come embedded, with their positions added.

    Args:
        channels: Length of a token.
        layers, heads: How many.
        dropout: On the tokens and inside the perceptrons, in training mode.
    Source:
        Dosovitskiy et al., ICLR 2021, ViT-B/16: 768 channels, 12 layers, 12 heads: 85,056,000 parameters.
    """

    def __init__(self, channels: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(EncoderLayer(channels, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, C) to the same shape."""
        x = self.dropout(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class TokenEmbedding(nn.Module):
    """A 1x1 convolution to tokens, and a learned position added to each.

    Args:
        channels_in, channels: Of the feature map and of a token.
        grid: Height and width of the feature map.
    """

    def __init__(self, channels_in: int, channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.project = nn.Conv2d(channels_in, channels, 1)
        self.positions = nn.Parameter(torch.empty(1, grid[0] * grid[1], channels))
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) to (B, h * w, C)."""
        return self.project(x).flatten(2).transpose(1, 2) + self.positions


def load_imagenet_weights(path: str | Path, vit: VisionTransformer, embeddings: Sequence[TokenEmbedding]) -> None:
    """Put the weights of `R50+ViT-B_16.npz` into a transformer and into each of its embeddings.

    The ResNet-50 part of the file, its class token and its head are not used. Positions are resized to the grid of
    tokens by linear interpolation.

    Args:
        path: The file of arrays, as published for ViT (ImageNet-21k).
        vit: Gets the layers and the last norm.
        embeddings: Get the patch embedding and the positions.
    Raises:
        MissingError: No such file.
        DataError: Not a file of arrays, or one whose arrays do not fit; the first that does not is named.
    Source:
        google-research/vision_transformer (names and shapes); icon-lab/ResViT:models/residual_transformers.py (use).
    """
    path = Path(path)
    arrays = _read_arrays(path)
    expected = _expected_shapes(vit, embeddings[0])
    odd = [name for name, shape in expected.items() if name not in arrays or arrays[name].shape != shape]
    if odd:
        first = arrays.get(odd[0])
        raise DataError(
            explain(
                f"{path} does not fit this transformer: {len(odd)} arrays differ, first {odd[0]}",
                got="none" if first is None else first.shape,
                expected=expected[odd[0]],
                mend="give R50+ViT-B_16.npz and keep vit_width=768, vit_layers=12, vit_heads=12",
            )
        )
    blocks = {name.split("/")[1] for name in arrays if name.startswith("Transformer/encoderblock_")}
    if len(blocks) != len(vit.layers):
        raise DataError(explain(f"{path} has another depth", got=f"{len(blocks)} blocks", expected=len(vit.layers)))
    not_finite = [name for name in (*expected, POSITIONS) if name in arrays and not np.isfinite(arrays[name]).all()]
    if not_finite:
        raise DataError(explain(f"{path} holds NaN or infinity in {not_finite[0]}", mend="download it again"))
    positions = [_resized_positions(arrays, embedding, path) for embedding in embeddings]
    with torch.no_grad():
        _fill(vit, arrays)
        for embedding, grid in zip(embeddings, positions, strict=True):
            embedding.project.weight.copy_(_tensor(arrays["embedding/kernel"]).permute(3, 2, 0, 1))
            embedding.project.bias.copy_(_tensor(arrays["embedding/bias"]))
            embedding.positions.copy_(grid)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the transformer, by name; nothing that needs pickle is read."""
    if not path.is_file():
        raise MissingError(
            explain(f"no ImageNet weights at {path}", mend="download R50+ViT-B_16.npz, or set pretrained to None")
        )
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            if not isinstance(content, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            with content:
                return {
                    name: content[name] for name in content.files if name.startswith(("Transformer/", "embedding/"))
                }
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            explain(f"{path} is not a file of arrays ({error})", mend="download R50+ViT-B_16.npz again")
        ) from error


def _expected_shapes(vit: VisionTransformer, embedding: TokenEmbedding) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array but the positions, whose number may differ."""
    channels, channels_in = embedding.project.weight.shape[:2]
    shapes: dict[str, tuple[int, ...]] = {
        "embedding/kernel": (1, 1, channels_in, channels),
        "embedding/bias": (channels,),
        "Transformer/encoder_norm/scale": (channels,),
        "Transformer/encoder_norm/bias": (channels,),
    }
    for i, layer in enumerate(vit.layers):
        block, head = f"Transformer/encoderblock_{i}", channels // layer.heads
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{block}/{norm}/scale": (channels,), f"{block}/{norm}/bias": (channels,)}
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for name in ("query", "key", "value"):
            shapes[f"{attention}/{name}/kernel"] = (channels, layer.heads, head)
            shapes[f"{attention}/{name}/bias"] = (layer.heads, head)
        shapes |= {f"{attention}/out/kernel": (layer.heads, head, channels), f"{attention}/out/bias": (channels,)}
        widths = (channels, 4 * channels, channels)
        for k in (0, 1):
            shapes[f"{block}/MlpBlock_3/Dense_{k}/kernel"] = (widths[k], widths[k + 1])
            shapes[f"{block}/MlpBlock_3/Dense_{k}/bias"] = (widths[k + 1],)
    return shapes


def _resized_positions(arrays: dict[str, np.ndarray], embedding: TokenEmbedding, path: Path) -> Tensor:
    """Positions for the grid of an embedding, (1, T, C), without that of the class token."""
    positions, channels = arrays.get(POSITIONS), embedding.positions.shape[-1]
    side = 0 if positions is None or positions.ndim != 3 else math.isqrt(positions.shape[1])
    if side < 1 or positions.shape != (1, positions.shape[1], channels) or positions.shape[1] - side**2 not in (0, 1):
        raise DataError(
            explain(
                f"{path} does not fit this transformer: {POSITIONS}",
                got="none" if positions is None else positions.shape,
                expected=f"(1, n * n or n * n + 1, {channels})",
            )
        )
    square = positions[0, -(side**2) :].astype(np.float32).reshape(side, side, channels)
    height, width = embedding.grid
    if (height, width) != (side, side):
        square = zoom(square, (height / side, width / side, 1), order=1)
    return _tensor(square.reshape(1, height * width, channels))


def _fill(vit: VisionTransformer, arrays: dict[str, np.ndarray]) -> None:
    """Copy layers and last norm. Kernels of the file are (in, out), those of torch (out, in)."""

    def norm(layer: nn.LayerNorm, name: str) -> None:
        layer.weight.copy_(_tensor(arrays[f"{name}/scale"]))
        layer.bias.copy_(_tensor(arrays[f"{name}/bias"]))

    for i, layer in enumerate(vit.layers):
        block, channels = f"Transformer/encoderblock_{i}", layer.from_heads.in_features
        attention = f"{block}/MultiHeadDotProductAttention_1"
        norm(layer.attention_norm, f"{block}/LayerNorm_0")
        norm(layer.mlp_norm, f"{block}/LayerNorm_2")
        parts = [f"{attention}/{name}" for name in ("query", "key", "value")]
        layer.to_qkv.weight.copy_(torch.cat([_tensor(arrays[f"{p}/kernel"]).flatten(1).T for p in parts]))
        layer.to_qkv.bias.copy_(torch.cat([_tensor(arrays[f"{p}/bias"]).flatten() for p in parts]))
        layer.from_heads.weight.copy_(_tensor(arrays[f"{attention}/out/kernel"]).reshape(channels, channels).T)
        layer.from_heads.bias.copy_(_tensor(arrays[f"{attention}/out/bias"]))
        for k, linear in enumerate((layer.widen, layer.narrow)):
            linear.weight.copy_(_tensor(arrays[f"{block}/MlpBlock_3/Dense_{k}/kernel"]).T)
            linear.bias.copy_(_tensor(arrays[f"{block}/MlpBlock_3/Dense_{k}/bias"]))
    norm(vit.norm, "Transformer/encoder_norm")


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
