"""What the authors' network computes, restated as functions of a state dict, and state dicts that such a network has.

Written from the published description of keys, shapes and formulas; it shares no code with the kit's network or theirs,
and stands in for a checkout of their repository (copied to <repo>/network/mhvae.py) in the tests.
"""

import math

import torch
import torch.nn.functional as F

POWER = 1  # of the inverse standard deviation in the fusion: 1 is their rule, 2 would be the exact product


def shapes(names, *, base=4, top=8, pools=2, blocks=2, width=None, area=4, new_norm=False, numbered=True):
    """Shape of every tensor by name."""
    c = [min(base * 2**i, top) for i in range(pools + 1)]
    found = {}

    def conv(name, *shape, bias=True):
        found[f"{name}.weight"] = shape
        if bias:
            found[f"{name}.bias"] = shape[:1]

    def normed(name, *shape):
        g, v = ("parametrizations.weight.original0", "parametrizations.weight.original1")
        g, v = (g, v) if new_norm else ("weight_g", "weight_v")
        found[f"{name}.{g}"] = (shape[0], *(1 for _ in shape[1:]))
        found[f"{name}.{v}"] = shape

    def gate(name, n):
        conv(f"{name}.se.0", max(n // 16, 4), n)
        conv(f"{name}.se.2", n, max(n // 16, 4))

    for m in names:
        conv(f"first_conv.{m}", base, 1, 3, 3)
    for m in names:
        for k, n in enumerate(c):
            conv(f"conv_blocks_context.{m}.{k}.conv_0", n, n, 3, 3)
            conv(f"conv_blocks_context.{m}.{k}.conv_1", n, n, 3, 3)
            gate(f"conv_blocks_context.{m}.{k}.se", n)
        for k in range(pools):
            conv(f"td.{m}.{k}", c[k + 1], c[k], 3, 3)
    found["bottleneck_down.linear.bias"] = (4 * top,)
    normed("bottleneck_down.linear", 4 * top, top * area)
    found["bottleneck_up.linear.bias"] = (top * area,)
    normed("bottleneck_up.linear", top * area, 2 * top)
    above = top
    for k, n in enumerate(reversed(c[:-1])):
        conv(f"tu.{k}.conv_1", n, above, 3, 3, bias=False)
        conv(f"conv_blocks_localization.{k}.conv_0", 6 * n, n, 3, 3)
        conv(f"conv_blocks_localization.{k}.dw_conv_1", 6 * n, 1, 5, 5)
        gate(f"conv_blocks_localization.{k}.se_2", 6 * n)
        conv(f"conv_blocks_localization.{k}.conv_2", n, 6 * n, 1, 1)
        conv(f"qz.{k}.conv_0", n, 2 * n, 3, 3)
        conv(f"qz.{k}.conv_1", n, n, 3, 3)
        gate(f"qz.{k}.se", n)
        normed(f"qz.{k}.last_conv", n, n, 1, 1)
        normed(f"pz.{k}", n, n, 1, 1)
        above = n // 2
    w = width or above
    for head in map(str, range(len(names))) if numbered else names:
        first = int(w != above)
        if first:
            conv(f"final_blocks.{head}.res.0", w, above, 1, 1)
        for j in range(blocks):
            conv(f"final_blocks.{head}.res.{j + first}.conv_block.1", w, w, 3, 3)
            conv(f"final_blocks.{head}.res.{j + first}.conv_block.5", w, w, 3, 3)
        conv(f"final_blocks.{head}.convt2", w, w, 7, 7)
        conv(f"final_blocks.{head}.convt3", 1, w, 7, 7)
    return found


def random_state(found, seed=0):
    """Seeded weights of these shapes, small enough that nothing saturates."""
    generator = torch.Generator().manual_seed(seed)
    return {
        k: torch.randn(s, generator=generator) / math.sqrt(max(math.prod(s[1:]), 1)) * (1 if len(s) > 1 else 0.3)
        for k, s in found.items()
    }


def instance_norm(x):
    centred = x - x.mean((2, 3), keepdim=True)
    return centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()


class MHVAE2D(torch.nn.Module):
    """Takes what their constructor takes, and a state dict; computes from the latter alone."""

    def __init__(self, modalities, base_num_features, num_pool, original_shape=None, max_features=None):
        super().__init__()
        self.modalities, self.pools, self.shape = modalities, num_pool, original_shape

    def load_state_dict(self, state):
        self.state = dict(state)

    def _apply(self, change, recurse=True):
        """What .double() and .float() do to a module's tensors."""
        self.state = {name: change(value) for name, value in self.state.items()}
        return self

    def conv(self, x, name, pad=1, stride=1, groups=1, mode=None):
        if mode:
            x, pad = F.pad(x, (pad,) * 4, mode=mode), 0
        return F.conv2d(x, self.weight(name), self.state.get(f"{name}.bias"), stride, pad, groups=groups)

    def weight(self, name):
        if f"{name}.weight" in self.state:
            return self.state[f"{name}.weight"]
        old = f"{name}.weight_g" in self.state
        pair = ("weight_g", "weight_v") if old else [f"parametrizations.weight.original{i}" for i in (0, 1)]
        g, v = (self.state[f"{name}.{leaf}"] for leaf in pair)
        return g * v / v.flatten(1).norm(dim=1).reshape(g.shape)

    def gate(self, x, name):
        s = self.state
        hidden = F.relu(x.mean((2, 3)) @ s[f"{name}.se.0.weight"].T + s[f"{name}.se.0.bias"])
        return x * torch.sigmoid(hidden @ s[f"{name}.se.2.weight"].T + s[f"{name}.se.2.bias"])[:, :, None, None]

    def two_convs(self, x, name):
        for part in ("conv_0", "conv_1"):
            x = self.conv(F.silu(instance_norm(x)), f"{name}.{part}")
        return self.gate(x, f"{name}.se")

    def linear(self, x, name):
        return x @ self.weight(name).T + self.state[f"{name}.bias"]

    def head(self, x, name):
        j = 0
        if f"{name}.res.0.weight" in self.state:
            x, j = self.conv(x, f"{name}.res.0", pad=0), 1
        while f"{name}.res.{j}.conv_block.1.weight" in self.state:
            y = F.relu(instance_norm(self.conv(x, f"{name}.res.{j}.conv_block.1", mode="reflect")))
            x, j = x + instance_norm(self.conv(y, f"{name}.res.{j}.conv_block.5", mode="reflect")), j + 1
        x = F.leaky_relu(instance_norm(self.conv(x, f"{name}.convt2", pad=3, mode="reflect")), 0.2)
        return torch.tanh(self.conv(x, f"{name}.convt3", pad=3, mode="reflect"))

    def draw(self, prior, experts, temp):
        mean, scale = prior
        weights = [scale**-POWER] + [torch.exp(-POWER * s) for _, s in experts]
        total = sum(weights)
        mean = (mean * weights[0] + sum(m * w for (m, _), w in zip(experts, weights[1:], strict=True))) / total
        return torch.distributions.Normal(mean, temp * total ** (-1 / POWER)).rsample()

    def forward(self, x, temp=1.0, return_cat=False):
        mask = next(iter(x.values())) > -1
        skips, experts = {m: [] for m in x}, []
        for m, image in x.items():
            h = self.conv(image, f"first_conv.{m}")
            for k in range(self.pools + 1):
                h = h + self.two_convs(h, f"conv_blocks_context.{m}.{k}")
                if k < self.pools:
                    skips[m].insert(0, h)
                    h = self.conv(h, f"td.{m}.{k}", stride=2)
            experts.append(clamp(self.linear(h.flatten(1), "bottleneck_down.linear")).chunk(2, 1))
        zero = torch.zeros_like(experts[0][0])
        z = self.draw((zero, zero + 1), experts, temp)
        z = self.linear(z, "bottleneck_up.linear").reshape(h.shape)
        for k in range(self.pools):
            feature = self.conv(F.interpolate(z, scale_factor=2, mode="bilinear"), f"tu.{k}.conv_1")
            name = f"conv_blocks_localization.{k}"
            y = F.silu(instance_norm(self.conv(instance_norm(feature), f"{name}.conv_0")))
            y = F.silu(instance_norm(self.conv(y, f"{name}.dw_conv_1", pad=2, groups=y.shape[1])))
            feature = feature + self.conv(self.gate(y, f"{name}.se_2"), f"{name}.conv_2", pad=0)
            mean, log_scale = clamp(self.conv(feature, f"pz.{k}", pad=0)).chunk(2, 1)
            heads = [self.two_convs(torch.cat([feature, skips[m][k]], 1), f"qz.{k}") for m in x]
            found = [clamp(self.conv(h, f"qz.{k}.last_conv", pad=0)).chunk(2, 1) for h in heads]
            z = self.draw((mean, log_scale.exp()), found, temp)
        numbered = "final_blocks.0.convt2.weight" in self.state
        names = [str(i) if numbered else m for i, m in enumerate(self.modalities)]
        made = [self.head(z, f"final_blocks.{name}") for name in names]
        return {m: torch.where(mask, image, -1.0) for m, image in zip(self.modalities, made, strict=True)}, None


def clamp(x):
    return 10 * torch.tanh(x / 10)
