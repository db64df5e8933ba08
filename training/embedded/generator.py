"""The generator being trained: CSM under Sesame's parameter names, run over packed sequences.

The serving model (services/backbone/model.py) reads the same weights row by row with caches; this
one reads whole sequences at once. `python generator.py` checks that both give the same logits.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from inspect import signature

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

# torch 2.10 asks by another name than later ones.
CAUSAL = {"window_size": (-1, 0)} if "window_size" in signature(varlen_attn).parameters else {"is_causal": True}
KINDS = 178  # the teacher's phoneme alphabet, for the auxiliary head
OF_CODES = ("audio_embeddings.weight", "codebook0_head.weight", "audio_head")  # weights that know what codes mean


@dataclass(frozen=True)
class Shape:
    """One Llama stack, in the words of bundle.toml."""

    layers: int
    heads: int
    kv_heads: int
    dim: int
    intermediate_dim: int
    max_seq_len: int
    rope_base: float = 500_000
    rope_scale_factor: float = 32
    norm_eps: float = 1e-5


@dataclass(frozen=True)
class Settings:
    backbone: Shape = Shape(8, 6, 6, 288, 736, 1024)
    decoder: Shape = Shape(2, 5, 5, 160, 448, 11)
    text_vocab_size: int = 260
    audio_vocab_size: int = 1027
    codebooks: int = 10

    def config(self) -> dict:
        """Sesame's config.json; shapes without a flavour name are spelled out, as the backbone service reads them."""
        names = ("layers", "heads", "kv_heads", "dim", "intermediate_dim")
        config = {
            "audio_num_codebooks": self.codebooks,
            "audio_vocab_size": self.audio_vocab_size,
            "text_vocab_size": self.text_vocab_size,
        }
        for stack in ("backbone", "decoder"):
            config[f"{stack}_flavor"] = "custom"
            config[f"{stack}_shape"] = {name: getattr(getattr(self, stack), name) for name in names}
        return config


@dataclass(frozen=True)
class Packed:
    """Documents one behind the other, each causal and blind to the others. ends: int32, from 0 to the number of all
    rows, the last one repeated at will. longest: rows. For a GPU in half precision."""

    ends: Tensor
    longest: int


def packed_attention(q: Tensor, k: Tensor, v: Tensor, documents: Packed) -> Tensor:
    """q, k, v [B, T, H, hd] -> [B, T, H, hd]; B * T rows."""
    rows = (x.flatten(0, 1).to(torch.bfloat16) for x in (q, k, v))
    ends, longest = documents.ends, documents.longest
    return varlen_attn(*rows, ends, ends, longest, longest, **CAUSAL).unflatten(0, q.shape[:2])


def short_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention over a handful of rows, [..., T, hd]. To be compiled: it becomes a few kernels without large
    intermediates, where the library's own would fill a sixteenth of its tiles (a third of a training step)."""
    causal = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool, device=q.device).tril()
    scores = (q[..., :, None, :].float() * k[..., None, :, :].float()).sum(-1) * q.shape[-1] ** -0.5
    shares = scores.masked_fill(~causal, -torch.inf).softmax(-1)
    return (shares[..., None] * v[..., None, :, :].float()).sum(-2).to(v.dtype)


class Norm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.scale.float(), self.eps).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.heads = shape.heads
        for name in ("q_proj", "k_proj", "v_proj", "output_proj"):
            setattr(self, name, nn.Linear(shape.dim, shape.dim, bias=False))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | Packed | None) -> Tensor:
        b, t, d = x.shape
        q, k, v = (project(x).view(b, t, self.heads, -1) for project in (self.q_proj, self.k_proj, self.v_proj))
        if isinstance(mask, Packed):
            q, k = turn(q, cos[:, None], sin[:, None]), turn(k, cos[:, None], sin[:, None])
            return self.output_proj(packed_attention(q, k, v, mask).reshape(b, t, d))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        q, k = turn(q, cos, sin), turn(k, cos, sin)
        if mask is None and torch.compiler.is_compiling():
            y = short_attention(q, k, v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
        return self.output_proj(y.transpose(1, 2).reshape(b, t, d))


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate interleaved pairs, as torchtune does. x [B, H, T, hd]; cos, sin [T, hd / 2] (or x [B, T, H, hd] and
    cos, sin [T, 1, hd / 2])."""
    a, b = x.unflatten(-1, (-1, 2)).float().unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2).to(x.dtype)


class Gated(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.w1 = nn.Linear(shape.dim, shape.intermediate_dim, bias=False)
        self.w2 = nn.Linear(shape.intermediate_dim, shape.dim, bias=False)
        self.w3 = nn.Linear(shape.dim, shape.intermediate_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Layer(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.sa_norm, self.mlp_norm = Norm(shape.dim, shape.norm_eps), Norm(shape.dim, shape.norm_eps)
        self.attn, self.mlp = Attention(shape), Gated(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | Packed | None, dropout: float) -> Tensor:
        x = x + F.dropout(self.attn(self.sa_norm(x), cos, sin, mask), dropout, self.training)
        return x + F.dropout(self.mlp(self.mlp_norm(x)), dropout, self.training)


class Llama(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.dim, shape.norm_eps)
        angles = torch.arange(shape.max_seq_len)[:, None] * frequencies(shape)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | Packed | None = None, dropout: float = 0.0) -> Tensor:
        """x [B, T, D]; mask [B, 1, T, T] bool, or Packed, None for plain causal."""
        cos, sin = self.cos[: x.shape[1]], self.sin[: x.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin, mask, dropout)
        return self.norm(x)


def frequencies(shape: Shape) -> Tensor:
    """Llama 3's scaled rotary frequencies [hd / 2] (low 1, high 4, 8192 positions)."""
    size = shape.dim // shape.heads
    plain = 1.0 / shape.rope_base ** (torch.arange(0, size, 2).float() / size)
    wave = 2 * math.pi / plain
    blend = ((8192 / wave - 1) / 3).clamp(0, 1)
    return plain * (blend + (1 - blend) / shape.rope_scale_factor)


class Generator(nn.Module):
    def __init__(self, settings: Settings):
        super().__init__()
        self.settings = settings
        wide, narrow = settings.backbone.dim, settings.decoder.dim
        self.backbone, self.decoder = Llama(settings.backbone), Llama(settings.decoder)
        self.text_embeddings = nn.Embedding(settings.text_vocab_size, wide)
        self.audio_embeddings = nn.Embedding(settings.audio_vocab_size * settings.codebooks, wide)
        self.projection = nn.Linear(wide, narrow, bias=False)
        self.codebook0_head = nn.Linear(wide, settings.audio_vocab_size, bias=False)
        self.audio_head = nn.Parameter(torch.empty(settings.codebooks - 1, narrow, settings.audio_vocab_size))
        offsets = torch.arange(settings.codebooks) * settings.audio_vocab_size
        self.register_buffer("offsets", offsets, persistent=False)

    @torch.no_grad()
    def initialise(self) -> None:
        """N(0, 0.02)-like, scaled to the width; residual outputs smaller with depth."""
        for name, parameter in self.named_parameters():
            if name.endswith("scale"):
                continue
            fan_in = parameter.shape[1] if name == "audio_head" else parameter.shape[-1]
            std = fan_in**-0.5
            if "embeddings" in name:
                std = 0.5 if name.startswith("text") else 0.25
            if name.endswith(("output_proj.weight", "w2.weight")):
                stack = self.settings.backbone if name.startswith("backbone") else self.settings.decoder
                std /= math.sqrt(2 * stack.layers)
            if "head" in name:
                std *= 0.5
            parameter.normal_(0, std)

    @torch.no_grad()
    def take(self, known: dict[str, Tensor], codes: bool = True) -> list[str]:
        """Fill from a generator of fewer codebooks and of another depth decoder: what has a place here is taken over, the
        embeddings of new codebooks begin small, so that frames mean what they did. codes: weights that know what codes
        mean, too. Returns: what begins from nothing."""
        fresh = []
        for name, value in self.state_dict().items():
            part = known.get(name)
            if part is None or (name in OF_CODES and not codes):
                fresh.append(name)
                continue
            if name == "audio_embeddings.weight":
                value[len(part) :] *= 0.1
            value[tuple(slice(size) for size in part.shape)] = part.to(value)
            if part.shape != value.shape:
                fresh.append(f"{name} beyond {list(part.shape)}")
        return fresh

    def embed(self, codes: Tensor, text: Tensor) -> Tensor:
        """codes [..., K], -1 on text rows; text [...], -1 on audio rows -> [..., D]."""
        audio = self.audio_embeddings(codes.clamp(min=0) + self.offsets).sum(-2) * (codes[..., :1] >= 0)
        return audio + self.text_embeddings(text.clamp(min=0)) * (text[..., None] >= 0)

    def depth(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """hidden [N, D] and the frame it leads to, codes [N, K] -> logits [N, K - 1, V] of codebooks 1 … K-1."""
        known = self.audio_embeddings(codes[:, :-1] + self.offsets[:-1])
        rows = self.projection(torch.cat([hidden[:, None], known], 1))
        out = self.decoder(rows)[:, 1:]
        return torch.einsum("nkd,kdv->nkv", out, self.audio_head.to(out.dtype))


def check() -> None:
    """Logits of this module against the serving model's, random weights."""
    from models.bundle import GeneratorPart, LlamaShape
    from services.backbone.model import CsmModel, build_model, rope_table
    from services.backbone.transformer import Transformer, attention

    torch.manual_seed(0)
    ours = Generator(Settings()).eval()
    ours.initialise()
    s = ours.settings
    shapes = {name: LlamaShape(**asdict(getattr(s, name))) for name in ("backbone", "decoder")}
    fields = GeneratorPart.__dataclass_fields__
    extra = {"sources": (), "folder": None}
    part = GeneratorPart(
        text_vocab_size=s.text_vocab_size,
        audio_vocab_size=s.audio_vocab_size,
        codebooks=s.codebooks,
        **shapes,
        **{key: value for key, value in extra.items() if key in fields},
    )
    theirs: CsmModel = build_model(part)
    theirs.load_state_dict(ours.state_dict(), assign=True)
    codes = torch.randint(0, 1024, (20, s.codebooks))
    text = torch.full((20,), -1)
    text[:8], codes[:8] = torch.randint(0, 256, (8,)), -1
    with torch.no_grad():
        hidden = ours.backbone(ours.embed(codes, text)[None])[0]
        rows = torch.cat([codes.clamp(min=0), text.clamp(min=0)[:, None]], 1)
        mask = torch.cat([(codes >= 0), (text >= 0)[:, None]], 1)
        embedded = theirs.embed_rows(rows, mask)
        stack = Transformer(theirs.backbone, shapes["backbone"], rope_table(shapes["backbone"], "cpu"))
        causal = torch.ones(20, 20, dtype=torch.bool).tril()

        def attend(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
            return attention(q, k, v, causal)[0].transpose(0, 1)

        served = stack.forward(embedded, torch.arange(20), attend)
        print("hidden", (hidden - served).abs().max().item(), "of", hidden.abs().max().item())
        print("depth logits", ours.depth(hidden[-2:], codes[-2:]).shape, sum(p.numel() for p in ours.parameters()))


if __name__ == "__main__":
    check()
