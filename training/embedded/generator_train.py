"""Train the generator on packed token rows.

A sequence of 768 rows holds several documents that do not see each other; a document is one
utterance, or up to three in a row, which is how CSM gets its context. The loss is on codebook 0 of
every frame, on the other codebooks of a share of the frames, and, as a help to alignment, on the
phonemes that sound in the next frame (two linear heads, dropped afterwards).

    python generator_train.py --tokens /tmp/voice/tokens --out /tmp/voice/generator --seconds 800
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from generator import KINDS, Generator, Packed, Settings
from library import DOCUMENTS, LENGTH, Library
from stepper import Clock, Log, Replayed, replace
from torch import Tensor, nn


class Trainer:
    def __init__(self, args: argparse.Namespace):
        self.args, self.device = args, args.device
        torch.manual_seed(args.seed)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.settings = Settings()
        self.model = Generator(self.settings).to(self.device)
        self.model.initialise()
        if args.start:
            from safetensors.torch import load_file

            fresh = self.model.take(load_file(args.start / "model.safetensors"), codes=not args.new_codes)
            print("from scratch:", fresh or "nothing", flush=True)
        self.heads = nn.Linear(self.settings.backbone.dim, 2 * KINDS).to(self.device)
        unheard, heard = slice(None, args.held_out), slice(args.held_out, None)
        self.library = Library(args.tokens, self.device, args.batch, args.seed, args.capacity, heard)
        self.held_out = Library(args.tokens, self.device, args.batch, args.seed, args.batch * LENGTH * 4, unheard)
        self.index = torch.zeros(args.batch, LENGTH, dtype=torch.int64, device=self.device)
        self.marks = torch.zeros(args.batch, LENGTH, dtype=torch.int16, device=self.device)
        ends = torch.arange(args.batch * DOCUMENTS + 1, dtype=torch.int32, device=self.device) * LENGTH
        self.ends = ends.clamp(max=args.batch * LENGTH)
        self.rate = torch.zeros((), device=self.device)
        self.rate_decayless = torch.zeros((), device=self.device)
        self.fade = torch.ones((), device=self.device)  # weight of the auxiliary loss
        self.parameters = [*self.model.parameters(), *self.heads.parameters()]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self.parameters if p.dim() > 1], "weight_decay": 0.05},
                {"params": [p for p in self.parameters if p.dim() == 1], "weight_decay": 0.0},
            ],
            lr=self.rate,
            betas=(0.9, 0.98),
            capturable=self.device.startswith("cuda"),
            **({"fused": True} if self.device.startswith("cuda") else {"foreach": False}),
        )
        self.average = [p.detach().clone() for p in self.model.parameters()]
        self.loss = torch.compile(self.losses) if args.compile else self.losses
        self.path = args.out / "generator.pt"
        self.step = 0

    def losses(self, rows: Tensor, marks: Tensor, ends: Tensor, picked_noise: Tensor) -> tuple[Tensor, ...]:
        """rows [B, T, ROW] int64, marks [B, T], ends of documents -> losses of codebook 0, of the others, of the
        phonemes; hit rate."""
        k = self.settings.codebooks
        codes, text, phones = rows[..., :k], rows[..., k], rows[..., k + 1 :]
        if self.args.packed:
            mask = Packed(ends, LENGTH)
        else:
            same = marks[:, :, None] == marks[:, None]
            mask = (same & torch.ones(LENGTH, LENGTH, dtype=torch.bool, device=rows.device).tril())[:, None]
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.args.bf16):
            x = self.model.embed(codes, text)
            hidden = self.model.backbone(F.dropout(x, self.args.dropout), mask, self.args.dropout)
            # A row is trained to lead to the next one when that is a frame of the same document.
            following = F.pad(codes[:, 1:], (0, 0, 0, 1), value=-1)
            leads = (following[..., 0] >= 0) & (F.pad(marks[:, 1:], (0, 1), value=-2) == marks)
            target = torch.where(leads, following[..., 0], -1)
            logits = self.model.codebook0_head(hidden).float()
            first = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-1)
            hit = ((logits.argmax(-1) == target) & leads).sum() / leads.sum().clamp(min=1)
            heard = F.pad(phones[:, 1:], (0, 0, 0, 1), value=-1)
            heard = torch.where(leads[..., None], heard, -1)
            guess = self.heads(hidden).float().unflatten(-1, (2, KINDS))
            phoneme = F.cross_entropy(guess.flatten(0, 2), heard.flatten(), ignore_index=-1)
            # The depth decoder sees a random share of the frames, and every end frame.
            ends = leads & (following == 0).all(-1)
            score = leads.float() * (1 + picked_noise) + ends.float()
            picked = score.flatten().topk(self.args.batch * LENGTH // self.args.depth_share).indices
            frames = following.flatten(0, 1)[picked]
            known = leads.flatten()[picked]
            depth = self.model.depth(hidden.flatten(0, 1)[picked], frames.clamp(min=0)).float()
            wanted = torch.where(known[:, None], frames[:, 1:], -1)
            others = F.cross_entropy(depth.flatten(0, 1), wanted.flatten(), ignore_index=-1)
        return first, others, phoneme, hit

    def one_step(self, update: bool = True) -> Tensor:
        rows = self.library.rows[self.index.clamp(min=0)].long()
        rows = torch.where((self.index >= 0)[..., None], rows, -1)
        noise = torch.rand(rows.shape[:2], device=self.device)
        first, others, phoneme, hit = self.loss(rows, self.marks, self.ends, noise)
        loss = first + self.args.others * others + self.fade * phoneme
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        if update:
            self.optimizer.step()
            torch._foreach_lerp_(self.average, list(self.model.parameters()), self.args.average)
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack([first, others, phoneme, hit, norm]).detach()

    @torch.no_grad()
    def examine(self) -> None:
        """Print the averaged weights' losses on the shards that training does not see."""
        self.held_out.look()
        if not self.args.held_out or not len(self.held_out.starts):
            return
        live, dropout = [p.detach().clone() for p in self.model.parameters()], self.args.dropout
        torch._foreach_copy_(list(self.model.parameters()), self.average)
        self.args.dropout = 0.0
        index, marks, ends = (torch.from_numpy(a).to(self.device) for a in next(self.held_out.batches()))
        rows = self.held_out.rows[index.clamp(min=0)].long()
        rows = torch.where((index >= 0)[..., None], rows, -1)
        figures = self.losses(rows, marks, ends, torch.rand(rows.shape[:2], device=self.device))
        print("held out, averaged:", [round(figure.item(), 4) for figure in figures], flush=True)
        self.args.dropout = dropout
        torch._foreach_copy_(list(self.model.parameters()), live)

    def run(self) -> None:
        args = self.args
        spent_s = 0.0
        if self.path.exists():
            state = torch.load(self.path, map_location=self.device)
            self.model.load_state_dict(state["model"])
            self.heads.load_state_dict(state["heads"])
            if "optimizer" in state:
                self.optimizer.load_state_dict(state["optimizer"])
                for group in self.optimizer.param_groups:
                    group["lr"] = self.rate
            for kept, average in zip(self.average, state["average"], strict=True):
                kept.copy_(average)
            self.step, spent_s = state["step"], state["spent_s"]
        if args.compile:  # while the tokens are still being made
            self.one_step(update=False)
        while True:
            self.library.look()
            if self.library.used >= args.least_rows:
                break
            if (args.tokens / "stop").exists():
                raise SystemExit(f"no {args.least_rows} rows have come to {args.tokens}")
            time.sleep(0.5)
        clock = Clock(args.seconds, spent_s)
        ready: list = []
        space = threading.Semaphore(24)
        filled = threading.Semaphore(0)

        def pack() -> None:
            for batch in self.library.batches():
                space.acquire()
                tensors = [torch.from_numpy(array) for array in batch]
                ready.append([t.pin_memory() for t in tensors] if torch.cuda.is_available() else tensors)
                filled.release()

        threading.Thread(target=pack, daemon=True).start()
        names = ["codebook0", "others", "phoneme", "hit", "norm"]
        log = Log(args.out / "generator.jsonl", names)
        step = Replayed(self.one_step, capture=args.graph)
        self.model.train()
        while clock.done < 1:
            filled.acquire()
            index, marks, ends = ready.pop(0)
            space.release()
            self.index.copy_(index, non_blocking=True)
            self.marks.copy_(marks, non_blocking=True)
            self.ends.copy_(ends, non_blocking=True)
            self.rate.fill_(clock.rate(self.step, args.peak, args.warm_up))
            self.fade.fill_(max(0.1, 1 - 1.5 * clock.done))
            figures = step()
            self.step += 1
            if self.step % args.report == 0:
                fill = float((marks >= 0).float().mean())
                log(
                    self.step,
                    figures,
                    spent_s=round(clock.spent_s, 1),
                    utterances=len(self.library.starts),
                    epochs=self.library.epochs,
                    fill=round(fill, 3),
                )
            if self.step % args.keep == 0:
                self.store(clock)
                self.examine()
        self.store(clock)
        self.examine()
        (args.out / "done").touch()

    def store(self, clock: Clock) -> None:
        state = {"model": self.model.state_dict(), "heads": self.heads.state_dict(), "average": self.average}
        state |= {"step": self.step, "spent_s": clock.spent_s, "optimizer": self.optimizer.state_dict()}
        replace(self.path, state)
        export(self.model, self.average, self.args.out / "export")


def export(model: Generator, average: list[Tensor], folder: Path) -> None:
    """config.json and bf16 model.safetensors under Sesame's names, from the averaged weights."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name, _ in model.named_parameters()]
    tensors = {n: t.detach().to(torch.bfloat16).cpu().contiguous() for n, t in zip(names, average, strict=True)}
    save_file(tensors, folder / "draft")
    (folder / "draft").replace(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model.settings.config(), indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="folder of exported weights to start from")
    parser.add_argument(
        "--new-codes", action="store_true", help="the codec is another: weights that know its codes start from scratch"
    )
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--batch", type=int, default=32, help="sequences of 768 rows")
    parser.add_argument("--held-out", type=int, default=1, help="first shards that are not trained on")
    parser.add_argument("--peak", type=float, default=1.5e-3)
    parser.add_argument("--warm-up", type=int, default=300)
    parser.add_argument("--dropout", type=float, default=0.1)
    # Half of the rows are frames. At 10 the depth decoder saw a fifth of them, and was then what the model did worst.
    parser.add_argument("--depth-share", type=int, default=2, help="one row in so many goes through the depth decoder")
    parser.add_argument(
        "--others", type=float, default=3.0, help="weight of codebooks 1 … 9, together, against codebook 0"
    )
    parser.add_argument("--average", type=float, default=0.003)
    parser.add_argument("--capacity", type=int, default=60_000_000, help="rows the device may hold")
    parser.add_argument("--least-rows", type=int, default=500_000)
    parser.add_argument("--report", type=int, default=100)
    parser.add_argument("--keep", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=on_gpu)
    parser.add_argument(
        "--packed", action=argparse.BooleanOptionalAction, default=on_gpu, help="attention over documents"
    )
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--graph", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    Trainer(args).run()


if __name__ == "__main__":
    main()
