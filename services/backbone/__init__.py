"""The backbone stage: a prompt to frames of codes."""

import logging

# torchtune needs torchao, which warns at every import about C++ kernels that CSM does not use.
logging.getLogger("torchao").setLevel(logging.ERROR)
