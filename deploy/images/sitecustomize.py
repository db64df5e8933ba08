"""In an image, a service is process 1, which the kernel spares every signal that it has no handler for.

Without this, a pod that is deleted while its service still imports would not hear of it and be killed
when its grace is over. The server sets its own handler once it runs.
"""

import signal
import sys


def _leave(number: int, _frame: object) -> None:
    sys.exit(128 + number)


signal.signal(signal.SIGTERM, _leave)
