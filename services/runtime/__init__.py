"""What every server shares: settings, errors, life cycle, channels, health, telemetry, logs, audio bytes.

Knows no torch and no model. A service is a `config.py` (a frozen dataclass read by `settings`), a
`servicer.py` and a `__main__.py` that passes a `Stage` to `server.main`.
"""

import os

# gRPC's core writes lines of its own to standard error, with header names that strangers chose. Set it to debug.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from services.runtime import otel_environment  # noqa: F401 - before any module imports OpenTelemetry
