"""The client of the speech service: text in, watermarked speech out. See `csm_client.client`."""

from csm_client.client import ContextTurn, SpeechClient, SpeechStream
from csm_client.exceptions import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    ServerFault,
    SpeechError,
    Unauthenticated,
    Unavailable,
)

__all__ = [
    "ContextTurn",
    "DeadlineExceeded",
    "InvalidRequest",
    "Overloaded",
    "ServerFault",
    "SpeechClient",
    "SpeechError",
    "SpeechStream",
    "Unauthenticated",
    "Unavailable",
]
