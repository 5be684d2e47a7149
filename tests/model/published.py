"""The published forward pass in plain numpy float64, with weights laid out as PyTorch modules hold them."""

import math

import numpy as np

_erf = np.vectorize(math.erf)


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(x, weights, name):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def mlp(x, weights, name):
    hidden = linear(x, weights, f"{name}.0")
    return linear(hidden * 0.5 * (1 + _erf(hidden / math.sqrt(2))), weights, f"{name}.1")


def forward(weights, x, *, dynamic, patch, blocks, repeats):
    """x [b, lat, lon, channel] with static fields last -> [b, lat, lon, dynamic]; token rows are of one latitude."""
    batch, lat, lon, channels = x.shape
    tokens = x.reshape(batch, lat, lon // patch, patch, channels)
    tokens = np.moveaxis(tokens, -1, -2).reshape(batch, lat * (lon // patch), channels * patch)
    encoded = linear(tokens, weights, "encode")
    h = encoded
    for _ in range(repeats):
        for block in range(blocks):
            mixed = np.swapaxes(layer_norm(h, weights, f"{block}.token_norm"), 1, 2)
            h = h + np.swapaxes(mlp(mixed, weights, f"{block}.token"), 1, 2)
            h = h + mlp(layer_norm(h, weights, f"{block}.channel_norm"), weights, f"{block}.channel")
    joined = np.concatenate([layer_norm(h, weights, "norm"), encoded], axis=-1)
    decoded = joined @ weights["decode.weight"].T + np.repeat(weights["decode.bias"], patch)
    decoded = decoded.reshape(batch, lat, lon // patch, channels, patch)
    decoded = np.moveaxis(decoded, -2, -1).reshape(batch, lat, lon, channels)[..., :dynamic]
    joined = np.concatenate([layer_norm(decoded, weights, "inner"), x[..., :dynamic]], axis=-1)
    return linear(layer_norm(joined, weights, "outer"), weights, "blend")


def random_weights(rng, *, channels, dynamic, patch, tokens, embed, token_hidden, embed_hidden, blocks):
    """Random weights of every linear layer and norm, none of them zero or one."""
    sizes = {
        "encode": (channels * patch, embed),
        "decode": (2 * embed, channels * patch),
        "blend": (2 * dynamic, dynamic),
    }
    norms = {"norm": embed, "inner": dynamic, "outer": 2 * dynamic}
    for block in range(blocks):
        sizes |= {f"{block}.token.0": (tokens, token_hidden), f"{block}.token.1": (token_hidden, tokens)}
        sizes |= {f"{block}.channel.0": (embed, embed_hidden), f"{block}.channel.1": (embed_hidden, embed)}
        norms |= {f"{block}.token_norm": embed, f"{block}.channel_norm": embed}
    weights = {}
    for name, (inputs, outputs) in sizes.items():
        weights[f"{name}.weight"] = rng.standard_normal((outputs, inputs)) / math.sqrt(inputs)
        weights[f"{name}.bias"] = 0.1 * rng.standard_normal(channels if name == "decode" else outputs)
    for name, size in norms.items():
        weights[f"{name}.weight"] = 1 + 0.1 * rng.standard_normal(size)
        weights[f"{name}.bias"] = 0.1 * rng.standard_normal(size)
    return weights


def poured(weights, *, channels, dynamic, patch, embed, blocks):
    """The same weights under WeatherMixer's names, shapes and orders, as its docstring tells."""

    def pad(vector, fill=0.0):
        return np.concatenate([vector, np.full(channels - dynamic, fill)])

    def rows(vector):  # [2 dynamic] -> [2, channels]
        return np.stack([pad(vector[:dynamic]), pad(vector[dynamic:])])

    blend = np.zeros((2, channels, channels))
    blend[:, :dynamic, :dynamic] = weights["blend.weight"].T.reshape(2, dynamic, dynamic)
    tree = {
        "encode/kernel": weights["encode.weight"].T,
        "encode/bias": weights["encode.bias"],
        "decode_kernel": weights["decode.weight"].T.reshape(2, embed, channels * patch),
        "decode_bias": np.repeat(weights["decode.bias"], patch),
        "norm/scale": weights["norm.weight"],
        "norm/bias": weights["norm.bias"],
        "head/inner_scale": pad(weights["inner.weight"]),
        "head/inner_bias": pad(weights["inner.bias"]),
        "head/outer_scale": rows(weights["outer.weight"]),
        "head/outer_bias": rows(weights["outer.bias"]),
        "head/kernel": blend,
        "head/bias": pad(weights["blend.bias"]),
    }
    for block in range(blocks):
        for what in ("token", "channel"):
            tree[f"blocks/{block}/{what}_norm/scale"] = weights[f"{block}.{what}_norm.weight"]
            tree[f"blocks/{block}/{what}_norm/bias"] = weights[f"{block}.{what}_norm.bias"]
            for index, layer in enumerate(("up", "down")):
                tree[f"blocks/{block}/{what}_mlp/{layer}/kernel"] = weights[f"{block}.{what}.{index}.weight"].T
                tree[f"blocks/{block}/{what}_mlp/{layer}/bias"] = weights[f"{block}.{what}.{index}.bias"]
    return tree
