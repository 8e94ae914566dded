"""Started by torchrun: `index_refused_ranks.py MODEL PHOTOS OUTPUT`; what each process hears of an index that only the
first one finds to be of another kind, and whether they go on together after that."""

import os
import sys
from pathlib import Path

import torch

from hf_cots import ImageIndex
from hf_cots.search.processes import processes
from hf_cots.search.update import IndexUpdate


torch.set_num_threads(1)
model, photos, output = sys.argv[1:]
output = Path(output)
state = processes()
assert state.num_processes == 2


def refused(**options):
    try:
        ImageIndex.build(model, photos, output / "index", device="cpu", **options)
    except (OSError, ValueError) as error:
        return f"{error}\n"
    return "not refused\n"


def fail(self):
    raise OSError("the disk is full")


ImageIndex.build(model, photos, output / "index", device="cpu").store.close()
told = refused(dtype="int8") + refused(precision="bfloat16")
compare, IndexUpdate.compare = IndexUpdate.compare, fail
told += refused()
IndexUpdate.compare = compare
index = ImageIndex.build(model, photos, output / "index", device="cpu")
(output / f"{state.process_index}.txt").write_text(f"{told}{len(index)}\n")
sys.stdout.flush()
# gloo aborts now and then while the interpreter shuts down; the files are written by now.
os._exit(0)
