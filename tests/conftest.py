"""What every test's process is given, before anything is imported."""

import os
import signal

# Tests run beside other processes on few cores, where two torch threads that wait for each other are
# several times slower than one.
os.environ["OMP_NUM_THREADS"] = "1"

# A shell starts background jobs with SIGINT ignored, and children inherit that: a test that interrupts
# a command would wait for ever. A handler of ours becomes the default in a child.
signal.signal(signal.SIGINT, signal.default_int_handler)
