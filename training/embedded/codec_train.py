"""Train the codec in two stages.

full     encoder, codebooks and decoder on distances of log-mel spectra, of phases (of voiced sounds, below
         3 kHz) and of the texture of noise (above it); a linear classifier
         reads phonemes off codebook 0, which makes it the semantic one. The first steps run
         without quantisation, then k-means seeds the codebooks. After --judged seconds, against a
         discriminator too.
decoder  encoder and codebooks frozen (tokens can be made meanwhile); the decoder alone goes on, with an
         exponential average of its weights kept as the result. With --judged 0, against a discriminator.
both     full, then in the same process decoder, for --decoder-seconds, into --decoder-out.

    python codec_train.py full --speech /tmp/voice/speech --out /tmp/voice/codec --seconds 280
"""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from bank import SAMPLES_PER_LABEL, Bank
from codebooks import Codebooks
from codec import build, grown, initialise, latent, restored, save, tune, waveform
from discriminator import Discriminator, fool_loss, judge_loss
from distances import MelDistance, PhaseDistance, TextureDistance
from listener import Listener
from sibilants import UNVOICED, cuts, measure
from stepper import Clock, Log, Replayed, replace
from torch import Tensor, nn

PHONES = 178
LABELS = 32  # a crop: 32 labels of 40 ms = 16 frames = 1.28 s
PLAIN_STEPS = 1500
TRUSTED_STEPS = 1000  # until the listener and the phoneme classifier count in full


class Trainer:
    def __init__(self, args: argparse.Namespace):
        self.args, self.device = args, args.device
        torch.manual_seed(args.seed)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = False  # on, it spends 26 s on its choice and gains nothing
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.new_books = 0
        if args.full:
            self.mimi = restored(args.full / "mimi")
        elif args.start:
            self.mimi, self.new_books = grown(args.start / "mimi")
        else:
            self.mimi = build()
            initialise(self.mimi)
        self.mimi.to(self.device)
        self.bf16 = tune(self.mimi, args.batch, LABELS // 2)
        self.heads = nn.Linear(self.mimi.config["seanet"]["dimension"], 2 * PHONES).to(self.device)
        self.distance, self.phases = MelDistance().to(self.device), PhaseDistance().to(self.device)
        self.texture, self.listener = TextureDistance().to(self.device), Listener(PHONES).to(self.device)
        self.voiced = torch.ones(PHONES, device=self.device)
        self.voiced[list(UNVOICED)] = 0
        self.books = Codebooks(self.mimi)
        self.bank = Bank(args.speech, args.hours, self.device, held_out=args.held_out)
        self.examples: tuple[Tensor, Tensor, Tensor] | None = None
        self.path = args.out / "codec.pt"
        self.step, self.rate = 0, torch.zeros((), device=self.device)
        self.trust = torch.zeros((), device=self.device)  # in the listener and the classifier, which begin from nothing
        self.listener_optimizer = self.optimizer_of(self.listener.parameters())

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

    def learn(self, audio: Tensor, phones: Tensor, made: Tensor, besides: Tensor | float, judged: bool) -> list[Tensor]:
        """One step on the distances of what was made, and on the loss `besides` them: mel, phase, texture, what the listener
        hears, and what `against` says."""
        mel, phase = self.distance(audio, made), self.phases(audio, made, self.voiced[phones])
        texture, said = self.texture(audio, made, 1 - self.voiced[phones]), [mel.new_zeros(())] * 3
        loss = self.args.phase * phase + self.args.texture * texture + besides
        understood = [mel.new_zeros(())] * 2
        if self.args.listen:
            heard, *understood = self.listen(audio, phones, made)
            loss = loss + self.args.listen * self.trust * heard
        if not judged:
            loss = loss + self.args.mel * mel
        else:
            said = self.against(audio, made)
            loss = loss + self.args.judged_mel * mel + self.weight * (said[1] + 4 * said[2])
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 20.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return [mel, phase, texture, *understood, *said]

    def listen(self, audio: Tensor, phones: Tensor, made: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of the listener on the teacher's speech; then what it makes of `made`: its loss and how far its
        features are apart, together; its loss on the teacher's; its loss on `made`."""
        real, _ = self.listener(audio, noisy=True)
        loss = F.cross_entropy(real.flatten(0, 1), phones.flatten())
        loss.backward()
        self.listener_optimizer.step()
        self.listener_optimizer.zero_grad(set_to_none=True)
        self.listener.requires_grad_(False)
        with torch.no_grad():
            _, features = self.listener(audio)
        guess, made_features = self.listener(made)
        self.listener.requires_grad_(True)
        missed = F.cross_entropy(guess.flatten(0, 1), phones.flatten())
        apart = torch.stack(
            [(f - m).abs().mean() / (f.abs().mean() + 1e-5) for f, m in zip(features, made_features, strict=True)]
        ).mean()
        return missed + 2 * apart, loss.detach(), missed.detach()

    @torch.no_grad()
    def examine(self) -> str:
        """Held-out speech through the codec: mel distance, and its sibilants beside the teacher's."""
        if self.examples is None:
            self.examples = self.bank.examples(24)
        audio, phones, ends = self.examples
        if not len(audio):
            return ""
        made = waveform(self.mimi, self.books(latent(self.mimi, audio).float(), None, update=False)[0])
        mel = self.distance(audio, made).item()
        found: tuple[list, list] = ([], [])
        for real, fake, labels, end in zip(
            *(x.cpu().numpy() for x in (audio[:, 0], made[:, 0], phones, ends)), strict=True
        ):
            where = cuts(real[: end * SAMPLES_PER_LABEL], labels[:end])
            for x, each in zip((real, fake), found, strict=True):
                each += [
                    [s.kurtosis, s.pulse_share, s.peak_share] for s in measure(x[: end * SAMPLES_PER_LABEL], where)
                ]
        if not found[0]:
            return f"held out: mel {mel:.4f}"
        taught, own = (np.mean(each, 0).round(3).tolist() for each in found)
        return (
            f"held out: mel {mel:.4f}, {len(found[0])} sibilants (kurtosis, pulse, peak): {own}, the teacher's {taught}"
        )

    # full -------------------------------------------------------------------------------------

    def full_step(self, quantise: bool, judged: bool = False) -> Tensor:
        audio, phones = self.bank.crops(self.args.batch, LABELS)
        with self.autocast():
            x = latent(self.mimi, audio)
        x = x.float()
        if quantise:
            keep = torch.randint(1, 65, (len(x),), device=x.device)  # nine tenths of the batch use all
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
        mel, phase, *said = self.learn(audio, phones, made, 0.25 * commitment + 0.5 * self.trust * phone_loss, judged)
        hit = (logits.flatten(0, 2).argmax(-1) == phones.flatten()).float().mean()
        return torch.stack([mel, phase, commitment, phone_loss, hit, *said]).detach()

    def full(self) -> None:
        args = self.args
        self.parameters = [*self.mimi.parameters(), *self.heads.parameters()]
        self.optimizer = self.optimizer_of(self.parameters)
        self.call_judge()
        self.bank.wait_for(args.least_hours)
        self.bank.watch()
        log = Log(
            args.out / "codec_full.jsonl",
            [
                *("mel", "phase", "commit", "phone", "phone_hit", "texture", "heard", "missed"),
                *("judge", "fool", "match"),
            ],
        )
        clock = Clock(args.seconds, self.resume_full())
        stage, since = "", 0
        while clock.done < 1:
            self.rate.fill_(clock.rate(self.step, args.peak, args.warm_up))
            self.trust.fill_(min(1.0, (self.step + 1) / TRUSTED_STEPS))
            now = "plain" if self.step < args.plain_steps else "quantised" if clock.spent_s < args.judged else "judged"
            if now != stage:
                stage, since = now, self.step
                step = Replayed(partial(self.full_step, stage != "plain", stage == "judged"), capture=args.graph)
            if stage == "judged":
                self.weight.fill_(min(1.0, (self.step - since) / 500))  # let the judge learn first
            if self.step == args.plain_steps:
                self.seed()
            figures = step()
            self.step += 1
            if self.step % args.report == 0:
                log(self.step, figures, spent_s=round(clock.spent_s, 1), hours=round(self.bank.labels / 90000, 2))
            if self.step % args.keep == 0:
                self.store_full(clock)
                print(self.examine(), flush=True)
        self.store_full(clock)
        print(self.examine(), flush=True)
        if self.step <= args.plain_steps:
            raise SystemExit(
                f"--seconds {args.seconds:g} were over before step {args.plain_steps}: there are no codebooks yet"
            )
        self.books.free_zero()
        save(self.mimi, args.out / "mimi")
        (args.out / "done").touch()

    @torch.no_grad()
    def seed(self, last: int | None = None) -> None:
        """Tables of all codebooks, or of the last ones, from what speech has come."""
        crops = [latent(self.mimi, self.bank.crops(self.args.batch, LABELS)[0]) for _ in range(24)]
        self.books.seed(torch.cat(crops).transpose(0, 1).reshape(1, crops[0].shape[1], -1), last)
        self.books.level(self.args.batch * LABELS / 2)

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
            self.judge.load_state_dict(state["judge"])
            self.load_optimizer(self.judge_optimizer, state["judge_optimizer"])
            self.step = state["step"]
            return state["spent_s"]
        if self.new_books:
            self.seed(self.new_books)
            save(self.mimi, args.out / "mimi")  # better than nothing, should the run break off
        elif args.start:
            self.books.level(args.batch * LABELS / 2)  # a bundle's tables carry no counts
        return 0.0

    def store_full(self, clock: Clock) -> None:
        state = {
            "mimi": self.mimi.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        state |= {"judge": self.judge.state_dict(), "judge_optimizer": self.judge_optimizer.state_dict()}
        save(self.mimi, self.args.out / "mimi")
        replace(self.path, state | {"step": self.step, "spent_s": clock.spent_s})

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict) -> None:
        optimizer.load_state_dict(state)
        for group in optimizer.param_groups:
            group["lr"] = self.rate

    # decoder ----------------------------------------------------------------------------------

    def decoder_step(self, judged: bool) -> Tensor:
        audio, phones = self.bank.crops(self.args.batch, LABELS)
        with torch.no_grad():
            with self.autocast():
                x = latent(self.mimi, audio)
            x = self.books(x.float(), None, update=False)[0]
        with self.autocast():
            made = waveform(self.mimi, x)
        made = made.float()
        figures = self.learn(audio, phones, made, 0.0, judged)
        torch._foreach_lerp_(self.average, self.parameters, 0.002)
        return torch.stack(figures).detach()

    def against(self, audio: Tensor, made: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of the discriminators; their loss, and what they then say of `made`: fooled, features apart.

        They hear half of each crop, somewhere in it.
        """
        half = audio.shape[-1] // 2
        starts = torch.randint(0, half + 1, (len(audio), 1, 1), device=audio.device)
        heard = starts + torch.arange(half, device=audio.device)
        audio, made = audio.gather(2, heard), made.gather(2, heard)
        judged = self.judged(torch.cat([audio, made.detach()]))
        real = [(said[: len(audio)], [f[: len(audio)].detach() for f in features]) for said, features in judged]
        loss = judge_loss(real, [(said[len(audio) :], None) for said, _ in judged])
        loss.backward()
        self.judge_optimizer.step()
        self.judge_optimizer.zero_grad(set_to_none=True)
        self.judge.requires_grad_(False)
        fake = self.judged(made)
        self.judge.requires_grad_(True)
        fool, match = fool_loss(real, fake)
        return loss.detach(), fool, match

    def judged(self, audio: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.device.startswith("cuda")):
            return self.judge(audio)

    def decoder(self) -> None:
        args = self.args
        parts = (self.mimi.decoder, self.mimi.decoder_transformer, self.mimi.upsample)
        self.mimi.requires_grad_(False)
        self.parameters = [p for part in parts for p in part.parameters()]
        self.parameters += [
            self.mimi.quantizer.rvq_first.output_proj.weight,
            self.mimi.quantizer.rvq_rest.output_proj.weight,
        ]
        for p in self.parameters:
            p.requires_grad_(True)
        spent_s = 0.0
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = self.optimizer_of(self.parameters)
        self.call_judge()
        if self.path.exists():
            state = torch.load(self.path, map_location=self.device)
            with torch.no_grad():
                for p, saved, kept, average in zip(
                    self.parameters, state["live"], self.average, state["average"], strict=True
                ):
                    p.copy_(saved)
                    kept.copy_(average)
            self.judge.load_state_dict(state["judge"])
            for optimizer, kept in zip((self.optimizer, self.judge_optimizer), state["optimizers"], strict=True):
                self.load_optimizer(optimizer, kept)
            self.step, spent_s = state["step"], state["spent_s"]
        self.bank.wait_for(args.least_hours)
        self.bank.watch()
        clock = Clock(args.seconds, spent_s)
        log = Log(
            args.out / "codec_decoder.jsonl", ["mel", "phase", "texture", "heard", "missed", "judge", "fool", "match"]
        )
        stage, since = "", 0
        while clock.done < 1:
            self.rate.fill_(clock.rate(self.step, args.peak, 2 * args.warm_up))
            self.trust.fill_(min(1.0, (self.step + 1) / TRUSTED_STEPS))
            now = "plain" if clock.spent_s < args.judged else "judged"
            if now != stage:
                stage, since = now, self.step
                step = Replayed(partial(self.decoder_step, stage == "judged"), capture=args.graph)
            self.weight.fill_(min(1.0, (self.step - since) / 500))  # let the judge learn first
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
            print(self.examine(), flush=True)
            for p, value in zip(self.parameters, live, strict=True):
                p.copy_(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["full", "decoder", "both"])
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--full", type=Path, help="decoder: folder of the finished first stage, or of any finished codec"
    )
    parser.add_argument("--start", type=Path, help="full: folder of a finished codec to go on from")
    parser.add_argument(
        "--graph", action=argparse.BooleanOptionalAction, default=True, help="steps as CUDA graphs, on a GPU"
    )
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--peak", type=float, default=8e-4)
    parser.add_argument("--hours", type=float, default=40)
    parser.add_argument("--least-hours", type=float, default=0.4)
    parser.add_argument("--plain-steps", type=int, default=PLAIN_STEPS)
    parser.add_argument(
        "--windows", type=int, nargs="+", default=(2048, 1024, 512, 256), help="discriminators' spectra"
    )
    parser.add_argument("--periods", type=int, nargs="*", default=(2, 3, 5, 7, 11), help="discriminators' foldings")
    parser.add_argument("--width", type=int, default=32, help="channels of a spectrum's discriminator")
    parser.add_argument(
        "--judged", type=float, default=math.inf, help="against a discriminator too, from that second on"
    )
    parser.add_argument("--mel", type=float, default=15, help="weight of the mel distance")
    parser.add_argument("--judged-mel", type=float, default=5, help="the same beside a discriminator")
    parser.add_argument("--phase", type=float, default=8, help="weight of the distance of phases")
    parser.add_argument("--texture", type=float, default=5, help="weight of the distance of textures")
    parser.add_argument("--listen", type=float, default=2, help="weight of what a phoneme recogniser hears; 0: none")
    parser.add_argument("--warm-up", type=int, default=100)
    parser.add_argument("--held-out", type=int, default=1, help="first shards that only `examine` hears")
    parser.add_argument("--decoder-seconds", type=float, default=0, help="both: of its second half")
    parser.add_argument("--decoder-peak", type=float, default=3e-4)
    parser.add_argument("--decoder-out", type=Path)
    parser.add_argument("--report", type=int, default=100)
    parser.add_argument("--keep", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    finished = (args.out / "done").exists()
    if args.stage == "both" and finished:
        args.full = args.out
    trainer = Trainer(args)
    if args.stage != "decoder" and not finished:
        trainer.full()
    if args.stage == "both":
        args.seconds, args.peak, args.out = args.decoder_seconds, args.decoder_peak, args.decoder_out
        args.out.mkdir(parents=True, exist_ok=True)
        trainer.path, trainer.step = args.out / "codec.pt", 0
    if args.stage != "full":
        trainer.decoder()


if __name__ == "__main__":
    main()
