"""What all conversations of a gateway share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from gateway.access import Access
from gateway.audit import AuditTrail
from gateway.config import GatewaySettings
from gateway.speech.rules import SpeechRules
from gateway.stages import Stages
from gateway.voices.names import VoiceNames
from services.runtime.admission import Admission


@dataclass(frozen=True)
class Deployment:
    """draining: set once the server stops."""

    settings: GatewaySettings
    stages: Stages
    rules: SpeechRules
    access: Access
    streams: Admission
    voices: VoiceNames
    audit: AuditTrail
    draining: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def max_seq_len(self) -> int:
        """Of the model; 0 while it is unknown."""
        return self.stages.info.max_seq_len if self.stages.info is not None else 0
