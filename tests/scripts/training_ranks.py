"""Started by torchrun: each argument is a JSON list of flags for one run of `hf_cots.train`, here in float64."""

import json
import os
import sys

import torch

import hf_cots.train
from tests.support.recording import DoubleTrainer


torch.set_num_threads(1)
hf_cots.train.COTSTrainer = DoubleTrainer
for flags in sys.argv[1:]:
    hf_cots.train.train(json.loads(flags))
sys.stdout.flush()
# gloo aborts now and then while the interpreter shuts down; the files are written by now.
os._exit(0)
