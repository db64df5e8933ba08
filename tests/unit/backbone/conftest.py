"""Torch on one thread: several test processes, or a busy machine, make more threads many times slower."""

import torch

torch.set_num_threads(1)
