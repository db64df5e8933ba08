"""The codec stage: decodes frames of codes to audio with Mimi, many streams at once.

Knows nothing of the other stages. `worker` and `decoder` are the core (no gRPC); `servicer` is the gRPC side
(no torch).
"""
