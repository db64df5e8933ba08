"""Train a small SilentCipher pair at 24 kHz, on the stock package's own modules.

The embedder marks speech at a fixed signal-to-mark ratio; the clip is then attacked (noise, low-pass,
resampling, requantisation, coding-like noise, cropping at any sample) and the decoder must name the
symbol of every column. Two phases: batch normalisation by batch, then frozen (how our services run
it) for one half of each batch and by clip (how the stock package runs it, which never calls eval())
for the other.

    python watermark_train.py --speech /tmp/voice/speech --out /tmp/voice/watermark --seconds 240
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from bank import SAMPLES_PER_LABEL, Bank
from stepper import Clock, Log, replace
from torch import Tensor, nn

POWER = 0.002837200844477648  # the level at which the stock package marks and reads
N_FFT, HOP, BAND, SYMBOLS, PERIOD = 1024, 512, 128, 5, 21
ENCODER_LAYERS, DECODER_LAYERS = 2, 3
REACH = ENCODER_LAYERS + DECODER_LAYERS - 1
ROWS, BINS = BAND + REACH, N_FFT // 2 + 1
MESSAGE_SDR_DB = 30.0
HPARAMS = {
    "SR": 24000, "N_FFT": N_FFT, "HOP_LENGTH": HOP, "message_band_size": BAND, "message_dim": SYMBOLS,
    "message_len": PERIOD, "enc_n_layers": ENCODER_LAYERS, "dec_c_n_layers": DECODER_LAYERS,
    "message_sdr": MESSAGE_SDR_DB, "frame_level_normalization": False, "utterance_level_normalization": True,
    "model_type": "24k", "n_messages": 1, "ensure_negative_message": True, "ensure_constrained_message": False,
    "no_normalization": False,
}  # fmt: skip


def stock_modules():
    """silentcipher/model.py alone: the package's own __init__ wants librosa and pydub."""
    (folder,) = importlib.util.find_spec("silentcipher").submodule_search_locations
    spec = importlib.util.spec_from_file_location("silentcipher_model", Path(folder) / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def normalise(bn: nn.BatchNorm2d, x: Tensor, how: str) -> Tensor:
    """how: `batch` (and keep running figures), `frozen`, or `clip` (each clip by itself)."""
    if how == "clip":
        return F.instance_norm(x, weight=bn.weight, bias=bn.bias, eps=bn.eps)
    training = how == "batch"
    return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, training, 0.02, bn.eps)


def layers(stack: nn.Sequential, x: Tensor, how: str) -> Tensor:
    for layer in stack:
        if isinstance(layer, nn.Dropout):
            continue
        x = x.contiguous(memory_format=torch.channels_last)
        x = layer.conv(x) * torch.sigmoid(layer.gate(x))
        x = normalise(layer.bn, x, how)
    return x


def inverse(spectrum: Tensor, n_fft: int, hop: int, window: Tensor) -> Tensor:
    """Centred inverse STFT [B, F, T] -> [B, (T - 1) * hop]; torch.istft makes the host wait."""
    frames = torch.fft.irfft(spectrum, n_fft, dim=1) * window[:, None]
    size = n_fft + hop * (frames.shape[2] - 1)
    weight = (window**2)[None, :, None].expand(1, -1, frames.shape[2])
    summed, norm = (F.fold(x, (1, size), (1, n_fft), stride=(1, hop))[:, 0, 0] for x in (frames, weight))
    inner = slice(n_fft // 2, size - n_fft // 2)
    return summed[:, inner] / norm[:, inner].clamp(min=1e-8)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        stock = stock_modules()
        config = argparse.Namespace(ensure_negative_message=True, no_normalization=False)
        self.enc_c = stock.Encoder(32, ENCODER_LAYERS, SYMBOLS, BAND, N_FFT)
        self.dec_c = stock.CarrierDecoder(config, 96, DECODER_LAYERS, BAND)
        self.dec_m = stock.MsgDecoder(SYMBOLS, BAND)
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)

    def spectrum(self, audio: Tensor) -> Tensor:
        """[B, S] -> complex [B, BINS, T], as the stock's STFT."""
        audio = F.pad(audio, (0, N_FFT - audio.shape[1] % N_FFT))
        return torch.stft(audio, N_FFT, HOP, N_FFT, window=self.window, return_complex=True)

    def mark(self, audio: Tensor, symbols: Tensor, sdr_db: Tensor, how: str) -> Tensor:
        """audio [B, S] at the training level, symbols [B, PERIOD], sdr_db [B] -> marked audio [B, S]."""
        spectrum = self.spectrum(audio)
        magnitude = spectrum.abs()
        carrier = magnitude[:, None, :ROWS]
        hot = F.one_hot(symbols, SYMBOLS).float()[:, torch.arange(carrier.shape[3], device=audio.device) % PERIOD]
        message = F.pad(self.enc_c.linear(hot), (0, ROWS - BAND)).transpose(1, 2)[:, None]  # [B, 1, ROWS, T]
        encoded = layers(self.enc_c.main, carrier, how)
        merged = torch.cat([encoded, carrier.repeat(1, 32, 1, 1), message.repeat(1, 32, 1, 1)], 1)
        mark = layers(self.dec_c.main, merged, how).float().abs()[:, :, :BAND]
        mark = mark / (mark.square().sum(2, keepdim=True) / BINS + 1e-12).sqrt()
        level = magnitude.square().mean((1, 2), keepdim=True).sqrt()[:, None]
        mark = mark * level * (10 ** (-sdr_db / 20))[:, None, None, None]
        kept = torch.relu(magnitude[:, :BAND] - mark[:, 0])
        # The phase stays: scale the band's cells to what is left of their magnitude.
        scale = torch.cat([kept / (magnitude[:, :BAND] + 1e-9), torch.ones_like(magnitude[:, BAND:])], 1)
        return inverse(spectrum * scale, N_FFT, HOP, self.window)[:, : audio.shape[1]]

    def read(self, audio: Tensor, how: str) -> Tensor:
        """audio [B, S] at any level -> logits [B, SYMBOLS, T]."""
        audio = audio * (POWER / (audio.square().mean(1, keepdim=True) + 1e-9)).sqrt()
        x = layers(self.dec_m.main, self.spectrum(audio).abs()[:, None, :BAND], how)
        return self.dec_m.linear(x.transpose(2, 3).to(self.dec_m.linear.weight.dtype)).squeeze(3)


def attack(audio: Tensor, draw: Tensor) -> Tensor:
    """Each clip meets one or two of the attacks, chosen by `draw` [B, 8] uniform in [0, 1)."""
    size = audio.shape[1]
    bins = torch.fft.rfft(audio)
    hertz = torch.linspace(0, 12000, bins.shape[1], device=audio.device)
    power = audio.square().mean(1, keepdim=True)
    # Low-pass: resampling to 8 or 16 kHz, or anything between 3.4 and 11 kHz.
    edge = 3400 + 7600 * draw[:, 1:2]
    slope = torch.sigmoid((edge - hertz) / 60)
    bins = torch.where(draw[:, :1] < 0.35, bins * slope, bins)
    out = torch.fft.irfft(bins, size)
    # Noise, 15 to 40 dB below, white or pink.
    noise = torch.fft.rfft(torch.randn_like(audio))
    pink = noise / (hertz / 1000 + 0.1).sqrt()
    noise = torch.fft.irfft(torch.where(draw[:, 2:3] < 0.5, noise, pink), size)
    noise = noise * (power / noise.square().mean(1, keepdim=True) * 10 ** (-(15 + 25 * draw[:, 3:4]) / 10)).sqrt()
    out = torch.where(draw[:, 4:5] < 0.4, out + noise, out)
    # What a lossy coder does: noise shaped like the spectrum, 12 to 30 dB below it cell by cell.
    window = torch.hann_window(512, device=audio.device)
    cells = torch.stft(out, 512, 128, window=window, return_complex=True)
    depth = 10 ** (-(12 + 18 * draw[:, 5:6, None]) / 20)
    around = F.avg_pool2d(cells.abs()[:, None], (9, 5), 1, (4, 2))[:, 0]
    shaped = cells + around * depth * torch.view_as_complex(torch.randn(*cells.shape, 2, device=audio.device)) * 0.7
    coded = inverse(shaped, 512, 128, window)[:, :size]
    coded = F.pad(coded, (0, size - coded.shape[1]))
    out = torch.where(draw[:, 6:7] < 0.4, coded, out)
    # Eight to sixteen bits, straight through.
    step = 2.0 ** -(8 + 8 * draw[:, 7:8])
    return out + (torch.round(out / step) * step - out).detach()


class Trainer:
    def __init__(self, args: argparse.Namespace):
        self.args, self.device = args, args.device
        torch.manual_seed(args.seed)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        self.pair = Pair().to(self.device).to(memory_format=torch.channels_last)
        self.bank = Bank(args.speech, args.hours, self.device)
        self.rate = torch.zeros((), device=self.device)
        self.sdr_db = torch.full((), 20.0, device=self.device)
        cuda = self.device.startswith("cuda")
        self.optimizer = torch.optim.AdamW(
            self.pair.parameters(), lr=self.rate, betas=(0.9, 0.98), weight_decay=1e-4, capturable=cuda, foreach=cuda
        )
        self.step, self.path = 0, args.out / "watermark.pt"

    def one_step(self, late: bool) -> Tensor:
        batch, labels = self.args.batch, self.args.labels
        audio = self.bank.crops(batch, labels)[0][:, 0]
        audio = audio * (POWER / (audio.square().mean(1, keepdim=True) + 1e-4)).sqrt()
        symbols = torch.randint(1, SYMBOLS, (batch, PERIOD), device=self.device)
        symbols[:, -1] = 0
        # The services mark at a fixed level: a clip may be louder or softer than the mark expects.
        swing = self.sdr_db + 6 * torch.rand(batch, device=self.device) - 4
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.args.bf16):
            marked = self.pair.mark(audio, symbols, swing, "frozen" if late else "batch").float()
        draw = torch.rand(batch, 8, device=self.device)
        received = attack(marked, draw)
        shift = torch.where(
            torch.rand(batch, device=self.device) < 0.5, 0.0, torch.rand(batch, device=self.device) * HOP * PERIOD
        ).long()
        length = audio.shape[1] - HOP * PERIOD
        received = received.gather(1, shift[:, None] + torch.arange(length, device=self.device))
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.args.bf16):
            if late:
                half = batch // 2
                logits = torch.cat([self.pair.read(received[:half], "frozen"), self.pair.read(received[half:], "clip")])
            else:
                logits = self.pair.read(received, "batch")
        columns = length // HOP
        logits = logits.float()[..., 1:columns]
        place = torch.arange(1, columns, device=self.device) + (shift[:, None] + HOP // 2) // HOP
        target = symbols.gather(1, place % PERIOD)
        loss = F.cross_entropy(logits, target)
        loss.backward()
        nn.utils.clip_grad_norm_(self.pair.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        hits = (logits.argmax(1) == target).float().mean(1)
        half = batch // 2
        sdr = 10 * torch.log10(audio.square().mean() / (audio - marked).square().mean())
        return torch.stack([loss, hits[:half].mean(), hits[half:].mean(), sdr, self.sdr_db]).detach()

    def run(self) -> None:
        args = self.args
        spent_s = 0.0
        if self.path.exists():
            state = torch.load(self.path, map_location=self.device)
            self.pair.load_state_dict(state["pair"])
            self.optimizer.load_state_dict(state["optimizer"])
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate
            self.step, spent_s = state["step"], state["spent_s"]
        self.bank.wait_for(args.least_hours)
        clock = Clock(args.seconds, spent_s)
        log = Log(args.out / "watermark.jsonl", ["loss", "hit_frozen", "hit_clip", "sdr", "asked_sdr"])
        while clock.done < 1:
            self.rate.fill_(clock.rate(self.step, args.peak, 100))
            # Start with a plain mark and hide it better and better.
            self.sdr_db.fill_(10 + (MESSAGE_SDR_DB - 10) * min(1.0, clock.done / 0.5))
            figures = self.one_step(clock.done > 0.7)
            self.step += 1
            if self.step % args.report == 0:
                log(self.step, figures, spent_s=round(clock.spent_s, 1))
            if self.step % args.keep == 0:
                self.store(clock)
        self.store(clock)
        (args.out / "done").touch()

    def store(self, clock: Clock) -> None:
        state = {"pair": self.pair.state_dict(), "optimizer": self.optimizer.state_dict()}
        replace(self.path, state | {"step": self.step, "spent_s": clock.spent_s})
        export(self.pair, self.args.out / "export")


def export(pair: Pair, folder: Path) -> None:
    """hparams.yaml and the three .ckpt files the stock package loads; fp16, which it casts as it loads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hparams.yaml").write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in sorted(HPARAMS.items())))
    for module, name in ((pair.enc_c, "enc_c"), (pair.dec_c, "dec_c"), (pair.dec_m, "dec_m_0")):
        state = {
            k: v.detach().cpu().half() if v.is_floating_point() else v.cpu() for k, v in module.state_dict().items()
        }
        torch.save(state, folder / f"{name}.ckpt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--labels", type=int, default=44, help=f"of {SAMPLES_PER_LABEL} samples: length of a crop")
    parser.add_argument("--peak", type=float, default=1e-3)
    parser.add_argument("--hours", type=float, default=8)
    parser.add_argument("--least-hours", type=float, default=2)
    parser.add_argument("--report", type=int, default=100)
    parser.add_argument("--keep", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    Trainer(args).run()


if __name__ == "__main__":
    main()
