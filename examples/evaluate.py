"""Evaluate a saved model on image-text pairs, in both directions.

    python examples/evaluate.py my_model my_test_pairs/

`hf-cots evaluate` adds confidence intervals, a paired test against another model, and a page of failures.
"""

import sys

from transformers import AutoModel, AutoProcessor

from hf_cots import evaluate_retrieval, load_pairs


def main(model_name: str, data: str) -> None:
    model, processor = AutoModel.from_pretrained(model_name).eval(), AutoProcessor.from_pretrained(model_name)
    for direction, metrics in evaluate_retrieval(model, processor, load_pairs(data)).items():
        recalls = " / ".join(f"{metrics[f'R@{k}']:.1f}" for k in (1, 5, 10))
        print(f"{direction}: R@1/5/10 {recalls}, median rank {metrics['median_rank']:g}")


if __name__ == "__main__":
    main(*sys.argv[1:])
