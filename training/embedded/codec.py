"""The codec being trained: moshi's own Mimi module, and a fast way through its weights.

moshi's forward is written for streaming; training goes through the plain functions below, which use
the same modules' weights and give the same numbers (checked by `python codec.py`). Quantisation is in codebooks.py.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from codebooks import Codebooks
from moshi.models import MimiModel
from moshi.modules.conv import StreamingConv1d, StreamingConvTranspose1d
from moshi.modules.seanet import SEANetResnetBlock
from moshi.quantization.core_vq import EuclideanCodebook
from torch import Tensor, nn

FRAME_SAMPLES, CODEBOOKS, BINS = 1920, 10, 1024
CONTEXT = 64  # transformer steps of 20 ms: as far back as a training crop reaches
CONFIG = {
    "sample_rate": 24000,
    "channels": 1,
    "frame_rate": 12.5,
    "seanet": {
        "channels": 1, "dimension": 192, "causal": True, "n_filters": 24, "n_residual_layers": 1,
        "activation": "ELU", "compress": 2, "dilation_base": 2, "disable_norm_outer_blocks": 0,
        "kernel_size": 7, "residual_kernel_size": 7, "last_kernel_size": 3, "norm": "none",
        "pad_mode": "constant", "ratios": [6, 5, 4, 4], "true_skip": True,
    },
    "quantizer": {
        "dimension": 64, "n_q": CODEBOOKS, "bins": BINS, "input_dimension": 192, "output_dimension": 192,
    },
    "transformer": {
        "d_model": 192, "num_heads": 6, "num_layers": 3, "causal": True, "layer_scale": 0.1,
        "context": CONTEXT, "conv_layout": True, "max_period": 10000, "gating": "none",
        "norm": "layer_norm", "positional_embedding": "rope", "dim_feedforward": 768,
        "input_dimension": 192, "output_dimensions": [192],
    },
    # What differs in the encoder, which costs nothing while it speaks.
    "encoder": {"seanet": {"n_filters": 32}, "transformer": {"num_layers": 6}},
}  # fmt: skip


def build(config: dict = CONFIG) -> MimiModel:
    sys.path.append(str(Path(__file__).parents[2]))  # of the repository
    from models.mimi import mimi_of

    mimi = mimi_of(config, config["quantizer"]["n_q"])
    mimi.config = config  # for `save`
    return mimi


@torch.no_grad()
def grown(folder: Path, config: dict = CONFIG) -> tuple[MimiModel, int]:
    """The codec of `folder` in a larger shape, and how many of its codebooks have no table yet (`Codebooks.seed`).

    It says what the smaller one said: the old weights are a corner of the new ones, nothing old listens to a new
    channel yet, and a new transformer layer adds nothing yet.
    """
    old, new = restored(folder), build(config)
    initialise(new)
    state, known = new.state_dict(), old.state_dict()
    for name, value in state.items():
        if name not in known:
            if name.endswith(("out_projs.0.weight", "linear2.weight", "embedding_sum")):
                value.zero_()
            continue
        corner = tuple(slice(size) for size in known[name].shape)
        if value.dim() > 1:
            ins = 0 if "convtr" in name else 1  # the axis of the input channels
            fresh = [slice(None)] * value.dim()
            fresh[ins], fresh[1 - ins] = slice(known[name].shape[ins], None), slice(known[name].shape[1 - ins])
            value[tuple(fresh)] = 0
        value[corner] = known[name]
    return new, config["quantizer"]["n_q"] - old.config["quantizer"]["n_q"]


@torch.no_grad()
def initialise(mimi: MimiModel) -> None:
    """Variance-keeping weights. With torch's defaults the latents die within a few hundred steps."""
    for module in mimi.modules():
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d, nn.Linear)):
            weight = module.weight
            fan_in = weight[0].numel()
            if isinstance(module, nn.ConvTranspose1d):  # [in, out / groups, k]: each output meets k / stride taps
                fan_in = weight.shape[0] // module.groups * weight.shape[2] // module.stride[0]
            weight.normal_(0, 1.25 / math.sqrt(fan_in))
            if module.bias is not None:
                module.bias.zero_()
    mimi.encoder.model[0].conv.conv.weight.mul_(10)
    mimi.decoder.model[-1].conv.conv.weight.mul_(0.1)


def save(mimi: MimiModel, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write mimi/config.json and mimi/model.safetensors. Codebooks lose their counts: sums of one vector each."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(mimi.config, indent=2) + "\n")
    state = mimi.state_dict()
    for name in [name for name in state if name.endswith("embedding_sum")]:
        usage = name.replace("embedding_sum", "cluster_usage")
        state[name] = state[name] / state[usage].clamp(min=1e-5)[:, None]
        state[usage] = torch.ones_like(state[usage])
    state = {name: tensor.detach().to(dtype).cpu().contiguous() for name, tensor in state.items()}
    save_file(state, folder / "model.safetensors")


def restored(folder: Path) -> MimiModel:
    """The codec of any shape that `save` wrote."""
    mimi = build(json.loads((folder / "config.json").read_text()))
    restore(mimi, folder)
    return mimi


def restore(mimi: MimiModel, folder: Path) -> None:
    """Fill from what `save` wrote."""
    from safetensors.torch import load_file

    mimi.load_state_dict(load_file(folder / "model.safetensors"))
    for module in mimi.modules():
        if isinstance(module, EuclideanCodebook):
            module._embedding = None


# The plain way through the weights ------------------------------------------------------------


FLAT = {"use": False}  # convolve as [B, C, 1, T], channels last: faster or not, by device (see tune())


def _flat(x: Tensor) -> Tensor:
    return x.unsqueeze(2).contiguous(memory_format=torch.channels_last)


def _conv(module: StreamingConv1d, x: Tensor) -> Tensor:
    conv = module.conv.conv
    left = (conv.kernel_size[0] - 1) * conv.dilation[0] + 1 - conv.stride[0]
    if left:
        x = F.pad(x, (left, 0), mode="replicate" if module.pad_mode == "replicate" else "constant")
    if FLAT["use"]:
        stride, dilation = (1, *conv.stride), (1, *conv.dilation)
        return F.conv2d(_flat(x), _flat(conv.weight), conv.bias, stride, 0, dilation, conv.groups).squeeze(2)
    return F.conv1d(x, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)


def _conv_transpose(module: StreamingConvTranspose1d, x: Tensor) -> Tensor:
    conv = module.convtr.convtr
    if FLAT["use"]:
        stride = (1, *conv.stride)
        y = F.conv_transpose2d(_flat(x), _flat(conv.weight), conv.bias, stride, groups=conv.groups).squeeze(2)
    else:
        y = F.conv_transpose1d(x, conv.weight, conv.bias, conv.stride, groups=conv.groups)
    return y[..., : x.shape[-1] * conv.stride[0]]


def tune(mimi: MimiModel, batch: int, frames: int) -> bool:
    """Choose the fastest way to convolve on this GPU. Returns whether bf16 pays (a third faster at least).

    Timed as CUDA graphs, as the training runs: launched one by one, all ways take as long as the launches.
    """
    device, times = next(mimi.parameters()).device, {}
    if device.type != "cuda":
        return False
    audio = torch.randn(batch, 1, frames * FRAME_SAMPLES, device=device) * 0.1

    def step(bf16: bool) -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            made = waveform(mimi, latent(mimi, audio))
        made.float().square().mean().backward()

    for flat, bf16 in ((False, False), (True, False), (True, True)):
        FLAT["use"] = flat
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                mimi.zero_grad(set_to_none=True)
                step(bf16)
        torch.cuda.synchronize()
        mimi.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step(bf16)
        torch.cuda.synchronize()
        began = time.monotonic()
        for _ in range(5):
            graph.replay()
        torch.cuda.synchronize()
        times[flat, bf16] = (time.monotonic() - began) / 5
        mimi.zero_grad(set_to_none=True)
        print(f"flat {flat} bf16 {bf16}: {times[flat, bf16] * 1e3:.1f} ms", flush=True)
    FLAT["use"] = times[True, False] < times[False, False]
    if times[True, True] * 1.33 < times[FLAT["use"], False]:
        FLAT["use"] = True
        return True
    return False


def _seanet(layers: nn.Sequential, x: Tensor) -> Tensor:
    for layer in layers:
        if isinstance(layer, StreamingConv1d):
            x = _conv(layer, x)
        elif isinstance(layer, StreamingConvTranspose1d):
            x = _conv_transpose(layer, x)
        elif isinstance(layer, SEANetResnetBlock):
            x = x + _seanet(layer.block, x)
        else:
            x = layer(x)
    return x


def _transformer(projected: nn.Module, x: Tensor) -> Tensor:
    """[B, C, T] -> [B, C, T]; causal, so many steps back as its context says."""
    stack = projected.transformer
    x = x.transpose(1, 2)
    b, t, c = x.shape
    heads, context = stack.layers[0].self_attn.num_heads, stack.layers[0].self_attn.context
    half = c // heads // 2
    steps = torch.arange(t, device=x.device)
    rates = torch.exp(torch.arange(half, device=x.device) * (-math.log(stack.max_period) / half))
    cos, sin = torch.cos(rates * steps[:, None]), torch.sin(rates * steps[:, None])
    delta = steps[:, None] - steps
    mask = (delta >= 0) & (delta < context)

    def turn(q: Tensor) -> Tensor:
        real, imaginary = q.unflatten(-1, (half, 2)).float().unbind(-1)
        turned = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], -1)
        return turned.flatten(-2).to(q.dtype)

    for layer in stack.layers:
        attention = layer.self_attn
        q, k, v = attention.in_projs[0](layer.norm1(x)).view(b, t, 3, heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(turn(q), turn(k), v, mask)
        x = x + layer.layer_scale_1(attention.out_projs[0](y.transpose(1, 2).reshape(b, t, c)))
        x = x + layer.layer_scale_2(layer.linear2(layer.activation(layer.linear1(layer.norm2(x)))))
    return x.transpose(1, 2)


def latent(mimi: MimiModel, audio: Tensor) -> Tensor:
    """audio [B, 1, S], S a multiple of 1920 -> latent [B, C, S / 1920]."""
    x = _seanet(mimi.encoder.model, audio)
    return _conv(mimi.downsample.conv, _transformer(mimi.encoder_transformer, x))


def waveform(mimi: MimiModel, x: Tensor) -> Tensor:
    """Quantised latent [B, C, T] -> audio [B, 1, T * 1920]."""
    x = _transformer(mimi.decoder_transformer, _conv_transpose(mimi.upsample.convtr, x))
    return _seanet(mimi.decoder.model, x)


def check() -> None:
    """The plain functions against moshi's own encode and decode."""
    torch.manual_seed(0)
    mimi = build()
    initialise(mimi)
    audio = torch.randn(2, 1, FRAME_SAMPLES * 70) * 0.1
    with torch.no_grad():
        books = Codebooks(mimi)
        x = latent(mimi, audio)
        books.seed(torch.randn(1, x.shape[1], 4096) * x.std())
        for book in [layer._codebook for rvq in (books.first, books.rest) for layer in rvq.vq.layers]:
            book._embedding = None
        quantised, _, _, codes = books(x, None, update=False)
        print("latent std", x.std().item(), "audio std", waveform(mimi, quantised).std().item())
        print("latent", (x - mimi.encode_to_latent(audio, quantize=False)).abs().max().item())
        print("codes equal", (codes == mimi.encode(audio)).float().mean().item())
        print("audio", (waveform(mimi, quantised) - mimi.decode(codes)).abs().max().item())
        print("parameters", sum(p.numel() for p in mimi.parameters()), sum(b.numel() for b in mimi.buffers()))


if __name__ == "__main__":
    check()
