"""Units out of text that comes in time, late, or never."""

import asyncio
from types import SimpleNamespace

import pytest

from gateway.speech import text_source as module
from gateway.speech.text_source import TextSource, TextWaits
from gateway.speech.units import UnitLimits

NEVER = 60.0


def source(sentence_s=NEVER, first_s=NEVER):
    return TextSource(UnitLimits(), "en", TextWaits(sentence_s, first_s))


async def test_a_certain_unit_comes_at_once():
    text = source()
    text.append("Hello there. And ")
    assert await text.next_unit(None) == "Hello there. "


async def test_a_sentence_that_may_go_on_is_taken_after_its_wait():
    text = source(sentence_s=0.01)
    text.append("Hello there.")
    assert await text.next_unit(None) == "Hello there."


async def test_the_first_unit_does_not_wait_for_ever_for_a_sentence():
    text = source(first_s=0.01)
    text.append("Well I think tha")
    assert await text.next_unit(None) == "Well I think "


async def test_later_units_wait_until_the_listener_needs_them():
    text = source(first_s=0.01)
    text.append("One sentence. Well I think tha")
    assert await text.next_unit(None) == "One sentence. "
    waiting = asyncio.create_task(text.next_unit(0.05))
    text.append("t it is")
    assert await waiting == "Well I think that it "


async def test_a_short_first_sentence_waits_for_nothing():
    text = TextSource(UnitLimits(first_chars=30), "en", TextWaits(NEVER, NEVER))
    text.append("Yes, I do. ")
    assert await text.next_unit(None) == "Yes, I do. "


@pytest.fixture
def clock(monkeypatch):
    """What text is timed by: `clock.now` seconds."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock.now)
    return clock


async def test_a_sentences_end_waits_only_for_text_that_can_come_in_time(clock):
    text = source()
    for word in ("That", " is", " all."):
        text.append(word)
        clock.now += 2 * NEVER
    assert await text.next_unit(None) == "That is all."


@pytest.mark.parametrize("pieces", [["It", " costs", " 3.", "5 euros! "], ["See", " Dr. ", "Smith, please! "]])
async def test_text_that_is_likely_to_go_on_is_waited_for_as_long_as_a_piece_takes(clock, pieces):
    text = source(sentence_s=0.001)
    for piece in pieces[:-1]:
        clock.now += NEVER
        text.append(piece)
    taking = asyncio.create_task(text.next_unit(None))
    await asyncio.sleep(0.01)
    assert not taking.done()
    text.append(pieces[-1])
    assert await taking == "".join(pieces)


async def test_a_later_sentence_waits_to_be_joined_while_there_is_time():
    text = source()
    text.append("Hello there, you. So it is. ")
    assert await text.next_unit(None) == "Hello there, you. So it is. "
    text.append("It rains. ")
    taking = asyncio.create_task(text.next_unit(NEVER, NEVER))
    await asyncio.sleep(0)
    text.append("It will be wet tomorrow. ")
    await asyncio.sleep(0)
    assert not taking.done()
    text.flush()
    assert await taking == "It rains. It will be wet tomorrow. "
    text = source()
    text.append("Hello there. ")
    assert await text.next_unit(None) == "Hello there. "
    text.append("It rains. ")
    assert await text.next_unit(NEVER, 0.01) == "It rains. "


async def test_nothing_comes_in_time():
    text = source()
    assert await text.next_unit(0.01) is None
    assert not text.done
    text.append("half")
    assert await text.next_unit(0.01) is None


async def test_a_wait_without_end_ends_with_the_text():
    text = source(first_s=0.01)
    waiting = asyncio.create_task(text.next_unit(None))
    text.append("hal")
    await asyncio.sleep(0)
    text.append("f")
    text.flush()
    assert await waiting == "half"
    assert await text.next_unit(None) is None and text.done


async def test_text_that_comes_while_it_waits_wakes_it():
    text = source()
    waiting = asyncio.create_task(text.next_unit(None))
    await asyncio.sleep(0)
    text.append("It is all done! ")
    assert await waiting == "It is all done! "


async def test_dropped_text_is_forgotten():
    text = source()
    text.append("Not said. " * 100)
    text.drop()
    assert text.done and text.pending == 0
    assert await text.next_unit(None) is None
