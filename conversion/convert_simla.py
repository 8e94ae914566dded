"""A checkpoint of SIMLA's authors (pre-training or retrieval) as a folder for `AutoModel`, or such a folder as theirs.

    python conversion/convert_simla.py pretrain.pth --output simla --tokenizer google-bert/bert-base-uncased
    python conversion/convert_simla.py pretrain.pth --output simla-384 --image_size 384 --retrieval
    python conversion/convert_simla.py simla --output again.pth --to_simla

This script fetches nothing but the tokenizer that is named.
"""

import argparse
import sys

import torch
from transformers import AutoTokenizer

from hf_cots import COTSImageProcessor, COTSProcessor, SimlaForPreTraining
from hf_cots.conversion.simla import convert_simla, save_converted, simla_tokenizer, to_simla


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="the authors' .pth file; with --to_simla, our folder")
    parser.add_argument("--output", required=True, help="folder to write; with --to_simla, file")
    parser.add_argument("--image_size", type=int, help="pixels a side, if another than the checkpoint's is wanted")
    parser.add_argument("--retrieval", action="store_true", help="leave out masked modelling and keywords")
    parser.add_argument("--tokenizer", help="BERT's tokenizer: Hub id or folder; without it no processor is written")
    parser.add_argument("--to_simla", action="store_true", help="the other direction")
    arguments = parser.parse_args(argv)
    try:
        if arguments.to_simla:
            torch.save(to_simla(SimlaForPreTraining.from_pretrained(arguments.source)), arguments.output)
            return
        left_out = {"mlm_weight": 0, "mim_weight": 0, "psl_weight": 0} if arguments.retrieval else {}
        model = convert_simla(arguments.source, arguments.image_size, **left_out)
        save_converted(model, arguments.output)
        if arguments.tokenizer:
            config, side = model.config, model.config.vision_config.image_size
            pixels = COTSImageProcessor(
                size={"height": side, "width": side}, image_mean=config.image_mean, image_std=config.image_std
            )
            tokenizer = simla_tokenizer(AutoTokenizer.from_pretrained(arguments.tokenizer))
            COTSProcessor(pixels, tokenizer).save_pretrained(arguments.output)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
