"""One thread for torch, said before anything imports it: tests run beside other processes on few cores,
where two threads that wait for each other are several times slower than one."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
