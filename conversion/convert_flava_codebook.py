"""Convert FLAVA's image codebook to a folder for `--image_tokenizer`, or back; the same as `hf-cots convert flava`.

python conversion/convert_flava_codebook.py facebook/flava-image-codebook --output flava-dvae
python conversion/convert_flava_codebook.py flava-dvae --output flava-again --to-flava
"""

import sys

from hf_cots.cli import app


if __name__ == "__main__":
    app(["convert", "flava", *sys.argv[1:]])
