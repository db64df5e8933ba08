"""Speak sentences with trained weights, one at a time on a CPU core, and write WAVs: the held-out sentences, or the texts of
a file (a JSON list).

python sample.py --generator FOLDER --mimi FOLDER --out FOLDER [--texts FILE] [--speakers 0 1 2 3] [--every 7] [--workers 12]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from codebooks import Codebooks
from codec import restored, waveform
from generator import Generator, Settings, turn
from safetensors.torch import load_file
from text import HELD_OUT
from tokenizer import make, segment
from torch import Tensor


class Stack:
    """A Llama stack with a growing cache, batch 1."""

    def __init__(self, llama):
        self.llama, self.keys, self.values, self.at = llama, [None] * 99, [None] * 99, 0

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, D], the next T rows -> hidden [T, D]. T > 1 only at the start."""
        llama, t = self.llama, len(x)
        cos, sin = llama.cos[self.at : self.at + t], llama.sin[self.at : self.at + t]
        for i, layer in enumerate(llama.layers):
            a = layer.attn
            y = layer.sa_norm(x)
            q, k, v = (p(y).view(t, a.heads, -1).transpose(0, 1) for p in (a.q_proj, a.k_proj, a.v_proj))
            q, k = turn(q[None], cos, sin)[0], turn(k[None], cos, sin)[0]
            if self.at:
                k, v = torch.cat([self.keys[i], k], 1), torch.cat([self.values[i], v], 1)
            self.keys[i], self.values[i] = k, v
            y = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=self.at == 0)[0]
            x = x + a.output_proj(y.transpose(0, 1).reshape(t, -1))
            x = x + layer.mlp(layer.mlp_norm(x))
        self.at += t
        return llama.norm(x)


def pick(logits: Tensor, temperature: float, top_k: int, draw: torch.Generator) -> int:
    logits = logits[:1024].float() / temperature
    floor = logits.topk(top_k).values[-1]
    return int(torch.multinomial(logits.masked_fill(logits < floor, -torch.inf).softmax(-1), 1, generator=draw))


@torch.no_grad()
def speak(
    model: Generator, rows: list, temperature: list[float], top_k: int, seed: int, limit: int = 250
) -> tuple[np.ndarray, bool]:
    """rows: prompt, (text id or frame) each -> codes [T, K] and whether it ended by itself."""
    draw = torch.Generator().manual_seed(seed)
    k = model.settings.codebooks
    codes = torch.tensor([[-1] * k if isinstance(r, int) else list(r) for r in rows])
    text = torch.tensor([r if isinstance(r, int) else -1 for r in rows])
    backbone, x, frames = Stack(model.backbone), model.embed(codes, text), []
    while len(frames) < limit:
        hidden = backbone(x)[-1:]
        frame = [pick(model.codebook0_head(hidden)[0], temperature[0], top_k, draw)]
        depth = Stack(model.decoder)
        first = model.audio_embeddings(torch.tensor([frame[0]]))
        out = depth(model.projection(torch.cat([hidden, first])))[-1:]
        for i in range(1, k):
            frame.append(pick((out @ model.audio_head[i - 1])[0], temperature[1], top_k, draw))
            if i < k - 1:
                known = model.audio_embeddings(torch.tensor([frame[-1] + int(model.offsets[i])]))
                out = depth(model.projection(known))
        if not any(frame):
            return np.array(frames).reshape(-1, k), True
        frames.append(frame)
        x = model.embed(torch.tensor([frame]), torch.tensor([-1]))
    return np.array(frames), False


def load(folder: Path) -> Generator:
    model = Generator(Settings()).eval()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()})
    return model


def say(args: argparse.Namespace, worker: int) -> None:
    """This worker's share of the texts. Writes WAVs and report-N.json."""
    torch.set_num_threads(1)
    model, tokenizer, mimi = load(args.generator), make(), restored(args.mimi)
    books = Codebooks(mimi)
    tables = [[layer._codebook.embedding for layer in rvq.vq.layers] for rvq in (books.first, books.rest)]
    texts = json.loads(args.texts.read_text()) if args.texts else HELD_OUT
    report = []
    jobs = [(speaker, i) for i in range(0, len(texts), args.every) for speaker in args.speakers]
    if args.turns:  # each text by one speaker
        jobs = [(args.speakers[i % len(args.speakers)], i) for i in range(0, len(texts), args.every)]
    for speaker, i in jobs[worker :: args.workers]:
        codes, by_itself = speak(
            model, segment(tokenizer, speaker, texts[i]), args.temperature, args.top_k, i, args.limit
        )
        report.append({"speaker": speaker, "sentence": i, "frames": len(codes), "ended": by_itself})
        if not len(codes):
            continue
        with torch.no_grad():
            c = torch.from_numpy(codes)
            x = books.first.output_proj(tables[0][0][c[:, 0]].T[None])
            x = x + books.rest.output_proj(sum(t[c[:, j + 1]] for j, t in enumerate(tables[1])).T[None])
            audio = waveform(mimi, x)[0, 0].clamp(-1, 1).numpy()
        np.save(args.out / f"{speaker}_{i}.npy", codes.astype(np.int16))
        soundfile.write(args.out / f"{speaker}_{i}.wav", audio, 24000)
    (args.out / f"report-{worker}.json").write_text(json.dumps(report))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", type=Path, required=True)
    parser.add_argument("--mimi", type=Path, required=True, help="the codec: config.json, model.safetensors")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--texts", type=Path, help="a JSON list of texts")
    parser.add_argument("--turns", action="store_true", help="the speakers take turns: each text once")
    parser.add_argument("--speakers", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--limit", type=int, default=320, help="frames")
    parser.add_argument("--temperature", type=float, nargs=2, default=[0.7, 0.7], help="of codebook 0, of the others")
    parser.add_argument("--top-k", type=int, default=50)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    if args.workers == 1:
        say(args, 0)
    else:
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=say, args=(args, i)) for i in range(args.workers)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    report = [row for path in sorted(args.out.glob("report-*.json")) for row in json.loads(path.read_text())]
    ended, frames = (sum(row[key] for row in report) for key in ("ended", "frames"))
    print(
        f"{len(report)} utterances, {ended} ended by themselves, {frames * 0.08:.0f} s in {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
