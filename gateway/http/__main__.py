"""`python -m gateway.http`: the HTTP face of a gateway."""

from __future__ import annotations

from services.runtime.extras import require_extra

require_extra("http")

from gateway.http.server import main

if __name__ == "__main__":
    main()
