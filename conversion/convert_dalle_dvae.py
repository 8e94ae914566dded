"""Convert OpenAI's discrete VAE to a folder for `--image_tokenizer`; the same as `hf-cots convert dalle`.

    python conversion/convert_dalle_dvae.py encoder.pkl decoder.pkl --output dalle-dvae

The files are https://cdn.openai.com/dall-e/encoder.pkl and decoder.pkl; this script downloads nothing.
"""

import sys

from hf_cots.cli import app


if __name__ == "__main__":
    app(["convert", "dalle", *sys.argv[1:]])
