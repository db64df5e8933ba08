"""The second half of the test: what the judges say about the WAVs, and the table of it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import sibilants
import stock_decoder
from attacks import ATTACKS
from judges import Ear, Quality, Recogniser
from speaking import CLIP_S, TAKES, read
from table import Table
from tally import Tally
from wording import is_wanted, plain

from support.spoken_cases import Case

RATE_HZ = 24000
LEAST_FOR_A_PRINT_S = 1.2  # a voice print of less says little


def judge(notes: dict, out: Path) -> None:
    """Write into each note what was heard, its quality and its voice print's likeness to every speaker."""
    recogniser, quality, ear = Recogniser(out / "scratch"), Quality(), Ear()
    for what in ("said", "talks", "codec"):
        for number, note in enumerate(notes[what]):
            if number % 25 == 0:
                print(f"  judging {what}: {number} of {len(notes[what])}", flush=True)
            audio = read(out / note["wav"])
            note["heard"] = recogniser.hear(audio)
            note["want"], note["got"] = plain(note["text"]), plain(note["heard"])
            if what == "talks" or not len(audio):
                continue
            note["dnsmos"] = quality.overall(audio)
            if what == "codec":  # what no codec can beat
                spoken = read(out / "teacher" / Path(note["wav"]).name)
                note["teacher"] = {"got": plain(recogniser.hear(spoken)), "dnsmos": quality.overall(spoken)}
                where = sibilants.cuts(spoken, np.array(note.pop("phones")))
                note["teacher"]["sibilants"] = [dataclasses.astuple(s) for s in sibilants.measure(spoken, where)]
                note["sibilants"] = [dataclasses.astuple(s) for s in sibilants.measure(audio, where)]
            else:
                clean = read(out / "unmarked" / Path(note["wav"]).name)
                note["dnsmos_unmarked"] = quality.overall(clean)
                note["sdr_db"] = sdr_db(clean, audio)
    prints = {
        note["wav"]: ear.print_of(read(out / note["wav"]))
        for note in [*notes["said"], *notes["talks"]]
        if note["frames"] * 0.08 >= LEAST_FOR_A_PRINT_S
    }
    compare(notes, prints)


def judge_lengths(notes: dict, out: Path) -> None:
    """Write into the notes of short answers and of passages what was heard."""
    recogniser = Recogniser(out / "scratch")
    silence = np.zeros(RATE_HZ // 2, np.float32)  # a recogniser hears little in half a second cut at both ends
    for note in [*notes["answers"], *notes["passages"]]:
        note["heard"] = recogniser.hear(np.concatenate([silence, read(out / note["wav"]), silence]))
        note["want"], note["got"] = plain(note["text"]), plain(note["heard"])


# How a recogniser that knows no context writes what can be written in two ways.
HEARD_AS = {"ok": "okay", "b": "be bee", "r": "are ar", "w": "double-u"}


def is_answer(note: dict) -> bool:
    """Whether a short answer was heard word for word."""
    heard = re.sub(r"[^a-z]+", " ", note["heard"].lower()).strip()
    return is_wanted(note["heard"], note["text"]) or heard in HEARD_AS.get(note["text"].strip(".!").lower(), "").split()


class WordJudge:
    """Whether texts with numbers and signs were heard as they should sound."""

    def __init__(self, scratch: Path):
        self._recogniser = Recogniser(scratch)

    def __call__(self, audio: np.ndarray, case: Case) -> tuple[str, bool]:
        """(what was heard, whether every word is as wanted)."""
        heard = self._recogniser.hear(audio)
        return heard, is_wanted(heard, case.spoken)


def sdr_db(clean: np.ndarray, marked: np.ndarray) -> float:
    """Speech over mark, in decibels."""
    if len(clean) != len(marked):
        raise SystemExit(f"marked and unmarked speech differ in length: {len(marked)} and {len(clean)} samples")
    return float(10 * np.log10(np.mean(clean**2) / np.mean((clean - marked) ** 2)))


def compare(notes: dict, prints: dict[str, np.ndarray]) -> None:
    """Cosine of each print to each speaker's mean print, its own left out of the mean."""
    said = [note for note in notes["said"] if note["wav"] in prints]
    speakers = sorted({note["speaker"] for note in said})
    sums = {s: sum(prints[n["wav"]] for n in said if n["speaker"] == s) for s in speakers}
    for note in [*said, *(n for n in notes["talks"] if n["wav"] in prints)]:
        own = prints[note["wav"]]
        note["likeness"] = []
        for speaker in speakers:
            mean = sums[speaker] - (own if speaker == note["speaker"] and note in said else 0)
            note["likeness"].append(float(own @ mean / (np.linalg.norm(mean) + 1e-9)))


def table(notes: dict) -> Table:
    """Of the parts that there are notes of."""
    result = Table(f"Embedded voice, {len(notes.get('said', ()))} utterances through the gateway")
    if "said" in notes:
        _speech(notes, result)
    if "answers" in notes:
        _lengths(notes, result)
    if "texts" in notes:
        _texts(notes["texts"], result)
    if "marks" in notes:
        _marks(notes, result)
    if "stock" in notes:
        stock_decoder.rows(notes["stock"], result)
    if "one_core" in notes:
        _pace(notes["one_core"], result)
    return result


def _speech(notes: dict, result: Table) -> None:
    said = notes["said"]
    _words(notes, result)
    stopped = sum(not note["ended"] for note in said)
    result.at_most("stopped by the cap", stopped, 0, note=f"of {len(said)}", digits=0)
    ratios = np.array([note["frames"] / note["teacher"] for note in said])
    share = 100 * float(np.mean((ratios >= 0.7) & (ratios <= 1.4)))
    note = f"median {np.median(ratios):.2f}, least {ratios.min():.2f}, most {ratios.max():.2f}"
    result.at_least("durations 0.7 to 1.4 of the teacher's", share, 100, " %", note)
    for speaker in _speakers(said):
        mean = float(np.mean([n["dnsmos"] for n in said if n["speaker"] == speaker and "dnsmos" in n]))
        result.at_least(f"DNSMOS OVRL, {_name(notes, speaker)}", mean, 3.2, digits=2)
    for what, key in (("codec alone", lambda n: n["dnsmos"]), ("teacher", lambda n: n["teacher"]["dnsmos"])):
        means = [np.mean([key(n) for n in notes["codec"] if n["speaker"] == s]) for s in _speakers(notes["codec"])]
        result.tell(f"DNSMOS OVRL, {what}, speaker by speaker", " / ".join(f"{mean:.2f}" for mean in means))
    _sibilants(notes["codec"], result)
    _likeness(said, "", result)
    _talks(notes, result)
    _loss(notes, result)


def _lengths(notes: dict, result: Table) -> None:
    right = [is_answer(note) for note in notes["answers"]]
    missed = [f"{n['text']} ({n['heard']})" for n, hit in zip(notes["answers"], right, strict=True) if not hit]
    note = f"{sum(right)} of {len(right)}; not: {', '.join(missed) or 'none'}"
    result.at_least("texts of one or two words heard word for word", 100 * np.mean(right), 95, " %", note)
    errors = tally(notes["passages"])
    note = f"{len(notes['passages'])} texts, {errors.words} words"
    result.at_most("WER, texts of 200 to 300 characters", errors.wer, 4, " %", note)
    stopped = [n for n in [*notes["answers"], *notes["passages"]] if not n["ended"]]
    result.at_most("of these stopped by the cap", len(stopped), 0, digits=0)


def _sibilants(notes: list[dict], result: Table) -> None:
    own, taught = (
        np.array([s for note in notes for s in kept(note)["sibilants"]])
        for kept in (lambda note: note, lambda note: note["teacher"])
    )
    if not len(own):
        return
    note = f"the teacher's {taught[:, 0].mean():.1f}, {len(own)} of them, codec alone"
    result.at_most("kurtosis of loud s and sh above 4 kHz", float(own[:, 0].mean()), 10, note=note)
    note = f"{100 * own[:, 1].mean():.0f} % of the energy above 5 kHz in 10 of each 120 samples, {100 * taught[:, 1].mean():.0f} %"
    ratio = float(own[:, 1].mean() / taught[:, 1].mean())
    result.at_most("energy in pulses, over the teacher's", ratio, 1.3, note=note, digits=2)
    result.tell("the same where each 5 ms choose their own pulse", f"{own[:, 2].mean() / taught[:, 2].mean():.2f}")


def _pace(timed: list[dict], result: Table) -> None:
    factors, firsts = ([note[key] for note in timed] for key in ("real_time_factor", "first_s"))
    note = f"most {max(factors):.2f}, {len(timed)} utterances"
    result.at_most("real-time factor on one core, median", float(np.median(factors)), 0.3, note=note, digits=2)
    first_ms = 1000 * float(np.median(firsts))
    result.at_most(
        "first audio on one core, median", first_ms, 400, " ms", f"most {1000 * max(firsts):.0f} ms", digits=0
    )


def _speakers(notes: list[dict]) -> list[int]:
    return sorted({note["speaker"] for note in notes})


def _name(notes: dict, speaker: int) -> str:
    return f"speaker {speaker} ({notes['voices'][str(speaker)]})"


def tally(notes: list[dict]) -> Tally:
    result = Tally()
    for note in notes:
        result.add(note["want"], note["got"])
    return result


def _words(notes: dict, result: Table) -> None:
    tallies = {s: tally([n for n in notes["said"] if n["speaker"] == s]) for s in _speakers(notes["said"])}
    for speaker, errors in tallies.items():
        note = f"CER {errors.cer:.1f} %, {len(errors.want)} sentences, {errors.words} words"
        result.at_most(f"WER, {_name(notes, speaker)}", errors.wer, 2.5, " %", note)
    kinds = dict.fromkeys(note["kind"] for note in sorted(notes["said"], key=lambda n: n["number"]))
    shares = [f"{k} {tally([n for n in notes['said'] if n['kind'] == k]).wer:.1f}" for k in kinds]
    result.tell("WER by kind of sentence, %", ", ".join(shares))
    errors = tally(notes["codec"])
    per_speaker = " / ".join(
        f"{tally([n for n in notes['codec'] if n['speaker'] == s]).wer:.1f}" for s in _speakers(notes["codec"])
    )
    result.at_most("WER, codec alone (teacher's speech)", errors.wer, 1.5, " %", f"speakers {per_speaker}")
    floor = Tally()
    for note in notes["codec"]:
        floor.add(note["want"], note["teacher"]["got"])
    result.tell("WER, the teacher itself", f"{floor.wer:.1f} % (what the recogniser and the number policy cost)")


def _likeness(notes: list[dict], what: str, result: Table) -> None:
    heard = [note for note in notes if "likeness" in note]
    within = [n["likeness"][n["speaker"]] for n in heard]
    across = [x for n in heard for s, x in enumerate(n["likeness"]) if s != n["speaker"]]
    result.tell(f"likeness to a speaker's mean voice{what}", f"own {np.mean(within):.3f}, others {np.mean(across):.3f}")
    hits = 100 * float(np.mean([int(np.argmax(n["likeness"])) == n["speaker"] for n in heard]))
    result.at_least(f"most like its own speaker{what}", hits, 95, " %", f"{len(heard)} utterances", digits=1)


def _texts(notes: list[dict], result: Table) -> None:
    as_wanted = [note["takes"][-1]["as_wanted"] for note in notes]
    first = sum(note["takes"][0]["as_wanted"] for note in notes)
    note = f"{sum(as_wanted)} of {len(notes)}; {first} at the first take, at most {TAKES}"
    result.at_least("texts with numbers, signs, markup heard word for word", 100 * np.mean(as_wanted), 95, " %", note)
    missed = [f"{note['kind']}: {note['words']}" for note in notes if not note["takes"][-1]["as_wanted"]]
    result.tell("of them not", "; ".join(missed) or "none")
    said = sum(note["spoken_text"] == note["words"] for note in notes)
    result.at_least("spoken form told in the summary", 100 * said / len(notes), 100, " %", digits=0)


def _talks(notes: dict, result: Table) -> None:
    for turn in sorted({note["turn"] for note in notes["talks"]}):
        here = [note for note in notes["talks"] if note["turn"] == turn]
        errors = tally(here)
        ended = sum(note["ended"] for note in here)
        result.tell(f"WER after {turn} turns of context",
                    f"{errors.wer:.1f} % ({errors.words} words; {ended} of {len(here)} ended by themselves)")  # fmt: skip
    _likeness([note for note in notes["talks"] if note["turn"]], ", after 1 to 3 turns", result)


def _marks(notes: dict, result: Table) -> None:
    for name in ATTACKS:
        looks = [note["found"] for note in notes["marks"] if note["attack"] == name]
        least = 95 if name.startswith("noise") else 100
        result.at_least(
            f"mark found, {name}", 100 * float(np.mean(looks)), least, " %", f"{sum(looks)} of {len(looks)}"
        )
    alarms = [note["found"] for note in notes["alarms"]]
    result.at_most("false alarms", sum(alarms), 0, note=f"of {len(alarms)} unmarked windows of {CLIP_S:g} s", digits=0)


def _loss(notes: dict, result: Table) -> None:
    said = [note for note in notes["said"] if "sdr_db" in note]
    sdrs = [note["sdr_db"] for note in said]
    result.at_least("mark's SDR, mean", float(np.mean(sdrs)), 30, " dB", f"least {min(sdrs):.1f}")
    loss = float(np.mean([n["dnsmos_unmarked"] - n["dnsmos"] for n in said]))
    result.at_most("DNSMOS loss by the mark", loss, 0.05, digits=3)
