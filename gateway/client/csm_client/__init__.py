"""The client of the speech service: text in, watermarked speech out. See `csm_client.client` and `csm_client.sync`."""

from csm.version import __version__

from csm_client.client import SpeechClient, SpeechStream
from csm_client.conversation import Conversation, ConverseEvent
from csm_client.exceptions import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    ServerFault,
    SpeechError,
    Unauthenticated,
    Unavailable,
)
from csm_client.requests import ContextTurn, SpeechOptions
from csm_client.sync import SyncSpeechClient, SyncSpeechStream

__all__ = [
    "ContextTurn",
    "Conversation",
    "ConverseEvent",
    "DeadlineExceeded",
    "InvalidRequest",
    "Overloaded",
    "ServerFault",
    "SpeechClient",
    "SpeechError",
    "SpeechOptions",
    "SpeechStream",
    "SyncSpeechClient",
    "SyncSpeechStream",
    "Unauthenticated",
    "Unavailable",
    "__version__",
]
