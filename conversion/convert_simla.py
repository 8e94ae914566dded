"""Convert a checkpoint of SIMLA's authors to a folder for `AutoModel`, or back; the same as `hf-cots convert simla`.

    python conversion/convert_simla.py pretrain.pth --output simla --tokenizer google-bert/bert-base-uncased
    python conversion/convert_simla.py pretrain.pth --output simla-384 --image-size 384 --retrieval
    python conversion/convert_simla.py simla --output again.pth --to-simla

This script downloads nothing but the tokenizer that is named.
"""

import sys

from hf_cots.cli import app


if __name__ == "__main__":
    app(["convert", "simla", *sys.argv[1:]])
