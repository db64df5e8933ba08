"""The device a setting names."""

from __future__ import annotations

import torch

from models.files import ModelError


class DeviceError(ModelError):
    """There is no such device here."""


def usable_device(variable: str, name: str) -> torch.device:
    """The torch device `name`, tried out. variable: the setting it came from, for the message.

    Raises: DeviceError when there is no such device here.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise DeviceError(f"{variable}={name!r}: cannot be used ({reason})") from error
    return device
