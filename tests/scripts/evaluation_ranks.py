"""Started by torchrun: `evaluation_ranks.py OUTPUT MODEL DATA OTHER`; the first process writes the results of all."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object

from hf_cots.evaluation.retrieval.directions import processes, rank_direction
from hf_cots.evaluation.retrieval.run import EvaluationRun
from tests.support.embeddings import many_to_many
from tests.support.table_model import trainer_evaluation


torch.set_num_threads(1)
output, model, data, other = sys.argv[1:]
output = Path(output)
state = processes()
assert state.num_processes == 2

columns = rank_direction(*many_to_many(queries=51), split_queries=True).columns
few = rank_direction(*(each[:1] for each in many_to_many(classes=1)), split_queries=True).columns
run = EvaluationRun(model, data, compare=other, dual_softmax=True, resamples=30, output=output / "results.json")
report = run.run(lambda report: None)
trained = [
    trainer_evaluation(output / f"trainer-{batch_eval}", 3, batch_eval_metrics=batch_eval, ddp_backend="gloo")
    for batch_eval in (False, True)
]
results = {
    "columns": {name: column.tolist() for name, column in columns.items()},
    "few": {name: column.tolist() for name, column in few.items()},
    "trainer": trained,
    "rescored": report["transductive"],
}
of_all = gather_object([results])
if state.is_main_process:
    (output / "ranks.json").write_text(json.dumps(of_all, default=np.ndarray.tolist))
sys.stdout.flush()
# gloo aborts now and then while the interpreter shuts down; the files are written by now.
os._exit(0)
