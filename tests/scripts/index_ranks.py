"""Started by torchrun: `index_ranks.py MODEL PHOTOS OUTPUT`; builds an index, changes the photos, and updates it."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

from hf_cots import ImageIndex
from hf_cots.search.processes import processes
from tests.support.pixel_encoder import change_folder


torch.set_num_threads(1)
model, photos, output = sys.argv[1:]
output = Path(output)
state = processes()
assert state.num_processes == 2
counts = []
for step in ("build", "update"):
    if step == "update" and state.is_main_process:
        change_folder(Path(photos))
    state.wait_for_everyone()
    index = ImageIndex.build(model, photos, output / "index", batch_size=4, device="cpu")
    counts.append(index.summary.counts())
    np.save(output / f"{step}-{state.process_index}.npy", index.embeds)
    index.store.close()
if state.is_main_process:
    (output / "counts.json").write_text(json.dumps(counts))
sys.stdout.flush()
# gloo aborts now and then while the interpreter shuts down; the files are written by now.
os._exit(0)
