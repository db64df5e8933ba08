"""When a turn asks for its next unit: early enough for the machine that it runs on."""

from types import SimpleNamespace

import pytest

from gateway.config import GatewaySettings
from gateway.speech.context import Context
from gateway.speech.deadline import Deadline
from gateway.speech.rules import SpeechRules
from gateway.speech.turn import Turn
from gateway.speech.turn_options import TurnOptions
from models.bundle import load_bundle
from services.runtime.settings import read


class AskedText:
    """Keeps what was asked of it."""

    done = True
    speech_s = 0.0

    async def next_unit(self, patience_s, join_s=0.0):
        self.asked = patience_s, join_s


@pytest.mark.parametrize(("opening_s", "patience_s", "join_s"), [(0.0, 3.85, 3.0), (0.2, 3.7, 3.0), (1.0, 2.5, 1.0)])
async def test_a_unit_that_opens_slowly_is_asked_for_earlier(monkeypatch, opening_s, patience_s, join_s):
    text = AskedText()
    rules = SpeechRules.of(read(GatewaySettings, environ={}), load_bundle("embedded"), [1])
    deadline = Deadline(lambda: None, 10.0)
    turn = Turn(SimpleNamespace(info=None), rules, Context(), text, None, TurnOptions(), deadline)
    turn._units.opening_s = opening_s
    monkeypatch.setattr(turn, "_audio_left_s", lambda: 4.0)
    assert await turn._next_unit(None) is None
    assert text.asked == pytest.approx((patience_s, join_s))


def test_a_deadline_grows_with_the_text_and_does_not_count_waiting():
    speech_s = 0.0
    deadline = Deadline(lambda: None, 10.0, lambda: speech_s)
    assert 9 < deadline() <= 10
    speech_s = 20.0
    assert 59 < deadline() <= 60
    deadline.waited(5)
    assert 64 < deadline() <= 65
    assert Deadline(lambda: 3.0, 10.0)() == 3.0
    assert Deadline(lambda: -1.0, 10.0)() == 0.0
