"""Started by torchrun: each argument is a JSON list of flags for one run of `hf_cots.train`."""

import json
import os
import sys

import torch

from hf_cots.train import train


torch.set_num_threads(1)
for flags in sys.argv[1:]:
    train(json.loads(flags))
sys.stdout.flush()
# gloo aborts now and then while the interpreter shuts down; the files are written by now.
os._exit(0)
