"""Train the codec in two stages.

full     encoder, codebooks and decoder on multi-resolution log-mel distance; a linear classifier
         reads phonemes off codebook 0, which makes it the semantic one. The first steps run
         without quantisation, then k-means seeds the codebooks. With --judged, against a
         discriminator too.
decoder  encoder and codebooks frozen (tokens can be made meanwhile); the decoder alone against a
         discriminator, with an exponential average of its weights kept as the result.

    python codec_train.py full --speech /tmp/voice/speech --out /tmp/voice/codec --seconds 280
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from bank import Bank
from codec import CONFIG, Codebooks, build, initialise, latent, restore, save, tune, waveform
from discriminator import Discriminator, fool_loss, judge_loss
from stepper import Clock, Log, Replayed, replace
from torch import Tensor, nn

PHONES = 178
LABELS = 32  # a crop: 32 labels of 40 ms = 16 frames = 1.28 s
PLAIN_STEPS = 400


class MelDistance(nn.Module):
    """Mean L1 distance of natural-log mel spectra over four resolutions."""

    SCALES = ((256, 32), (512, 64), (1024, 80), (2048, 128))

    def __init__(self):
        super().__init__()
        for n_fft, mels in self.SCALES:
            self.register_buffer(f"window{n_fft}", torch.hann_window(n_fft))
            self.register_buffer(f"bank{n_fft}", mel_bank(n_fft, mels))

    def mel(self, audio: Tensor, n_fft: int, window: Tensor, bank: Tensor) -> Tensor:
        z = torch.stft(audio, n_fft, n_fft // 4, window=window, return_complex=True)
        power = z.real**2 + z.imag**2 + 1e-9
        return (bank @ power.sqrt()).clamp(min=2e-3).log()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """a, b [B, 1, S]."""
        total = []
        for n_fft, _ in self.SCALES:
            window, bank = getattr(self, f"window{n_fft}"), getattr(self, f"bank{n_fft}")
            x, y = (self.mel(audio[:, 0], n_fft, window, bank) for audio in (a, b))
            total.append((x - y).abs().mean())
        return torch.stack(total).mean()


def mel_bank(n_fft: int, mels: int, rate_hz: int = 24000) -> Tensor:
    """Triangular filters [mels, n_fft / 2 + 1], HTK scale."""
    top = 2595 * torch.log10(torch.tensor(1 + rate_hz / 2 / 700))
    edges = 700 * (10 ** (torch.linspace(0, float(top), mels + 2) / 2595) - 1)
    bins = torch.linspace(0, rate_hz / 2, n_fft // 2 + 1)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    bank = torch.minimum(rise, fall).clamp(min=0)
    return bank / bank.sum(1, keepdim=True).clamp(min=0.25)


class Trainer:
    def __init__(self, args: argparse.Namespace):
        self.args, self.device = args, args.device
        torch.manual_seed(args.seed)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = False  # on, it spends 26 s on its choice and gains nothing
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.mimi = build(CONFIG).to(self.device)
        initialise(self.mimi)
        self.bf16 = tune(self.mimi, args.batch, LABELS // 2)
        self.heads = nn.Linear(CONFIG["seanet"]["dimension"], 2 * PHONES).to(self.device)
        self.distance = MelDistance().to(self.device)
        self.books = Codebooks(self.mimi)
        self.bank = Bank(args.speech, args.hours, self.device)
        self.path = args.out / "codec.pt"
        self.step, self.rate = 0, torch.zeros((), device=self.device)

    def autocast(self):
        return torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.bf16)

    def optimizer_of(self, parameters) -> torch.optim.AdamW:
        on_gpu = self.device.startswith("cuda")
        options = {"betas": (0.8, 0.99), "weight_decay": 1e-3, "capturable": on_gpu, "foreach": on_gpu}
        return torch.optim.AdamW(parameters, lr=self.rate, **options)

    def call_judge(self) -> None:
        args = self.args
        judge = Discriminator(args.windows, args.periods, args.width)
        self.judge = judge.to(self.device).to(memory_format=torch.channels_last)
        self.judge_optimizer = self.optimizer_of(self.judge.parameters())
        self.weight = torch.zeros((), device=self.device)  # of what it says

    # full -------------------------------------------------------------------------------------

    def full_step(self, quantise: bool) -> Tensor:
        audio, phones = self.bank.crops(self.args.batch, LABELS)
        with self.autocast():
            x = latent(self.mimi, audio)
        x = x.float()
        if quantise:
            keep = torch.randint(1, 33, (len(x),), device=x.device)  # three quarters of the batch use all
            x, semantic, commitment, _ = self.books(x, keep, update=True)
        else:
            semantic = self.mimi.quantizer.rvq_first.output_proj(self.mimi.quantizer.rvq_first.input_proj(x))
            rest = self.mimi.quantizer.rvq_rest
            x = semantic + rest.output_proj(rest.input_proj(x))
            commitment = x.new_zeros(())
        with self.autocast():
            made = waveform(self.mimi, x)
        made = made.float()
        logits = self.heads(semantic.transpose(1, 2)).unflatten(-1, (2, PHONES))  # [B, T, 2, PHONES]
        phone_loss = F.cross_entropy(logits.flatten(0, 2), phones.flatten())
        mel = self.distance(audio, made)
        l1 = (audio - made).abs().mean()
        loss = self.args.mel * mel + self.args.wave * l1 + 0.25 * commitment + 0.5 * phone_loss
        said = [mel.new_zeros(())] * 3
        if quantise and self.args.judged:
            said = self.against(audio, made)
            loss = loss + self.weight * (said[1] + 4 * said[2])
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 20.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        hit = (logits.flatten(0, 2).argmax(-1) == phones.flatten()).float().mean()
        return torch.stack([mel, l1, commitment, phone_loss, hit, *said]).detach()

    def full(self) -> None:
        args = self.args
        self.parameters = [*self.mimi.parameters(), *self.heads.parameters()]
        self.optimizer = self.optimizer_of(self.parameters)
        if args.judged:
            self.call_judge()
        self.bank.wait_for(args.least_hours)
        self.bank.watch()
        log = Log(args.out / "codec_full.jsonl", ["mel", "l1", "commit", "phone", "phone_hit", "judge", "fool", "match"])
        clock = Clock(args.seconds, self.resume_full())
        quantised = Replayed(lambda: self.full_step(quantise=True), capture=args.graph)
        while clock.done < 1:
            self.rate.fill_(clock.rate(self.step, args.peak, 100))
            if args.judged:
                self.weight.fill_(min(1.0, max(0, self.step - args.plain_steps) / 500))  # let the judge learn first
            if self.step == args.plain_steps:
                with torch.no_grad():
                    crops = [latent(self.mimi, self.bank.crops(args.batch, LABELS)[0]) for _ in range(24)]
                self.books.seed(torch.cat(crops).transpose(0, 1).reshape(1, crops[0].shape[1], -1))
                self.books.level(args.batch * LABELS / 2)
            figures = quantised() if self.step >= args.plain_steps else self.full_step(quantise=False)
            self.step += 1
            if self.step % args.report == 0:
                log(self.step, figures, spent_s=round(clock.spent_s, 1), hours=round(self.bank.labels / 90000, 2))
            if self.step % args.keep == 0:
                self.store_full(clock)
        self.store_full(clock)
        self.books.free_zero()
        save(self.mimi, args.out / "mimi")
        (args.out / "done").touch()

    def resume_full(self) -> float:
        """Take up a broken run, or begin from a finished codec (--start). Returns the seconds spent already."""
        args = self.args
        if args.start:
            args.plain_steps, self.step = 0, 1  # quantised from the beginning, past the seeding
        if self.path.exists():
            state = torch.load(self.path, map_location=self.device)
            self.mimi.load_state_dict(state["mimi"])
            self.heads.load_state_dict(state["heads"])
            self.load_optimizer(self.optimizer, state["optimizer"])
            if args.judged:
                self.judge.load_state_dict(state["judge"])
                self.load_optimizer(self.judge_optimizer, state["judge_optimizer"])
            self.step = state["step"]
            return state["spent_s"]
        if args.start:
            restore(self.mimi, args.start / "mimi")
            self.books.level(args.batch * LABELS / 2)  # a bundle's tables carry no counts
        return 0.0

    def store_full(self, clock: Clock) -> None:
        state = {"mimi": self.mimi.state_dict(), "heads": self.heads.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.args.judged:
            state |= {"judge": self.judge.state_dict(), "judge_optimizer": self.judge_optimizer.state_dict()}
            save(self.mimi, self.args.out / "mimi")
        replace(self.path, state | {"step": self.step, "spent_s": clock.spent_s})

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict) -> None:
        optimizer.load_state_dict(state)
        for group in optimizer.param_groups:
            group["lr"] = self.rate

    # decoder ----------------------------------------------------------------------------------

    def decoder_step(self) -> Tensor:
        audio, _ = self.bank.crops(self.args.batch, LABELS)
        with torch.no_grad():
            with self.autocast():
                x = latent(self.mimi, audio)
            x = self.books(x.float(), None, update=False)[0]
        with self.autocast():
            made = waveform(self.mimi, x)
        made = made.float()
        loss, fool, match = self.against(audio, made)
        mel = self.distance(audio, made)
        total = self.args.mel * mel + self.weight * (fool + 4 * match)
        total.backward()
        nn.utils.clip_grad_norm_(self.parameters, 20.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(self.average, self.parameters, 0.002)
        return torch.stack([mel, loss, fool, match]).detach()

    def against(self, audio: Tensor, made: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of the discriminators; their loss, and what they then say of `made`: fooled, features apart."""
        judged = self.judged(torch.cat([audio, made.detach()]))
        real, fake = [(v[: len(audio)], None) for v, _ in judged], [(v[len(audio) :], None) for v, _ in judged]
        loss = judge_loss(real, fake)
        loss.backward()
        self.judge_optimizer.step()
        self.judge_optimizer.zero_grad(set_to_none=True)
        self.judge.requires_grad_(False)
        with torch.no_grad():
            real = self.judged(audio)
        fake = self.judged(made)
        self.judge.requires_grad_(True)
        fool, match = fool_loss(real, fake)
        return loss.detach(), fool, match

    def judged(self, audio: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.device.startswith("cuda")):
            return self.judge(audio)

    def decoder(self) -> None:
        args = self.args
        restore(self.mimi, args.full / "mimi")
        parts = (self.mimi.decoder, self.mimi.decoder_transformer, self.mimi.upsample)
        self.mimi.requires_grad_(False)
        self.parameters = [p for part in parts for p in part.parameters()]
        self.parameters += [self.mimi.quantizer.rvq_first.output_proj.weight, self.mimi.quantizer.rvq_rest.output_proj.weight]
        for p in self.parameters:
            p.requires_grad_(True)
        spent_s = 0.0
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = self.optimizer_of(self.parameters)
        self.call_judge()
        if self.path.exists():
            state = torch.load(self.path, map_location=self.device)
            with torch.no_grad():
                for p, saved, kept, average in zip(self.parameters, state["live"], self.average, state["average"], strict=True):
                    p.copy_(saved)
                    kept.copy_(average)
            self.judge.load_state_dict(state["judge"])
            for optimizer, kept in zip((self.optimizer, self.judge_optimizer), state["optimizers"], strict=True):
                self.load_optimizer(optimizer, kept)
            self.step, spent_s = state["step"], state["spent_s"]
        self.bank.wait_for(args.least_hours)
        self.bank.watch()
        clock = Clock(args.seconds, spent_s)
        log = Log(args.out / "codec_decoder.jsonl", ["mel", "judge", "fool", "match"])
        step = Replayed(self.decoder_step, capture=args.graph)
        while clock.done < 1:
            self.rate.fill_(clock.rate(self.step, args.peak, 200))
            self.weight.fill_(min(1.0, self.step / 500))  # let the judge learn first
            figures = step()
            self.step += 1
            if self.step % args.report == 0:
                log(self.step, figures, spent_s=round(clock.spent_s, 1))
            if self.step % args.keep == 0:
                self.store_decoder(clock)
        self.store_decoder(clock)
        (args.out / "done").touch()

    def store_decoder(self, clock: Clock) -> None:
        live = [p.detach().clone() for p in self.parameters]
        state = {"live": live, "average": self.average, "judge": self.judge.state_dict()}
        state["optimizers"] = [self.optimizer.state_dict(), self.judge_optimizer.state_dict()]
        replace(self.path, state | {"step": self.step, "spent_s": clock.spent_s})
        with torch.no_grad():
            for p, average in zip(self.parameters, self.average, strict=True):
                p.copy_(average)
            save(self.mimi, self.args.out / "mimi")
            for p, value in zip(self.parameters, live, strict=True):
                p.copy_(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["full", "decoder"])
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--full", type=Path, help="decoder: folder of the finished first stage, or of any finished codec")
    parser.add_argument("--start", type=Path, help="full: folder of a finished codec to go on from")
    parser.add_argument("--graph", action=argparse.BooleanOptionalAction, default=True, help="steps as CUDA graphs, on a GPU")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--peak", type=float, default=8e-4)
    parser.add_argument("--hours", type=float, default=40)
    parser.add_argument("--least-hours", type=float, default=0.4)
    parser.add_argument("--plain-steps", type=int, default=PLAIN_STEPS)
    parser.add_argument("--windows", type=int, nargs="+", default=(2048, 1024, 512, 256), help="discriminators' spectra")
    parser.add_argument("--periods", type=int, nargs="*", default=(2, 3, 5, 7, 11), help="discriminators' foldings")
    parser.add_argument("--width", type=int, default=32, help="channels of a spectrum's discriminator")
    parser.add_argument("--judged", action="store_true", help="full: against a discriminator too")
    parser.add_argument("--mel", type=float, default=15, help="weight of the mel distance")
    parser.add_argument("--wave", type=float, default=1, help="full: weight of the distance of waves")
    parser.add_argument("--report", type=int, default=100)
    parser.add_argument("--keep", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(args)
    trainer.full() if args.stage == "full" else trainer.decoder()


if __name__ == "__main__":
    main()
