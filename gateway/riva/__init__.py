"""NVIDIA Riva's speech synthesis API in front of the chain, so that clients made for Riva work unchanged.

The .proto files state the public API's messages by their names, numbers and types. Their stubs lie beside them, not
among ours: a caller may have Riva's own client, whose files have the same names.
"""
