"""Image-text retrieval for `evaluate`: R@K as papers print it, and ranks, in both directions, from embeddings."""

import datasets
import evaluate
import numpy as np

from .metrics import rsum, summarize
from .ranking import first_occurrences, rank_queries


DESCRIPTION = """
Retrieval of images by texts and of texts by images, from the embeddings of image-text pairs. R@K is hit@K in percent:
any correct answer among the first K. Ties count with the probability that a random order would put a correct answer
there, so that a model which gives every pair the same score gets exactly the chance level. Exact and streaming: the
matrix of all scores is never made.
"""

INPUTS = """
Args:
    image_embeds: one vector per pair, of any length greater than 0; scores are cosine similarities.
    text_embeds: one vector per pair, of the same dimension.
    image_ids: integers; pairs with equal ids show the same image.
    one_image_per_id: True (default) takes the first vector of each id as the image, so that several captions of one
        image do not put it into the gallery several times; False takes each pair's image as an entry of its own.
Returns:
    text_to_image_* and image_to_text_* for R@1, R@5, R@10, MRR, nDCG@10, mAP and fractional_R@1, @5, @10 (the fraction
    of a query's correct answers among the first K), all in percent, and median_rank and mean_rank of the first
    correct answer, from 1; rsum, the sum of the six R@K.
Examples:
    >>> retrieval = evaluate.load("metrics/retrieval")
    >>> results = retrieval.compute(image_embeds=[[1, 0], [0, 1]], text_embeds=[[1, 0], [1, 1]], image_ids=[0, 1])
    >>> results["text_to_image_R@1"]
    75.0
"""

CITATION = """
@inproceedings{mcsherry2008computing,
  title={Computing information retrieval performance measures efficiently in the presence of tied scores},
  author={McSherry, Frank and Najork, Marc},
  booktitle={European Conference on Information Retrieval},
  year={2008}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class Retrieval(evaluate.Metric):
    def _info(self):
        vector = datasets.Sequence(datasets.Value("float32"))
        features = {"image_embeds": vector, "text_embeds": vector, "image_ids": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(features),
            reference_urls=["https://arxiv.org/abs/2204.07441"],
        )

    def _compute(self, image_embeds, text_embeds, image_ids, one_image_per_id=True):
        images, texts = (self._normalize(vectors) for vectors in (image_embeds, text_embeds))
        text_ids = gallery_ids = np.asarray(image_ids, dtype=np.int64)
        if one_image_per_id:
            first = first_occurrences(text_ids)
            images, gallery_ids = images[first], text_ids[first]
        results = {
            "text_to_image": summarize(rank_queries(texts, images, text_ids, gallery_ids)),
            "image_to_text": summarize(rank_queries(images, texts, gallery_ids, text_ids)),
        }
        flat = {f"{name}_{metric}": value for name, values in results.items() for metric, value in values.items()}
        return flat | {"rsum": rsum(results)}

    @staticmethod
    def _normalize(vectors):
        lengths = {len(vector) for vector in vectors}
        if len(lengths) > 1:
            raise ValueError(f"embeddings differ in dimension: {sorted(lengths)}")
        embeds = np.asarray(vectors, dtype=np.float64)
        return embeds / np.linalg.norm(embeds, axis=1, keepdims=True)
