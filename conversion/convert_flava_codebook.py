"""FLAVA's image codebook as a folder for `--image_tokenizer`, or such a folder as FLAVA's.

python conversion/convert_flava_codebook.py facebook/flava-image-codebook --output flava-dvae
python conversion/convert_flava_codebook.py flava-dvae --output flava-again --to_flava
"""

import argparse
import sys

from transformers import FlavaImageCodebook

from hf_cots import COTSImageTokenizer
from hf_cots.conversion.image_tokenizers import convert_flava, to_flava


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="Hub id or folder of FLAVA's codebook; with --to_flava, of ours")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--decoder", help="DALL-E's decoder.pkl; without it the result can only tokenize")
    parser.add_argument("--image_size", type=int, default=192, help="pixels a side, 8 per patch of the image stream")
    parser.add_argument("--to_flava", action="store_true", help="the other direction; the decoder is left out")
    arguments = parser.parse_args(argv)
    try:
        if arguments.to_flava:
            converted = to_flava(COTSImageTokenizer.from_pretrained(arguments.source))
        else:
            codebook = FlavaImageCodebook.from_pretrained(arguments.source)
            converted = convert_flava(codebook, arguments.decoder, arguments.image_size)
        converted.save_pretrained(arguments.output)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
