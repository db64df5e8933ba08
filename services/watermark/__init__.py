"""The watermark stage: marks audio with SilentCipher as it streams by, and finds the mark again.

Knows nothing of the other stages. `embedder` and `detector` are the core (torch, no gRPC);
`servicer` is the face (gRPC, no torch).
"""
