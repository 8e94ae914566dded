"""Continue training a saved COTS on other pairs, with the image tower frozen and a lower rate for the text tower.

python examples/fine_tune.py my_model my_pairs/ my_test_pairs/
"""

import sys

from transformers import AutoProcessor

from hf_cots import (
    COTSCollator,
    COTSConfig,
    COTSForPreTraining,
    COTSTrainer,
    COTSTrainingArguments,
    RandomCropFlip,
    load_pairs,
)


OUTPUT = "runs/fine_tune"


def main(model_name: str, train_data: str, eval_data: str) -> None:
    processor = AutoProcessor.from_pretrained(model_name)
    # For a few thousand pairs: CLIP's loss, and no token level.
    config = COTSConfig.from_pretrained(model_name, contrast="in_batch", mvm_weight=0, mlm_weight=0)
    model = COTSForPreTraining.from_pretrained(model_name, config=config)
    model.encoder.vision_model.requires_grad_(False)
    trainer = COTSTrainer(
        model=model,
        args=COTSTrainingArguments(
            OUTPUT, num_train_epochs=3, per_device_train_batch_size=16, learning_rate=1e-3, text_learning_rate=2e-5
        ),
        data_collator=COTSCollator(processor, config, RandomCropFlip(config.vision_config.image_size, min_scale=0.5)),
        train_dataset=load_pairs(train_data),
        eval_dataset=load_pairs(eval_data),
        processing_class=processor,
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    for name in ("eval_text_to_image_R@5", "eval_image_to_text_R@5"):
        print(f"{name}: {before[name]:.1f} before, {after[name]:.1f} after")
    model.encoder.save_pretrained(f"{OUTPUT}/model")
    processor.save_pretrained(f"{OUTPUT}/model")


if __name__ == "__main__":
    main(*sys.argv[1:])
