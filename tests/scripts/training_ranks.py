"""Started by torchrun: each argument is a JSON list of flags for one run of `hf_cots.train`, here in float64."""

import sys

from tests.support.recording import DoubleTrainer, train_and_leave


train_and_leave(DoubleTrainer, sys.argv[1:])
