"""The benchmark of re-ranking beside dual encoders of the same time: its figures, and its set of toned emoji."""

import numpy as np
import torch

from benchmarks import rerank_at_scale, toned_emoji
from benchmarks.ablation.results import Results
from hf_cots.data.sets.emoji import EmojiPair
from hf_cots.search.encoders import EncodedPairs
from hf_cots.search.vectors import l2_normalize
from tests.support.paths import ROOT


RESULTS = ROOT / "benchmarks" / "results"


def test_the_table_is_that_of_the_recorded_runs():
    lines = Results(RESULTS / "rerank_at_scale.jsonl").lines()
    table = (RESULTS / "rerank_at_scale.md").read_text(encoding="utf-8")
    assert rerank_at_scale.summarize_results(lines) == table


def test_recall_among_variants():
    scores = np.array([[3.0, 1.0, 9.0], [2.0, 2.0, 0.0], [9.0, 9.0, 1.0]])
    # The first is the better of its two variants, the second ties with the other one, the third has no other.
    assert rerank_at_scale.variant_recall(scores, ["cook", "cook", "mage"]) == [True, False, True]
    assert rerank_at_scale.variant_recall(scores, ["cook", "cook", "cook"]) == [False, False, False]


def test_another_dual_encoder_scores_the_candidates_of_the_first():
    rng = np.random.default_rng(0)
    ids, rows = np.arange(9), list(range(9))
    drawn = [l2_normalize(rng.standard_normal((9, 4)).astype(np.float32)) for _ in range(4)]
    first = EncodedPairs(drawn[0], drawn[1], ids, ids, rows, rows, [])
    other = EncodedPairs(drawn[2], drawn[3], ids, ids, rows, rows, [])
    found = rerank_at_scale.by_embeddings(first, other, "text_to_image")
    for query in range(9):
        own = torch.tensor(first.text_embeds[query] @ first.image_embeds.T)
        assert found.candidates[query].tolist() == own.argsort(descending=True).tolist()
        expected = (other.text_embeds[query] @ other.image_embeds.T)[found.candidates[query]]
        np.testing.assert_allclose(found.logits[query], expected, atol=1e-6)


def test_differences_are_those_of_the_best_dual_encoder():
    ranks = {"clip": [1, 2, 1, 5], "momentum": [2, 2, 2, 2], "simla re-ranks": [1, 1, 3, 5]}
    systems = {name: {"text_to_image": {"ranks": each}} for name, each in ranks.items()}
    lines = [{"best": "clip", "galleries": {"test": {"systems": systems}}}]
    spread, difference = rerank_at_scale.cells(lines, "test", "momentum", "text_to_image", False)
    assert spread == "0.0 ± 0.0"
    assert difference.startswith("-50.0 [")
    assert rerank_at_scale.cells(lines, "test", "simla re-ranks", "text_to_image", False)[1].startswith("+0.0 [")
    assert rerank_at_scale.cells(lines, "test", "best", "text_to_image", False) == ["50.0 ± 0.0", ""]


def test_no_concept_is_on_two_sides():
    sides = {}
    for concept in (f"1F{number:03X}" for number in range(400)):
        for style in ("twemoji", "openmoji", toned_emoji.NEW_STYLE):
            side = toned_emoji.find_side(EmojiPair(f"{style}.png", concept, concept, style, "picture", concept))
            sides.setdefault(side, set()).add(concept)
            assert side in (None, "train", "validation", "test", "new_style")
            assert side != "train" or style != toned_emoji.NEW_STYLE
    assert sides["new_style"] < sides["train"]
    assert sides["train"].isdisjoint(sides["test"] | sides["validation"])
    assert sides["test"].isdisjoint(sides["validation"])
