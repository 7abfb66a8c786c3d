"""The model of config.json and model.safetensors in plain PyTorch. Run as a script, it generates 200 ids."""

import json

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F


def logits(ids: Tensor, model: dict, weights: dict[str, Tensor]) -> Tensor:
    """Logits of what follows each id: (B, T), T up to block_size, to (B, T, size of the vocabulary).

    `model` is that part of config.json; `weights` are the tensors by name.
    """

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    def shift(x: Tensor) -> Tensor:
        """With token_shift, the first half of the channels comes from the position before."""
        half = model["n_embd"] // 2
        return torch.cat([F.pad(x[:, :-1, :half], (0, 0, 1, 0)), x[..., half:]], -1) if model["token_shift"] else x

    x = weights["token_embedding_table.weight"][ids]  # (B, T, n_embd)
    if model["name"] == "bigram":
        return x
    if model["positions"] == "learned":
        x = x + weights["position_embedding_table.weight"][: ids.shape[1]]
    for n in range(model["n_layer"]):
        qkv = linear(shift(norm(x, f"blocks.{n}.ln1")), f"blocks.{n}.sa.qkv")  # (B, T, 3 * n_embd)
        q, k, v = qkv.unflatten(-1, (3, model["n_head"], -1)).permute(2, 0, 3, 1, 4)  # (B, n_head, T, head size) each
        if model["positions"] == "rotary":
            q, k = rotate(q), rotate(k)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(heads.transpose(1, 2).flatten(2), f"blocks.{n}.sa.proj")
        hidden = F.relu(linear(shift(norm(x, f"blocks.{n}.ln2")), f"blocks.{n}.ffwd.net.0"))
        x = x + linear(hidden, f"blocks.{n}.ffwd.net.2")
    return linear(norm(x, "ln_f"), "lm_head")


def rotate(x: Tensor) -> Tensor:
    """Rotary positions: each pair of channels of x, (B, n_head, T, head size), turns in proportion to the position."""
    speeds = 10_000 ** -(torch.arange(0, x.shape[-1], 2) / x.shape[-1])
    angles = torch.outer(torch.arange(x.shape[-2]), speeds)
    (a, b), cos, sin = x.unflatten(-1, (-1, 2)).unbind(-1), angles.cos(), angles.sin()
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


if __name__ == "__main__":
    with open("config.json", encoding="utf-8") as file:
        config = json.load(file)
    model, weights, characters = config["model"], load_file("model.safetensors"), config["characters"]
    ids = torch.tensor([[0]])
    for _ in range(200):
        probabilities = logits(ids[:, -model["block_size"] :], model, weights)[:, -1].float().softmax(-1)
        ids = torch.cat([ids, torch.multinomial(probabilities, 1)], 1)
    written = ids[0].tolist()
    print(bytes(written).decode(errors="replace") if characters is None else "".join(characters[i] for i in written))
