import numpy as np
import pytest
import soxr

from services.watermark.detector import Detector, Verdict
from services.watermark.embedder import Embedder
from services.watermark.key import PUBLIC_KEY, key_symbols
from services.watermark.messages import group_size
from services.watermark.reader import SymbolReader
from services.watermark.votes import VoteTable
from services.watermark.weights import load_nets
from support.watermark_pair import speech_like

OTHER_KEY = bytes([1, 2, 3, 99, 201])


@pytest.fixture(scope="module")
def marked(pair):
    return Embedder(pair, PUBLIC_KEY).embed(speech_like(2.0, seed=0))


@pytest.fixture(scope="module")
def detector(pair):
    return Detector(pair, max_seconds=10)


@pytest.mark.parametrize("cut", [0, 100, 777, 20000])
def test_finds_key_and_position_wherever_the_clip_begins(detector, pair, marked, cut):
    result = detector.detect(marked[cut:], 24000, PUBLIC_KEY)
    assert result.found and result.confidence >= result.threshold
    assert result.decoded_key == PUBLIC_KEY
    begins = -cut / 24000 % pair.hparams.message_seconds
    # The first offset that spells the key is good enough: it may be a quarter of a hop beside the best.
    assert result.position_s == pytest.approx(begins, abs=pair.hparams.hop_length / 4 / 24000)


def test_agrees_with_the_stock_decoder(detector, stock_pair, marked):
    stock = stock_pair.decode_wav(marked, 24000, False)
    ours = detector.detect(marked, 24000, PUBLIC_KEY)
    assert stock["messages"] == [list(ours.decoded_key)] == [list(PUBLIC_KEY)]
    # Symbol by symbol: the share of the likeliest ones that are the message's, as the stock computes it.
    view = detector.reader.view(marked, 24000)
    [probabilities] = detector.reader.read(view, 0, [(0, view.columns)])
    symbols = probabilities.argmax(0)
    share = np.mean(symbols == np.resize(key_symbols(PUBLIC_KEY), len(symbols)))
    assert share == pytest.approx(stock["confidences"][0], abs=0.05)


def test_agrees_with_the_stock_search_on_a_cropped_clip(detector, pair, stock_pair):
    marked = Embedder(pair, PUBLIC_KEY, message_sdr_db=10).embed(speech_like(1.6, seed=0))
    cropped = marked[12345:]
    stock = stock_pair.decode_wav(cropped, 24000, True)
    ours = detector.detect(cropped, 24000, PUBLIC_KEY)
    assert ours.found and stock["messages"] == [list(ours.decoded_key)] == [list(PUBLIC_KEY)]


@pytest.mark.parametrize("speeds", [False, True])
def test_another_key_is_not_found_though_the_clips_own_is_told(detector, marked, speeds):
    result = detector.detect(marked, 24000, OTHER_KEY, speeds=speeds)
    assert not result.found and result.position_s is None
    assert result.confidence < result.threshold and result.decoded_key == PUBLIC_KEY


def test_survives_another_rate_and_noise(detector, marked):
    noise = np.random.default_rng(0).standard_normal(len(marked)).astype(np.float32)
    assert detector.detect(marked + 0.001 * noise, 24000, PUBLIC_KEY).found
    assert detector.detect(soxr.resample(marked, 24000, 44100), 44100, PUBLIC_KEY).found


def test_finds_the_mark_after_silence(detector, marked):
    padded = np.concatenate([np.zeros(30000, np.float32), marked[:30000]])
    assert detector.detect(padded, 24000, PUBLIC_KEY).found


@pytest.mark.parametrize(
    "samples",
    [speech_like(1.5, seed=9), np.zeros(9000), np.zeros(0), np.ones(1), np.ones(9000), np.full(9000, 1e-20)],
    ids=["unmarked", "silence", "nothing", "one sample", "constant", "all but silence"],
)
def test_finds_nothing_where_nothing_is(detector, samples):
    result = detector.detect(samples.astype(np.float32), 24000, PUBLIC_KEY)
    assert not result.found and result.confidence < result.threshold


def test_untrained_nets_find_nothing(untrained):
    samples = Embedder(untrained, PUBLIC_KEY).embed(speech_like(1.0))
    result = Detector(untrained).detect(samples, 24000, PUBLIC_KEY)
    assert not result.found and 0 < result.confidence < result.threshold


def test_stretches_are_read_as_the_whole_clip_is(pair, marked, monkeypatch):
    """Wherever they begin, at whatever offset, and with others of other lengths."""
    reader = SymbolReader(pair)
    view = reader.view(marked, 24000)
    for offset in (0, 77):
        [whole] = reader.read(view, offset, [(0, view.columns)])
        stretches = [(0, 21), (21, 42), (view.columns - 21, 21), (50, 7)]
        for (first, count), part in zip(stretches, reader.read(view, offset, stretches), strict=True):
            assert part.shape == (5, count)
            assert np.abs(part - whole[:, first : first + count]).max() < 0.02


def test_bounds(detector, pair, marked):
    with pytest.raises(ValueError, match=r"audio is 10\.1 s, must be at most 10 s"):
        detector.detect(np.zeros(242400, np.float32), 24000, PUBLIC_KEY)
    with pytest.raises(ValueError, match="key is 6 bytes, must be exactly 5"):
        detector.detect(marked, 24000, PUBLIC_KEY + b"x")
    with pytest.raises(ValueError, match="too regular"):
        detector.detect(marked, 24000, bytes(5))
    with pytest.raises(ValueError, match="finite"):
        detector.detect(np.full(100, np.inf, np.float32), 24000, PUBLIC_KEY)
    with pytest.raises(ValueError, match="sample_rate_hz is 0"):
        detector.detect(marked, 0, PUBLIC_KEY)
    for offsets in (0, 3, 64):
        with pytest.raises(ValueError, match=f"offsets is {offsets}, must be a power of two, at most 32"):
            Detector(pair, offsets=offsets)


def messages_read(detector, samples, monkeypatch, **options):
    """(what is found, how many messages' columns were decoded for it)"""
    columns, read = [], SymbolReader.read

    def counted(self, view, offset, stretches, stopped=lambda: False):
        columns.extend(count for _, count in stretches)
        return read(self, view, offset, stretches, stopped)

    monkeypatch.setattr(SymbolReader, "read", counted)
    return detector.detect(samples, 24000, PUBLIC_KEY, **options), sum(columns) / 21


def decode_as(monkeypatch, probabilities):
    """Read what `probabilities(columns, offset)` gives; returns the (offset, message) read, in their order."""
    read_messages = []

    def read(self, view, offset, stretches, stopped=lambda: False):
        for first, count in stretches:
            read_messages.extend((offset, m) for m in range(first // 21, -(-(first + count) // 21)))
        return [probabilities(np.arange(first, first + count), offset) for first, count in stretches]

    monkeypatch.setattr(SymbolReader, "read", read)
    return read_messages


def clearly(symbols):
    probabilities = np.full((5, len(symbols)), 0.01)
    probabilities[symbols, np.arange(len(symbols))] = 0.96
    return probabilities


def spelling(key, columns):
    return clearly(np.array(key_symbols(key))[columns % 21])


def test_what_is_clearly_another_keys_is_read_at_one_offset(detector, pair, monkeypatch):
    samples = speech_like(32 * pair.hparams.message_seconds, seed=0)
    read = decode_as(monkeypatch, lambda columns, offset: spelling(OTHER_KEY, columns))
    result = detector.detect(samples, 24000, PUBLIC_KEY)
    assert result.verdict is Verdict.NOT_FOUND and result.decoded_key == OTHER_KEY
    assert {offset for offset, _ in read} == {0} and len(read) <= 8


def test_next_to_another_keys_mark_the_key_is_found_at_any_offset(detector, pair, monkeypatch):
    """The key is read in the second half, at one offset alone."""

    def probabilities(columns, offset):
        if columns[0] < 16 * 21:
            return spelling(OTHER_KEY, columns)
        return spelling(PUBLIC_KEY, columns) if offset == 96 else np.full((5, len(columns)), 0.2)

    decode_as(monkeypatch, probabilities)
    result = detector.detect(speech_like(32 * pair.hparams.message_seconds, seed=0), 24000, PUBLIC_KEY)
    [mark] = result.marks
    assert mark.start_s == pytest.approx(16 * pair.hparams.message_seconds, abs=pair.hparams.message_seconds)


def test_a_key_that_is_surely_a_similar_one_is_refused_before_all_is_read(detector, pair, monkeypatch):
    similar = bytes([PUBLIC_KEY[0] ^ 0b0101, *PUBLIC_KEY[1:]])
    read = decode_as(monkeypatch, lambda columns, offset: spelling(similar, columns))
    result = detector.detect(speech_like(32 * pair.hparams.message_seconds, seed=0), 24000, PUBLIC_KEY)
    assert result.verdict is Verdict.OTHER_KEY and len(read) <= 14


@pytest.mark.parametrize("misread", [[5], [5, 11]])
@pytest.mark.parametrize("misread_at_all_offsets", [False, True])
def test_what_one_offset_leaves_open_another_decides(detector, pair, monkeypatch, misread, misread_at_all_offsets):
    """At the first offset places vote for another symbol, though less clearly than the others do for theirs."""

    def probabilities(columns, offset):
        result = spelling(PUBLIC_KEY, columns)
        if offset == 0 or misread_at_all_offsets:
            for place in misread:
                truth = key_symbols(PUBLIC_KEY)[place]
                result[:, columns % 21 == place] = np.where(np.arange(5) == truth, 0.15, 0.04)[:, None]
                result[truth % 4 + 1, columns % 21 == place] = 0.73
        return result

    decode_as(monkeypatch, probabilities)
    result = detector.detect(speech_like(16 * pair.hparams.message_seconds, seed=0), 24000, PUBLIC_KEY)
    assert result.verdict is (Verdict.OTHER_KEY if misread_at_all_offsets else Verdict.FOUND)


def test_an_offset_that_reads_worse_does_not_decide(detector, pair, monkeypatch):
    """Where a similar key's mark is read badly, the place that differs may vote for either."""
    similar = bytes([PUBLIC_KEY[0] ^ 0b0100, *PUBLIC_KEY[1:]])
    [differs] = np.flatnonzero(np.array(key_symbols(similar)) != key_symbols(PUBLIC_KEY))
    certainty = {True: 0.75, False: 0.55}  # at the first offset, and where that place votes for either

    def probabilities(columns, offset):
        sure = np.where((offset == 0) & (columns % 21 == differs), 0.6, certainty[offset == 0])
        sure[(offset != 0) & (columns % 21 == differs)] = 0
        return sure * spelling(similar, columns) + (1 - sure) / 5

    decode_as(monkeypatch, probabilities)
    samples = speech_like(16 * pair.hparams.message_seconds, seed=0)
    assert detector.detect(samples, 24000, PUBLIC_KEY).verdict is Verdict.OTHER_KEY
    assert detector.detect(samples, 24000, similar).found


def test_a_few_last_columns_alone_are_not_read(detector, pair, monkeypatch):
    count = group_size(pair.hparams)
    read = decode_as(monkeypatch, lambda columns, offset: np.full((5, len(columns)), 0.2))
    samples = speech_like((count * 21 + 5) * pair.hparams.hop_length / 24000, seed=0)
    detector.detect(samples, 24000, PUBLIC_KEY)
    assert read and all(message < count for _, message in read)


def test_a_long_clip_without_a_mark_is_read_sparsely(pair, monkeypatch):
    """One message of each group at each offset, and a share of what seems promising."""
    offsets, group = 2, group_size(pair.hparams)
    result, count = messages_read(
        Detector(pair, max_seconds=30, offsets=offsets), speech_like(24.0, seed=9), monkeypatch
    )
    messages = 24 / pair.hparams.message_seconds
    assert not result.found and result.verdict is Verdict.NOT_FOUND
    assert offsets * messages / group <= count <= offsets * (messages / group + 1) + max(8, 0.3 * messages) + 6


def test_a_marked_clip_is_read_little_more_than_once(detector, marked, monkeypatch):
    result, count = messages_read(detector, marked, monkeypatch)
    assert result.found and count <= 2 * len(marked) / 24000 / detector.hparams.message_seconds


def test_a_marked_sentence_is_read_in_part_and_found_whole(detector, pair, monkeypatch):
    """A few of its messages tell the key from similar ones; between those that agree the others are not read."""
    message_s = pair.hparams.message_seconds
    count = 2 * group_size(pair.hparams)
    clip = Embedder(pair, PUBLIC_KEY).embed(speech_like(count * message_s, seed=0))
    result, read = messages_read(detector, clip, monkeypatch)
    [mark] = result.marks
    assert mark.start_s < message_s and mark.end_s > (count - 1) * message_s
    assert 4 <= read <= 0.6 * count


@pytest.mark.parametrize("messages, if_sure, if_unsure", [(5, 4, 5), (16, 5, 6)])
def test_reading_ends_where_the_rest_cannot_make_a_key_doubtful(
    detector, pair, monkeypatch, messages, if_sure, if_unsure
):
    """Six messages are to tell similar keys. Four that are sure of each symbol outweigh any two."""
    samples = speech_like(messages * pair.hparams.message_seconds, seed=0)
    sure = decode_as(monkeypatch, lambda columns, offset: spelling(PUBLIC_KEY, columns))
    assert detector.detect(samples, 24000, PUBLIC_KEY).found and len(set(sure)) == if_sure

    def unsure_of_ten_places(columns, offset):
        certainty = np.where(columns % 21 < 10, 0.1, 1.0)
        return certainty * spelling(PUBLIC_KEY, columns) + (1 - certainty) / 5

    read = decode_as(monkeypatch, unsure_of_ten_places)
    assert detector.detect(samples, 24000, PUBLIC_KEY).found and len(set(read)) == if_unsure


@pytest.mark.parametrize("seed", range(12))
def test_the_verdict_is_that_of_all_that_might_be_read(detector, pair, monkeypatch, seed):
    """Some messages of a short clip spell the key, others a similar one: reading ends early only if that decides."""
    rng = np.random.default_rng(seed)
    similar = bytes([PUBLIC_KEY[0] ^ 0b0100, *PUBLIC_KEY[1:]])
    keys = [similar if other else PUBLIC_KEY for other in rng.uniform(size=6) < rng.choice([0, 0.3, 0.7])]
    strength = rng.uniform(0.5, 1)

    def probabilities(columns, offset):
        spelt = [spelling(keys[column // 21 % 6], np.array([column])) for column in columns]
        return strength * np.concatenate(spelt, axis=1) + (1 - strength) / 5

    samples = speech_like(6 * pair.hparams.message_seconds, seed=seed)
    early = decode_as(monkeypatch, probabilities)
    verdict = detector.detect(samples, 24000, PUBLIC_KEY).verdict
    monkeypatch.setattr(VoteTable, "votes_of", lambda self, messages: np.full(21, 1e6 if messages else 0.0))
    everything = decode_as(monkeypatch, probabilities)
    assert detector.detect(samples, 24000, PUBLIC_KEY).verdict is verdict
    assert len(early) <= len(everything)


def test_a_key_of_which_one_symbol_differs_is_refused(detector, pair):
    message_s = pair.hparams.message_seconds
    clip = Embedder(pair, PUBLIC_KEY).embed(speech_like(2 * group_size(pair.hparams) * message_s, seed=0))
    similar = bytes([PUBLIC_KEY[0] ^ 1, *PUBLIC_KEY[1:]])
    assert detector.detect(clip, 24000, similar).verdict is Verdict.OTHER_KEY


def test_one_misread_message_does_not_prove_a_similar_key(detector, pair, monkeypatch):
    """Four symbols of the key looked for are wrong in all messages but one: that one alone would prove it."""
    truth = key_symbols(PUBLIC_KEY)
    similar = bytes([PUBLIC_KEY[0] ^ 0b01010101, *PUBLIC_KEY[1:]])
    misread = np.flatnonzero(np.array(key_symbols(similar)) != truth)
    assert len(misread) == 4

    def probabilities(columns, offset):
        symbols = np.array(truth)[columns % 21]
        wrong = (columns // 21 == 3) & np.isin(columns % 21, misread)
        symbols[wrong] = np.array(key_symbols(similar))[columns[wrong] % 21]
        return clearly(symbols)

    decode_as(monkeypatch, probabilities)
    samples = speech_like(16 * pair.hparams.message_seconds, seed=0)
    samples[3 * 21 * 256 : 4 * 21 * 256] *= 8  # the loudest is read first
    assert detector.detect(samples, 24000, PUBLIC_KEY).found
    result = detector.detect(samples, 24000, similar)
    assert result.verdict is Verdict.OTHER_KEY and not result.marks and result.decoded_key == PUBLIC_KEY
    assert result.confidence < result.threshold


def test_a_long_clip_marked_in_its_loudest_part_alone_is_found(detector, marked):
    quiet = 0.1 * speech_like(3.2, seed=5)
    hop = detector.hparams.hop_length
    clip = np.concatenate([quiet[: 300 * hop], marked, quiet])
    result = detector.detect(clip, 24000, PUBLIC_KEY)
    assert result.found and result.decoded_key == PUBLIC_KEY
    begins = 300 * hop / 24000
    message_s = detector.hparams.message_seconds
    assert result.position_s == pytest.approx(begins, abs=2 * message_s)
    assert (result.position_s - begins + 0.01) % message_s == pytest.approx(0.01, abs=hop / 4 / 24000)
    [mark] = result.marks
    assert mark.start_s == pytest.approx(begins, abs=message_s) and mark.end_s == pytest.approx(
        begins + len(marked) / 24000, abs=message_s
    )


def test_a_search_can_be_given_up(detector, marked):
    asked = []

    def stopped():
        asked.append(1)
        return len(asked) > 2

    with pytest.raises(InterruptedError):
        detector.detect(speech_like(9.5, seed=9), 24000, PUBLIC_KEY, stopped)
    assert len(asked) == 3


@pytest.mark.gpu
def test_a_device_marks_and_reads_as_the_cpu_does(pair_files, marked):
    nets = load_nets(pair_files, "cuda")
    samples = speech_like(2.0, seed=0)
    opened = Embedder(nets, PUBLIC_KEY).open()
    pieces = [opened.push(samples[i : i + 1920]) for i in range(0, len(samples), 1920)]
    ours = np.concatenate([*pieces, opened.finish()])
    assert np.abs(ours - marked).max() < 1e-3  # convolutions there may run in TF32
    assert Detector(nets).detect(ours, 24000, PUBLIC_KEY).found


def test_after_a_rotation_marks_of_both_keys_are_found_and_told_apart(detector, pair, marked):
    """Newest first: each mark says which key it repeats."""
    newest = Embedder(pair, OTHER_KEY).embed(speech_like(2.0, seed=1))
    silence = np.zeros((len(marked) // 2), np.float32)
    assert [mark.key for mark in detector.detect(newest, 24000, [OTHER_KEY, PUBLIC_KEY]).marks] == [0]
    old = detector.detect(marked, 24000, [OTHER_KEY, PUBLIC_KEY])
    assert old.found and [mark.key for mark in old.marks] == [1] and old.decoded_key == PUBLIC_KEY
    assert old.verdict is Verdict.FOUND and old.confidence >= old.threshold
    both = np.stack([np.concatenate([silence, newest])[: len(marked)], marked[: len(silence) + len(newest)]], axis=1)
    assert {(mark.channel, mark.key) for mark in detector.detect(both, 24000, [OTHER_KEY, PUBLIC_KEY]).marks} == {
        (0, 0),
        (1, 1),
    }


def test_a_key_of_neither_is_not_found_by_looking_for_more_keys(detector, marked):
    strangers = [OTHER_KEY, bytes([9, 8, 7, 66, 55]), bytes([77, 2, 31, 4, 250])]
    result = detector.detect(marked, 24000, strangers)
    assert not result.found and not result.marks and result.decoded_key == PUBLIC_KEY
