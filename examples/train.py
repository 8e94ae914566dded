"""Train COTS on image-text pairs from two pretrained towers, evaluate it, and save it for search.

python examples/train.py my_pairs/ my_test_pairs/
"""

import sys

from transformers import AutoTokenizer

from hf_cots import (
    COTSCollator,
    COTSForPreTraining,
    COTSImageProcessor,
    COTSProcessor,
    COTSTrainer,
    COTSTrainingArguments,
    RandomCropFlip,
    load_pairs,
)


VISION, TEXT = "google/vit-base-patch16-224", "google-bert/bert-base-uncased"
OUTPUT = "runs/train"


def main(train_data: str, eval_data: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TEXT, model_max_length=32)
    # Without the token level: masked patches (mvm_weight) need an image tokenizer, see docs/tokenizers.md.
    model = COTSForPreTraining.from_vision_text_pretrained(
        VISION, TEXT, queue_size=1024, temperature=0.07, learn_temperature=True, mvm_weight=0, mlm_weight=0
    )
    size = model.config.vision_config.image_size
    images = COTSImageProcessor(size={"height": size, "width": size}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor = COTSProcessor(images, tokenizer)
    trainer = COTSTrainer(
        model=model,
        args=COTSTrainingArguments(
            OUTPUT, num_train_epochs=3, per_device_train_batch_size=32, learning_rate=5e-5, warmup_steps=0.1
        ),
        data_collator=COTSCollator(processor, model.config, RandomCropFlip(size)),
        train_dataset=load_pairs(train_data),
        eval_dataset=load_pairs(eval_data),
        processing_class=processor,
    )
    trainer.train()
    metrics = trainer.evaluate()
    print({name: round(value, 1) for name, value in metrics.items() if "R@" in name})
    model.encoder.save_pretrained(f"{OUTPUT}/model")
    processor.save_pretrained(f"{OUTPUT}/model")


if __name__ == "__main__":
    main(*sys.argv[1:])
