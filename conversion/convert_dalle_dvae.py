"""OpenAI's discrete VAE as a folder for `--image_tokenizer`.

    python conversion/convert_dalle_dvae.py encoder.pkl decoder.pkl --output dalle-dvae

The files are https://cdn.openai.com/dall-e/encoder.pkl and decoder.pkl; this script fetches nothing.
"""

import argparse
import sys

from hf_cots.conversion.image_tokenizers import convert_dalle


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", help="encoder.pkl")
    parser.add_argument("decoder", nargs="?", help="decoder.pkl; without it the result can only tokenize")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--image_size", type=int, default=192, help="pixels a side, 8 per patch of the image stream")
    arguments = parser.parse_args(argv)
    try:
        convert_dalle(arguments.encoder, arguments.decoder, arguments.image_size).save_pretrained(arguments.output)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
