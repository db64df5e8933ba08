"""Train a small SilentCipher pair at 24 kHz, on the stock package's own modules.

Speech is marked as the service marks it: at a fixed strength, pauses left out. Crops of 2 s at any sample are attacked
(noise, low-pass, requantisation, coding-like noise, clipping) and the decoder must name the symbol of every column, and the
stock decoder's vote over the crop's messages each place of the message. For half of each batch the decoder normalises clip
by clip, as the stock package does, which never calls eval(); for the other half by batch, and in the last phase with
frozen figures, as our services do.

    python watermark_train.py --speech /tmp/voice/speech --out /tmp/voice/watermark --seconds 450 --start ../../models/embedded/watermark

What is exported is the running mean of the weights.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from bank import Bank
from stepper import Clock, Log, Replayed, replace
from torch import Tensor, nn

POWER = 0.002837200844477648  # the level at which the stock package marks and reads
N_FFT, HOP, BAND, SYMBOLS, PERIOD = 512, 256, 96, 5, 21
ENCODER_LAYERS, DECODER_LAYERS = 2, 3
REACH = ENCODER_LAYERS + DECODER_LAYERS - 1
ROWS, BINS = BAND + REACH, N_FFT // 2 + 1
MESSAGE_SDR_DB = 28.8  # asked for; what quiet cells cannot give and pauses do not take comes on top: 31.0 in all
SILENCE_DB = 35.0  # columns this far below the level are not marked, as in services/watermark/embed_pass.py
CROP = 48000  # samples that the decoder sees: 2 s
LABELS = 57  # of 960 samples: the crop, a message and a little more
VOTE_TEMPERATURE = 0.5  # of the probabilities that vote: the stock decoder's votes are hard
WORST_PLACES = 4  # of a crop's message, that count once more: one wrong place of 21 loses the key
ALIGNED = 0.8  # of the crops begin where the stock decoder's search for the phase would put them
LOW_PASS = 0.12  # of the clips lose what is above some frequency
MEAN_RATE = 0.004  # at which the running mean of the weights follows them
HPARAMS = {
    "SR": 24000, "N_FFT": N_FFT, "HOP_LENGTH": HOP, "message_band_size": BAND, "message_dim": SYMBOLS,
    "message_len": PERIOD, "enc_n_layers": ENCODER_LAYERS, "dec_c_n_layers": DECODER_LAYERS,
    "frame_level_normalization": False, "utterance_level_normalization": True,
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
        variance, mean = torch.var_mean(x, (2, 3), keepdim=True, correction=0)
        scale = bn.weight[:, None, None] * (variance.float() + bn.eps).rsqrt()
        shift = bn.bias[:, None, None] - mean.float() * scale
        return torch.addcmul(shift.to(x.dtype), x, scale.to(x.dtype))
    training = how == "batch"
    return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, training, 0.02, bn.eps)


def layers(stack: nn.Sequential, x: Tensor, how: str, first: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """first: weights of the first layer's convolution and gate, if not its own."""
    for layer in stack:
        if isinstance(layer, nn.Dropout):
            continue
        weights = first or (layer.conv.weight, layer.gate.weight)
        first = None
        x = x.contiguous(memory_format=torch.channels_last)
        # Convolution and gate as one: conv * sigmoid(gate) is a GLU over both.
        weight, bias = torch.cat(weights), torch.cat([layer.conv.bias, layer.gate.bias])
        x = F.glu(F.conv2d(x, weight, bias, padding=layer.conv.padding), 1)
        x = normalise(layer.bn, x, how)
    return x


def folded(weight: Tensor) -> Tensor:
    """Of features, 32 times the carrier and 32 times the message: the copies' weights summed, [C, 34, 3, 3]."""
    features, carrier, message = weight.split(32, 1)
    return torch.cat([features, carrier.sum(1, keepdim=True), message.sum(1, keepdim=True)], 1)


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
        """audio [B, S], symbols [B, PERIOD], sdr_db [B] below POWER -> marked audio [B, S]."""
        spectrum = self.spectrum(audio)
        magnitude = spectrum.abs()
        carrier = magnitude[:, None, :ROWS]
        hot = (symbols[..., None] == torch.arange(SYMBOLS, device=audio.device)).float()
        spelt = self.enc_c.linear(hot)  # [B, PERIOD, BAND]
        spelt = spelt[:, torch.arange(carrier.shape[3], device=audio.device) % PERIOD]
        message = F.pad(spelt, (0, ROWS - BAND)).transpose(1, 2)[:, None]  # [B, 1, ROWS, T]
        encoded = layers(self.enc_c.main, carrier, how)
        merged = torch.cat([encoded, carrier.to(encoded.dtype), message.to(encoded.dtype)], 1)
        opening = self.dec_c.main[0]
        first = folded(opening.conv.weight), folded(opening.gate.weight)
        mark = layers(self.dec_c.main, merged, how, first).float().abs()[:, 0, :BAND]
        mark = mark / (mark.square().sum(1, keepdim=True) / BINS + 1e-12).sqrt()
        window_energy = self.window.square().sum()
        power = magnitude.square().mean(1, keepdim=True) / window_energy
        audible = power > POWER * 10 ** (-SILENCE_DB / 10)  # [B, 1, T]
        mark = mark * audible * ((POWER * window_energy).sqrt() * 10 ** (-sdr_db / 20))[:, None, None]
        kept = torch.relu(magnitude[:, :BAND] - mark)
        # The phase stays: scale the band's cells to what is left of their magnitude.
        scale = torch.cat([kept / (magnitude[:, :BAND] + 1e-9), torch.ones_like(magnitude[:, BAND:])], 1)
        return inverse(spectrum * scale, N_FFT, HOP, self.window)[:, : audio.shape[1]]

    def read(self, audio: Tensor, how: str) -> Tensor:
        """audio [B, S] at any level -> logits [B, SYMBOLS, T]."""
        audio = audio * (POWER / (audio.square().mean(1, keepdim=True) + 1e-9)).sqrt()
        x = layers(self.dec_m.main, self.spectrum(audio).abs()[:, None, :BAND], how)
        return self.dec_m.linear(x.transpose(2, 3).to(self.dec_m.linear.weight.dtype)).squeeze(3)

    def begin_from(self, folder: Path) -> None:
        """Weights of a trained pair; of a wider band the lower bins."""
        for name in ("enc_c", "dec_c", "dec_m"):
            state = torch.load(folder / f"{name}{'_0' * (name == 'dec_m')}.ckpt", map_location="cpu")
            own = getattr(self, name).state_dict()
            cut = {k: v.float()[tuple(slice(n) for n in own[k].shape)] for k, v in state.items()}
            getattr(self, name).load_state_dict(cut)


class Vote:
    """The stock decoder's vote over the messages of a crop (silentcipher/server.py: decode_wav)."""

    def __init__(self, place: Tensor):
        """place [B, T]: of each column in its message. Whole messages are counted, from the first column on."""
        self.columns = place.shape[1] // PERIOD * PERIOD
        self.place = place[:, : self.columns]

    def __call__(self, weights: Tensor) -> Tensor:
        """weights [B, SYMBOLS, T] -> sums [B, SYMBOLS, PERIOD]."""
        place = self.place[:, None].expand(-1, SYMBOLS, -1)
        sums = torch.zeros(len(place), SYMBOLS, PERIOD, device=weights.device)
        return sums.scatter_add(2, place, weights[..., : self.columns])


def key_read(logits: Tensor, vote: Vote, symbols: Tensor) -> Tensor:
    """Whether every place's commonest symbol is the message's; of equally common ones the least counts [B]."""
    hard = torch.zeros_like(logits).scatter(1, logits.argmax(1, keepdim=True), 1.0)
    return (vote(hard).argmax(1) == symbols).all(1).float()


def vote_loss(logits: Tensor, vote: Vote, symbols: Tensor) -> Tensor:
    """What the crops' votes cost, logits [B, SYMBOLS, T] against symbols [B, PERIOD]: every place, and the worst once more."""
    sums = vote((logits / VOTE_TEMPERATURE).softmax(1))
    places = F.cross_entropy(1.5 * sums, symbols, reduction="none")
    return places.mean() + places.topk(WORST_PLACES, 1).values.mean()


def crop_starts(batch: int, room: int, device: str) -> Tensor:
    """First samples of crops, 0 to half a hop beyond `room`, long [B]: most are within 8 samples of a column's first."""
    anywhere = torch.rand(batch, device=device) * room
    aligned = torch.round(anywhere / HOP) * HOP + 16 * torch.rand(batch, device=device) - 8
    return torch.where(torch.rand(batch, device=device) < ALIGNED, aligned, anywhere).clamp(min=0).long()


class RunningMean:
    """An exponential mean of parameters that are trained."""

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float = MEAN_RATE):
        self.parameters, self.rate = list(parameters), rate
        self.values = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], self.rate)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Within it the parameters have the mean's values."""
        own = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.values)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, own)


def attack(audio: Tensor, draw: Tensor, noisy: float) -> Tensor:
    """Each clip meets none to three of the attacks, chosen by `draw` [B, 12] uniform in [0, 1). noisy: share that meets noise."""
    size = audio.shape[1]
    bins = torch.fft.rfft(audio)
    hertz = torch.linspace(0, 12000, bins.shape[1], device=audio.device)
    power = audio.square().mean(1, keepdim=True)
    # Low-pass: resampling to 8 or 16 kHz, or anything between 3.4 and 11 kHz.
    edge = 3400 + 7600 * draw[:, 1:2]
    slope = torch.sigmoid((edge - hertz) / 60)
    bins = torch.where(draw[:, :1] < LOW_PASS, bins * slope, bins)
    out = torch.fft.irfft(bins, size)
    # Noise, 17 to 33 dB below: white, sometimes pink.
    noise = torch.fft.rfft(torch.randn_like(audio))
    pink = noise / (hertz / 1000 + 0.1).sqrt()
    noise = torch.fft.irfft(torch.where(draw[:, 2:3] < 0.85, noise, pink), size)
    depth = torch.where(draw[:, 3:4] < 0.5, 18.5 + 3 * draw[:, 8:9], 17 + 16 * draw[:, 8:9])
    noise = noise * (power / noise.square().mean(1, keepdim=True) * 10 ** (-depth / 10)).sqrt()
    out = torch.where(draw[:, 4:5] < noisy, out + noise, out)
    # What a lossy coder does: noise shaped like the spectrum, 13 to 27 dB below it cell by cell.
    window = torch.hann_window(512, device=audio.device)
    cells = torch.stft(out, 512, 128, window=window, return_complex=True)
    depth = 10 ** (-(13 + 14 * draw[:, 5:6, None]) / 20)
    around = F.avg_pool2d(cells.abs()[:, None], (9, 5), 1, (4, 2))[:, 0]
    shaped = cells + around * depth * torch.view_as_complex(torch.randn(*cells.shape, 2, device=audio.device)) * 0.7
    coded = inverse(shaped, 512, 128, window)[:, :size]
    coded = F.pad(coded, (0, size - coded.shape[1]))
    out = torch.where((draw[:, 6:7] >= 0.4) & (draw[:, 6:7] < 0.7), coded, out)
    # Four times too loud, now and then.
    peak = out.detach().abs().amax(1, keepdim=True) * (0.3 + 0.5 * draw[:, 9:10])
    out = torch.where(draw[:, 10:11] < 0.05, torch.minimum(torch.maximum(out, -peak), peak), out)
    # Eight to sixteen bits, straight through.
    step = 2.0 ** -(8 + 8 * draw[:, 7:8])
    return torch.where(draw[:, 11:12] < 0.3, out + (torch.round(out / step) * step - out).detach(), out)


class Trainer:
    def __init__(self, args: argparse.Namespace):
        self.args, self.device = args, args.device
        torch.manual_seed(args.seed)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        self.pair = Pair().to(self.device).to(memory_format=torch.channels_last)
        self.bank = Bank(args.speech, args.hours, self.device, args.bundle and Revoiced(args.bundle, self.device))
        self.rate = torch.zeros((), device=self.device)
        self.sdr_db = torch.full((), 20.0, device=self.device)
        cuda = self.device.startswith("cuda")
        self.optimizer = torch.optim.AdamW(
            self.pair.parameters(), lr=self.rate, betas=(0.9, 0.98), weight_decay=1e-4, capturable=cuda, foreach=cuda
        )
        self.step, self.path = 0, args.out / "watermark.pt"

    def one_step(self, late: bool) -> Tensor:
        batch, half, device = self.args.batch, self.args.batch // 2, self.device
        audio = self.bank.crops(batch, LABELS)[0][:, 0]
        # The service's strength is fixed: speech is a little louder or softer than it expects.
        audio = audio * 10 ** (torch.rand(batch, 1, device=device) * 0.25 - 0.125)
        symbols = torch.randint(1, SYMBOLS, (batch, PERIOD), device=device)
        symbols[:, -1] = 0
        swing = self.sdr_db + 3 * torch.rand(batch, device=device) - 1.5
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=self.args.bf16):
            marked = self.pair.mark(audio, symbols, swing, "frozen" if late else "batch").float()
        shift = crop_starts(batch, audio.shape[1] - CROP - HOP, device)
        received = marked.gather(1, shift[:, None] + torch.arange(CROP, device=device))
        received = attack(received, torch.rand(batch, 12, device=device), self.args.noisy)
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=self.args.bf16):
            ours = self.pair.read(received[half:], "frozen" if late else "batch")
            logits = torch.cat([self.pair.read(received[:half], "clip"), ours])
        columns = CROP // HOP + 1
        logits = logits.float()[..., :columns]
        place = (torch.arange(columns, device=device) + (shift[:, None] + HOP // 2) // HOP) % PERIOD
        target = symbols.gather(1, place)
        vote = Vote(place)
        each = F.cross_entropy(logits, target)
        voted = vote_loss(logits, vote, symbols)
        (0.5 * each + 1.5 * voted).backward()
        nn.utils.clip_grad_norm_(self.pair.parameters(), 1.0)
        for parameter in self.pair.parameters():  # one bad batch must not end a sitting
            parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
        self.optimizer.step()
        self.mean.update()
        self.optimizer.zero_grad(set_to_none=True)
        hits = (logits.argmax(1) == target).float().mean(1)
        keys = key_read(logits.detach(), vote, symbols)
        sdr = 10 * torch.log10(audio.square().mean() / (audio - marked).square().mean())
        figures = [each, voted, hits[half:].mean(), hits[:half].mean(), keys[half:].mean(), keys[:half].mean(), sdr]
        return torch.stack([*figures, self.sdr_db]).detach()

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
        elif args.start:
            self.pair.begin_from(args.start)
        self.mean = RunningMean(self.pair.parameters())
        self.bank.wait_for(args.least_hours)
        clock = Clock(args.seconds, spent_s)
        names = ["loss", "vote", "hit_frozen", "hit_clip", "key_frozen", "key_clip", "sdr", "asked_sdr"]
        log = Log(args.out / "watermark.jsonl", names)
        early = Replayed(lambda: self.one_step(False), capture=args.graph)
        late = Replayed(lambda: self.one_step(True), capture=args.graph)
        means, counted = 0, 0
        while clock.done < 1:
            self.rate.fill_(clock.rate(self.step, args.peak, 100))
            # Start with a plain mark and hide it better and better.
            self.sdr_db.fill_(args.plain + (args.message_sdr - args.plain) * min(1.0, clock.done / 0.35))
            means = means + (late if clock.done > args.late else early)()
            self.step, counted = self.step + 1, counted + 1
            if self.step % args.report == 0:
                log(self.step, means / counted, spent_s=round(clock.spent_s, 1), hours=round(self.bank.labels / 9e4, 2))
                means, counted = 0, 0
                self.bank.look(self.bank.labels + 1)  # one more shard
            if self.step % args.keep == 0:
                self.store(clock)
        self.store(clock)
        (args.out / "done").touch()

    def store(self, clock: Clock) -> None:
        state = {"pair": self.pair.state_dict(), "optimizer": self.optimizer.state_dict()}
        replace(self.path, state | {"step": self.step, "spent_s": clock.spent_s})
        with self.mean.swapped_in():
            export(self.pair, self.args.out / "export", self.args.message_sdr)


class Revoiced:
    """Speech as a bundle's codec gives it back, which is what the service marks: every other 8 s of a shard."""

    SAMPLES = 100 * 1920

    def __init__(self, bundle: Path, device: str, every: int = 2):
        from codebooks import Codebooks
        from codec import latent, restored, waveform

        self.latent, self.waveform, self.device, self.every = latent, waveform, device, every
        self.mimi = restored(bundle / "mimi").to(device).float()
        self.books = Codebooks(self.mimi)

    @torch.no_grad()
    def __call__(self, audio: Tensor) -> Tensor:
        """int16 [S] -> int16 [S]."""
        parts = audio[: len(audio) // self.SAMPLES * self.SAMPLES].view(-1, self.SAMPLES)
        for at in range(0, len(parts), 32):
            part = parts[at : at + 32 : self.every]
            x = part.to(self.device).float()[:, None] / 32768
            x = self.waveform(self.mimi, self.books(self.latent(self.mimi, x), None, update=False)[0])
            part.copy_((x[:, 0].clamp(-1, 1) * 32767).short())
        return audio


def export(pair: Pair, folder: Path, message_sdr_db: float) -> None:
    """hparams.yaml and the three .ckpt files the stock package loads; fp16, which it casts as it loads."""
    folder.mkdir(parents=True, exist_ok=True)
    hparams = HPARAMS | {"message_sdr": message_sdr_db}
    (folder / "hparams.yaml").write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in sorted(hparams.items())))
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
    parser.add_argument("--start", type=Path, help="folder of a trained pair to go on from")
    parser.add_argument("--bundle", type=Path, help="half of the speech goes through its codec first")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--peak", type=float, default=1e-3)
    parser.add_argument(
        "--message-sdr", type=float, default=MESSAGE_SDR_DB, help="dB of the mark from a third of the time on"
    )
    parser.add_argument("--plain", type=float, default=15.0, help="dB of the mark at the start")
    parser.add_argument("--noisy", type=float, default=0.45, help="share of the crops that meet noise")
    parser.add_argument("--late", type=float, default=0.6, help="share of the time from which on norms are frozen")
    parser.add_argument("--hours", type=float, default=20)
    parser.add_argument("--least-hours", type=float, default=0.3)
    parser.add_argument("--report", type=int, default=100)
    parser.add_argument("--keep", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--graph", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    Trainer(args).run()


if __name__ == "__main__":
    main()
