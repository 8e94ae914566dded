"""Started by torchrun like `training_ranks.py`, for runs whose parameters accelerate shards (FSDP2), here on CPUs.

accelerate shards for accelerators only: it is told that these processes hold some. Everything else, from the wrapping
to the collectives and the checkpoints, is the code that runs on GPUs.
"""

import sys

from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

import hf_cots.train
from tests.support.recording import RecordingTrainer, train_and_leave


class ShardedTrainer(RecordingTrainer):
    """Makes sure that what it trains is sharded."""

    def _prepare_for_training(self, *args, **kwargs):
        prepared = super()._prepare_for_training(*args, **kwargs)
        matrices = [parameter for parameter in self.model.parameters() if parameter.dim() == 2]
        assert all(isinstance(parameter, DTensor) for parameter in matrices)
        ema_pairs = dict(self.model.momentum_encoder.named_parameters())
        online = dict(self.model.cots.named_parameters())
        assert all(ema_pairs[name].placements == online[name].placements for name in ema_pairs)
        return prepared


parse = hf_cots.train.parse_arguments


def parse_and_pretend(argv):
    arguments = parse(argv)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return arguments


hf_cots.train.parse_arguments = parse_and_pretend
train_and_leave(ShardedTrainer, sys.argv[1:])
