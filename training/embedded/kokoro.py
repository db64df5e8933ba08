"""Kokoro-82M in batches: phoneme ids and a voice in, speech and the phonemes' durations out.

The model is StyleTTS 2's prosody predictor and decoder (Li et al. 2023) with an ISTFTNet vocoder, as published under
Apache-2.0; this is its forward pass alone, over the weights that `kokoro_pack.py` wrote. What differs from the
published code is what a GPU needs: utterances of different lengths share a batch, so instance norms count only the
frames that an utterance has and convolutions see zeros behind its end; and the decoder may run in half precision
(fp16: 43 dB from fp32; bf16: 25).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

SAMPLE_RATE_HZ = 24000
UNIT_SAMPLES = 600  # durations are counted in 25 ms
KERNELS, DILATIONS = (3, 7, 11), (1, 3, 5)
UPSAMPLING = ((10, 20), (6, 12))  # rate, kernel
N_FFT, HOP = 20, 5
HARMONICS = 9
FRAME_SAMPLES, STEPS_A_CYCLE = 1920, 2  # see in_step


@dataclass
class Spoken:
    """What the front half knows of one utterance. ids, units: int64 [N], the phonemes and their lengths of 25 ms;
    features [640, N], phonemes [512, N]: for the predictor and for the decoder; style [256]."""

    ids: Tensor
    units: Tensor
    features: Tensor
    phonemes: Tensor
    style: Tensor
    key: object = None

    @property
    def length(self) -> int:
        return int(self.units.sum())


def last(x: Tensor) -> Tensor:
    """Channels last, which is how convolutions are fastest and what the kernels read without a copy."""
    return x.contiguous(memory_format=torch.channels_last)


def moments(x: Tensor, mask: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and 1 / deviation [B, C, 1, 1] of x [B, C, 1, T] over the frames where mask [B, 1, 1, T] is 1."""
    wide = x.float()
    mean = (wide * mask).sum(-1, keepdim=True) / count
    variance = ((wide - mean) ** 2 * mask).sum(-1, keepdim=True) / count
    return mean, (variance + 1e-5).rsqrt()


def snake(x: Tensor, scale: Tensor, shift: Tensor, alpha: Tensor, mask: Tensor) -> Tensor:
    y = x.float() * scale + shift
    return ((y + torch.sin(alpha * y) ** 2 / alpha) * mask).to(x.dtype)


def leaky(x: Tensor, scale: Tensor, shift: Tensor, mask: Tensor) -> Tensor:
    return (F.leaky_relu(x.float() * scale + shift, 0.2) * mask).to(x.dtype)


def in_step(cycles: Tensor) -> Tensor:
    """Phases in cycles, double [B, S], bent so that a multiple of 1 / STEPS_A_CYCLE is reached where frames of the codec begin.

    The bend grows evenly from frame to frame, by half a step at most: 3 Hz with two steps a cycle. What a frame
    sounds like then follows from its pitch and one bit, not from all that was said before: a small codec learns
    phases, and a small generator to predict them. Returns: float [B, S].
    """
    starts = cycles[:, ::FRAME_SAMPLES]
    ahead = (starts * STEPS_A_CYCLE).remainder(1)  # of the step before
    turn = ahead.diff(dim=1)
    bend = torch.cat([ahead[:, :1], ahead[:, :1] + (turn - turn.round()).cumsum(1)], 1) / STEPS_A_CYCLE
    bend = torch.cat([bend, bend[:, -1:]], 1)
    along = torch.arange(FRAME_SAMPLES, device=cycles.device) / FRAME_SAMPLES
    bend = torch.lerp(bend[:, :-1, None], bend[:, 1:, None], along.to(bend.dtype)).flatten(1)
    return (cycles - bend[:, : cycles.shape[1]]).remainder(1).float()


class Kokoro:
    def __init__(self, weights: Path, device: str = "cpu", half: torch.dtype = torch.float32, kernels: bool = False):
        """half: what the decoder's convolutions run in. kernels: what lies between them as Triton kernels."""
        from safetensors.torch import load_file

        packed, self.state = load_file(weights), {}
        for name, value in packed.items():
            if name.endswith((".scale", ".zero")):
                continue
            value = value.float()
            if f"{name}.scale" in packed:
                value = (value - packed[f"{name}.zero"]) * packed[f"{name}.scale"]
            self.state[name] = value.to(device)
        self._round_up()
        self.device, self.half = device, half
        self.voices = {n.removeprefix("voice."): v for n, v in self.state.items() if n.startswith("voice.")}
        for name, value in self.state.items():  # convolutions: as [out, in, 1, k], channels last
            if value.dim() == 3 and not name.startswith(("voice.", "text_encoder.")) and "alpha" not in name:
                kind = half if name.startswith("decoder.") else torch.float32
                self.state[name] = last(value.unsqueeze(2).to(kind))
        self.lstms = {}
        inner = [f"predictor.text_encoder.lstms.{i}" for i in (0, 2, 4)]
        for path in ("text_encoder.lstm", "predictor.lstm", "predictor.shared", *inner):
            module = nn.LSTM(self.state[f"{path}.weight_ih_l0"].shape[1], 256, batch_first=True, bidirectional=True)
            module.load_state_dict({name: self.state[f"{path}.{name}"].cpu() for name in module.state_dict()})
            self.lstms[path] = module.to(device).requires_grad_(False)
        self.window = torch.hann_window(N_FFT, device=device)
        self.moments, self.snake, self.leaky = moments, snake, leaky
        if kernels:
            import kokoro_kernels

            if (difference := kokoro_kernels.agree(device)) > 1e-2:
                raise ValueError(f"the kernels differ from the plain functions by {difference}")
            self.moments, self.snake, self.leaky = kokoro_kernels.moments, kokoro_kernels.snake, kokoro_kernels.leaky

    def _round_up(self) -> None:
        """Give the decoder's tensors a multiple of eight channels, as tensor cores want it: the rest is zero."""
        for name, value in self.state.items():
            if not name.startswith("decoder.") or name.startswith("decoder.generator.m_source"):
                continue
            extra = -value.shape[0] % 8
            if name.endswith(("norm1.fc.weight", "norm1.fc.bias")):  # gammas, betas
                halves = [F.pad(half, (0, 0) * (half.dim() - 1) + (0, -half.shape[0] % 8)) for half in value.chunk(2)]
                self.state[name] = torch.cat(halves)
            elif ".pool." in name or "conv_post" in name:
                value = F.pad(value, (0, 0) * (value.dim() - 1) + (0, extra))
                self.state[name] = value
            elif value.dim() == 3 and value.shape[1] > 8 and "alpha" not in name and ".ups." not in name:
                self.state[name] = F.pad(value, (0, 0, 0, -value.shape[1] % 8))

    # parts ------------------------------------------------------------------------------------

    def linear(self, path: str, x: Tensor) -> Tensor:
        return F.linear(x, self.state[f"{path}.weight"], self.state[f"{path}.bias"])

    def lstm(self, path: str, x: Tensor, lengths: Tensor) -> Tensor:
        """x [B, T, C], lengths int64 [B] on the CPU -> [B, T, 512]; zeros behind the end."""
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.lstms[path](packed)[0], batch_first=True, total_length=x.shape[1])[0]

    def conv(self, path: str, x: Tensor, stride: int = 1, padding: int = 0, dilation: int = 1) -> Tensor:
        weight, bias = self.state[f"{path}.weight"], self.state.get(f"{path}.bias")
        bias = None if bias is None else bias.to(weight.dtype)
        return F.conv2d(x.to(weight.dtype), weight, bias, (1, stride), (0, padding), (1, dilation))

    def norm(self, path: str, x: Tensor, style: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Adaptive instance norm as (scale, shift) [B, C, 1, 1]."""
        mean, deviation = self.moments(x, mask, mask.sum(-1, keepdim=True))
        gamma, beta = self.linear(f"{path}.fc", style)[:, :, None, None].chunk(2, 1)
        scale = (1 + gamma) * deviation
        return scale, beta - mean * scale

    def block(self, path: str, x: Tensor, style: Tensor, mask: Tensor, twice: bool = False) -> tuple[Tensor, Tensor]:
        """Residual block of the predictor and the decoder; `twice` doubles the frame rate. Returns the new mask too."""
        y, after = self.leaky(x, *self.norm(f"{path}.norm1", x, style, mask), mask), mask
        if twice:
            weight, bias = self.state[f"{path}.pool.weight"], self.state[f"{path}.pool.bias"]
            y = F.conv_transpose2d(
                y.to(weight.dtype), weight, bias.to(weight.dtype), (1, 2), (0, 1), (0, 1), groups=y.shape[1]
            )
            after = mask.repeat_interleave(2, -1)
            y, x = y * after.to(y.dtype), x.repeat_interleave(2, -1)
        y = self.conv(f"{path}.conv1", y, padding=1)
        y = self.leaky(y, *self.norm(f"{path}.norm2", y, style, after), after)
        y = self.conv(f"{path}.conv2", y, padding=1)
        if f"{path}.conv1x1.weight" in self.state:
            x = self.conv(f"{path}.conv1x1", x)
        return (x + y) * math.sqrt(0.5), after

    def resblock(self, path: str, x: Tensor, style: Tensor, mask: Tensor, kernel: int) -> Tensor:
        for i, dilation in enumerate(DILATIONS):
            y = x
            for half, spread in ((1, dilation), (2, 1)):
                scale, shift = self.norm(f"{path}.adain{half}.{i}", y, style, mask)
                y = self.snake(y, scale, shift, self.state[f"{path}.alpha{half}.{i}"][:, :, None], mask)
                y = self.conv(f"{path}.convs{half}.{i}", y, 1, (kernel - 1) * spread // 2, spread)
            x = x + y
        return x

    # front ------------------------------------------------------------------------------------

    def bert(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ALBERT: ids [B, N], mask bool [B, N] -> [B, N, 768]. One layer, twelve times."""
        s, path = self.state, "bert.encoder.albert_layer_groups.0.albert_layers.0"

        def normed(x: Tensor, name: str) -> Tensor:
            return F.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], 1e-12)

        x = s["bert.embeddings.word_embeddings.weight"][ids] + s["bert.embeddings.token_type_embeddings.weight"][0]
        x = normed(x + s["bert.embeddings.position_embeddings.weight"][: ids.shape[1]], "bert.embeddings.LayerNorm")
        x = self.linear("bert.encoder.embedding_hidden_mapping_in", x)
        for _ in range(12):
            q, k, v = (
                self.linear(f"{path}.attention.{name}", x).unflatten(-1, (12, 64)).transpose(1, 2)
                for name in ("query", "key", "value")
            )
            y = F.scaled_dot_product_attention(q, k, v, mask[:, None, None]).transpose(1, 2).flatten(2)
            x = normed(x + self.linear(f"{path}.attention.dense", y), f"{path}.attention.LayerNorm")
            y = self.linear(f"{path}.ffn_output", F.gelu(self.linear(f"{path}.ffn", x), approximate="tanh"))
            x = normed(x + y, f"{path}.full_layer_layer_norm")
        return x

    @torch.no_grad()
    def front(
        self, sentences: Sequence[list[int]], voices: Sequence[str], keys: Sequence[object] | None = None
    ) -> list[Spoken]:
        """sentences: phoneme ids, each with its 0 at both ends."""
        lengths = torch.tensor([len(ids) for ids in sentences])
        ids = nn.utils.rnn.pad_sequence([torch.tensor(s) for s in sentences], batch_first=True).to(self.device)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).to(self.device)
        # Row n of a voice is for n + 1 phonemes, the 0 at the ends not counted.
        rows = [min(len(s) - 3, len(self.voices[v]) - 1) for s, v in zip(sentences, voices, strict=True)]
        style = torch.stack([self.voices[v][row] for v, row in zip(voices, rows, strict=True)])
        prosody = style[:, None, 128:].expand(-1, ids.shape[1], -1)
        x = self.linear("bert_encoder", self.bert(ids, mask))
        for i in (0, 2, 4):
            x = self.lstm(f"predictor.text_encoder.lstms.{i}", torch.cat([x, prosody], -1) * mask[..., None], lengths)
            gamma, beta = self.linear(f"predictor.text_encoder.lstms.{i + 1}.fc", style[:, None, 128:]).chunk(2, -1)
            x = F.layer_norm(x, x.shape[-1:]) * (1 + gamma) + beta
        features = torch.cat([x, prosody], -1) * mask[..., None]
        x = self.lstm("predictor.lstm", features, lengths)
        units = self.linear("predictor.duration_proj.linear_layer", x).sigmoid().sum(-1).round().clamp(min=1).long()
        x = self.state["text_encoder.embedding.weight"][ids] * mask[..., None]
        for i in range(3):
            weight, bias = (self.state[f"text_encoder.cnn.{i}.0.{kind}"] for kind in ("weight", "bias"))
            x = F.conv1d(x.transpose(1, 2), weight, bias, padding=2).transpose(1, 2)
            gamma, beta = (self.state[f"text_encoder.cnn.{i}.1.{kind}"] for kind in ("gamma", "beta"))
            x = F.leaky_relu(F.layer_norm(x, x.shape[-1:], gamma, beta), 0.2) * mask[..., None]
        x = self.lstm("text_encoder.lstm", x, lengths)
        counts = units.cpu()
        return [
            Spoken(
                ids[b, :n].cpu(),
                counts[b, :n],
                features[b, :n].T.contiguous(),
                x[b, :n].T.contiguous(),
                style[b],
                keys[b] if keys else None,
            )
            for b, n in enumerate(lengths.tolist())
        ]

    # back -------------------------------------------------------------------------------------

    @torch.no_grad()
    def back(self, batch: Sequence[Spoken], width: int | None = None) -> Tensor:
        """Audio float32 [B, width * 600]; what lies behind an utterance's own length means nothing."""
        lengths = torch.tensor([one.length for one in batch])
        width = width or int(lengths.max())

        def spread(what: str) -> Tensor:
            """Every phoneme for as many units as it lasts: [B, C, width]."""
            each = [getattr(one, what).repeat_interleave(one.units.to(self.device), -1) for one in batch]
            return torch.stack([F.pad(x, (0, width - x.shape[-1])) for x in each])

        features, phonemes = spread("features"), spread("phonemes")
        style = torch.stack([one.style for one in batch])
        own, prosody = style[:, :128], style[:, 128:]
        steps = torch.arange(width)
        mask = (steps < lengths[:, None]).to(self.device, torch.float32)[:, None, None]  # [B, 1, 1, width]
        shared = self.lstm("predictor.shared", features.transpose(1, 2), lengths).transpose(1, 2).unsqueeze(2)
        curves = []
        for name in ("F0", "N"):
            x, m = self.block(f"predictor.{name}.0", shared, prosody, mask)
            x, m = self.block(f"predictor.{name}.1", x, prosody, m, twice=True)
            x, m = self.block(f"predictor.{name}.2", x, prosody, m)
            curves.append(self.conv(f"predictor.{name}_proj", x) * m)
        f0 = curves[0][:, 0, 0]
        lower = [self.conv(f"decoder.{name}_conv", x, 2, 1) for name, x in zip(("F0", "N"), curves, strict=True)]
        asr = last(phonemes.unsqueeze(2).to(self.half))
        lower.append(lower[0].new_zeros(len(batch), 6, 1, width))  # 514 and 1090 channels become 520 and 1096
        x, _ = self.block("decoder.encode", last(torch.cat([asr, *lower], 1)), own, mask)
        rest = [self.conv("decoder.asr_res.0", asr), *lower]
        for i in range(4):
            x, mask = self.block(f"decoder.decode.{i}", last(torch.cat([x, *rest], 1)), own, mask, twice=i == 3)
        return self.vocoder(x, own, f0, mask)

    def vocoder(self, x: Tensor, style: Tensor, f0: Tensor, mask: Tensor) -> Tensor:
        """x [B, 512, 1, 2 T], f0 [B, 2 T] in hertz -> audio [B, 600 T]."""
        path = "decoder.generator"
        ends = mask[:, 0, 0].sum(-1).long() * (UNIT_SAMPLES // 2 // HOP)  # in hops of the last stage
        har = self.source(f0)
        hops = torch.arange(har.shape[-1], device=har.device)
        inside = (hops <= ends[:, None]).float()[:, None, None]
        har = last(F.pad(har * inside, (0, 0, 0, 0, 0, 2)).to(self.half))
        for i, (rate, kernel) in enumerate(UPSAMPLING):
            x = F.leaky_relu(x, 0.1) * mask.to(x.dtype)
            weight, bias = self.state[f"{path}.ups.{i}.weight"], self.state[f"{path}.ups.{i}.bias"]
            x = F.conv_transpose2d(x, weight, bias.to(weight.dtype), (1, rate), (0, (kernel - rate) // 2))
            mask = mask.repeat_interleave(rate, -1)
            if i == 0:
                heard = self.conv(f"{path}.noise_convs.0", har, 6, 3)
            else:
                x, mask = last(F.pad(x, (1, 0, 0, 0), mode="reflect")), inside
                heard = self.conv(f"{path}.noise_convs.1", har)
            x = x + self.resblock(f"{path}.noise_res.{i}", heard, style, mask, (7, 11)[i])
            x = (
                sum(self.resblock(f"{path}.resblocks.{i * 3 + j}", x, style, mask, k) for j, k in enumerate(KERNELS))
                / 3
            )
        x = F.leaky_relu(x) * mask.to(x.dtype)
        x = self.conv(f"{path}.conv_post", x, padding=3)[:, :, 0].float()
        bins = N_FFT // 2 + 1
        spectrum = torch.polar(torch.exp(x[:, :bins]), torch.sin(x[:, bins : 2 * bins]))
        return torch.istft(spectrum, N_FFT, HOP, window=self.window)

    def source(self, f0: Tensor) -> Tensor:
        """Harmonics of f0 [B, P] at 80 Hz, and noise, as magnitudes and phases [B, 22, 1, frames]."""
        hop, p = UNIT_SAMPLES // 2, f0.shape[1]
        # Phase in cycles, linear between the middles of the steps. In double precision, because it only grows.
        cycles = torch.cumsum(f0.double() / SAMPLE_RATE_HZ * hop, 1)
        cycles = torch.cat([cycles[:, :1], cycles, cycles[:, -1:]], 1)
        along = (torch.arange(hop, device=f0.device) + 0.5) / hop
        phase = cycles[:, :-1, None] + cycles.diff(dim=1)[..., None] * along
        phase = in_step(phase.flatten(1)[:, hop // 2 : hop // 2 + p * hop])[..., None]
        voiced = (f0 > 10).float().repeat_interleave(hop, 1)[..., None]
        waves = 0.1 * torch.sin(2 * math.pi * phase * torch.arange(1, HARMONICS + 1, device=f0.device)) * voiced
        waves = waves + torch.randn_like(waves) * (voiced * 0.003 + (1 - voiced) * 0.1 / 3)
        wave = torch.tanh(self.linear("decoder.generator.m_source.l_linear", waves))[..., 0]
        z = torch.stft(wave, N_FFT, HOP, window=self.window, return_complex=True)
        return torch.cat([z.abs(), z.angle()], 1).unsqueeze(2)
