"""Search a folder of images with a text, and re-rank what is found if a SIMLA model is given.

python examples/search.py my_model my_photos/ "an animal with wings" [my_simla]
"""

import sys

from hf_cots import ImageIndex, RerankedIndex


def main(model: str, folder: str, query: str, reranker: str | None = None) -> None:
    index = ImageIndex.from_folder(model, folder)
    for broken in index.broken:
        print("skipped:", broken, file=sys.stderr)
    matches = index.search(query, k=5)
    if reranker is not None:
        matches = RerankedIndex.from_index(index, reranker).search(query, k=5)
    for match in matches:
        print(f"{match.score:.3f}  {match.path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
