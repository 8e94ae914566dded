"""`compute_metrics` for `transformers.Trainer`: retrieval over the whole evaluation set, not within batches.

Trainer gathers the model's outputs from all processes. Score matrices within batches cannot be combined to the matrix
over the whole set, and the last batch's is smaller; embeddings can be concatenated, and are only n x D. So only
embeddings are gathered, and the queries are then divided among the processes.
"""

from collections.abc import Mapping
from dataclasses import fields

import numpy as np
from transformers import EvalPrediction
from transformers.utils import ModelOutput

from ...search.encoders import EncodedPairs
from .directions import rank_both
from .metrics import rsum
from .ranking import as_array, first_occurrences


EMBEDS = ("image_embeds", "text_embeds")


class RetrievalMetrics:
    """A `compute_metrics` for `transformers.Trainer` on image-text pairs.

    ```python
    metrics = RetrievalMetrics(COTSForPreTrainingOutput)                     # or CLIPOutput, SiglipOutput, ...
    model.config.keys_to_ignore_at_inference = metrics.ignore_keys
    arguments = TrainingArguments(..., label_names=["image_ids"])            # the batch has `image_ids` (b,) int64
    Trainer(model, arguments, compute_metrics=metrics, ...).evaluate()       # eval_text_to_image_R@1, ..., eval_rsum
    ```

    Works in one process and in several (each gets the same result), with a smaller last batch, and with
    `batch_eval_metrics=True`.

    Args:
        output_class: the type that the model's forward returns; has normalized `image_embeds` and `text_embeds` of the
            same pairs, (b, D) each.
        one_image_per_id: True keeps the first embedding of each image id, so that an image with five captions is in
            the gallery once. False makes each pair's image an entry of its own.

    Attributes:
        ignore_keys: names of all outputs except the embeddings, for `keys_to_ignore_at_inference` or `ignore_keys`.

    Raises:
        ValueError: if the output class lacks one of the two.
    """

    def __init__(self, output_class: type[ModelOutput], one_image_per_id: bool = True):
        names = [field.name for field in fields(output_class)]
        missing = [name for name in EMBEDS if name not in names]
        if missing:
            raise ValueError(f"{output_class.__name__} has no field '{missing[0]}'; it has {', '.join(names)}")
        self.order = [name for name in names if name in EMBEDS]
        self.ignore_keys = [name for name in names if name not in EMBEDS and name != "loss"]
        self.one_image_per_id = one_image_per_id
        self._batches: list[dict[str, np.ndarray]] = []

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> Mapping[str, float]:
        """Collect predictions; with the last batch, compute the metrics over all of them.

        Args:
            prediction: `predictions`, the two embeddings in the order of the output class, and `label_ids`, the (n,)
                image ids; of the whole set or of one batch.
            compute_result: False for all batches but the last.

        Returns:
            The metrics of both directions, such as `text_to_image_R@1`, and `rsum`; empty before the last batch.

        Raises:
            ValueError: if the predictions are not two embeddings, or the labels are not one id per pair.
        """
        self._batches.append(self._validate(prediction))
        if not compute_result:
            return {}
        images, texts, ids = (
            np.concatenate([batch[name] for batch in self._batches]) for name in (*EMBEDS, "image_ids")
        )
        self._batches = []
        first = first_occurrences(ids) if self.one_image_per_id else np.arange(len(ids))
        encoded = EncodedPairs(images[first], texts, ids[first], ids, rows=[], captions=[], broken=[])
        # Trainer calls this in all processes, with the same predictions.
        ranked = rank_both(encoded, split_queries=True)
        results = {name: direction.metrics() for name, direction in ranked.items()}
        flat = {f"{name}_{metric}": value for name, values in results.items() for metric, value in values.items()}
        return flat | {"rsum": rsum(results)}

    def _validate(self, prediction: EvalPrediction) -> dict[str, np.ndarray]:
        embeds, ids = prediction.predictions, prediction.label_ids
        shapes = [tuple(np.shape(each)) for each in embeds] if isinstance(embeds, (tuple, list)) else []
        if len(shapes) != 2 or shapes[0] != shapes[1] or len(shapes[0]) != 2:
            raise ValueError(
                f"predictions must be {' and '.join(self.order)} of the same pairs, got shapes {shapes}: set "
                f"model.config.keys_to_ignore_at_inference to the `ignore_keys` of RetrievalMetrics"
            )
        if isinstance(ids, (tuple, list)) or np.shape(ids) != shapes[0][:1]:
            raise ValueError("labels must be one image id a pair: set label_names=['image_ids'] in TrainingArguments")
        named = dict(zip(self.order, embeds)) | {"image_ids": ids}
        return {name: as_array(each) for name, each in named.items()}
