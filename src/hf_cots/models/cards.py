"""The card that lies beside saved weights and goes to the Hub with them; this file travels with the model's code."""

import re
import shutil
from pathlib import Path

from huggingface_hub import ModelCardData


UNKNOWN_LICENSE = "unknown"  # the Hub's identifier for a license that nobody has named
NO_LICENSE = (
    "**None was chosen.** It depends on the training data and the pretrained towers, so that only the owner of the "
    "weights can name it: put its identifier (such as `apache-2.0` or `cc-by-4.0`) in place of `license: unknown` "
    "above before others use this model."
)
# What a card shows or names of its folder, and so goes along with it.
RECORDS = ("training.json", "results.json", "recipe.yaml", "losses.png", "queries.png", "reconstructions.png")
AUTOMATIC = "This model card has been automatically generated"  # in the card that transformers makes up
KINDS = {
    "cots": "COTS model (Lu et al., CVPR 2022, arXiv 2204.07441)",
    "simla": "SIMLA model (Khan et al., ECCV 2022, arXiv 2203.14395)",
    "cookie": "COOKIE model (Wen et al., ICCV 2021)",
    "cots_image_tokenizer": "discrete VAE as image tokenizer (Ramesh et al., 2021, arXiv 2102.12092)",
}
CARD = """---
{data}
---

# {name}

A {kind} of [hf_cots](https://pypi.org/project/hf-cots/). These are not the weights of the paper's authors.

## Use

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("{location}", trust_remote_code=True)
```

## Training and results

Not described: this card was made when the model was saved, and not by a training run.

## License

{license}
"""


def make_card(model, location: str) -> str:
    """A short card for a model of which nothing but its kind is known.

    Args:
        model: ours.
        location: what its users pass to `from_pretrained`.
    """
    kind = model.config.model_type
    data = ModelCardData(license=UNKNOWN_LICENSE, library_name="transformers", tags=["hf_cots", kind])
    return CARD.format(
        data=data.to_yaml(),
        name=location.rpartition("/")[2],
        kind=KINDS.get(kind, f"{kind} model"),
        location=location,
        license=NO_LICENSE,
    )


def read_card(folder: Path | str) -> str | None:
    """A folder's own card, None if there is none or transformers made it up."""
    path = Path(folder) / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else AUTOMATIC
    return None if AUTOMATIC in text else text


def rename_in_card(text: str, location: str) -> str:
    """Replace what a card's examples pass to `from_pretrained`."""
    return re.sub(r"(from_pretrained\(\s*)([\"'])[^\"']*\2", lambda m: f"{m[1]}{m[2]}{location}{m[2]}", text)


def forget_paths(config) -> None:
    """Take out of the configs of a model's parts the folders of this machine that they were loaded from."""
    for name in getattr(config, "sub_configs", {}):
        part = getattr(config, name, None)
        source = getattr(part, "_name_or_path", "")
        if source and (Path(source).is_absolute() or Path(source).exists()):
            part._name_or_path = ""


class WithCard:
    """Mixed into a `PreTrainedModel`: a saved folder without a card gets one, and what goes to the Hub takes it along.

    It is the card of the folder that the model was loaded from, or a short one; a card that the folder or the
    repository has already stays. Without this transformers uploads an empty card in its place.
    """

    def save_pretrained(self, save_directory, **kwargs):
        """As in transformers, with a card, and without paths of this machine in the config."""
        forget_paths(self.config)
        self._own_card = read_card(save_directory)  # an upload below would replace it first
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            card = self.__dict__.pop("_own_card")
        folder = Path(save_directory)
        # A checkpoint is a stage of training: the card of what training began with says nothing about it.
        is_stage = re.fullmatch(r"checkpoint-\d+", folder.name)
        if kwargs.get("is_main_process", True) and not is_stage and read_card(folder) is None:
            (folder / "README.md").write_text(card or self._find_card(folder), encoding="utf-8")

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        if read_card(working_dir) is None:
            card = self.__dict__.get("_own_card") or self._find_card(Path(working_dir), repo_id)
            (Path(working_dir) / "README.md").write_text(rename_in_card(card, repo_id), encoding="utf-8")
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def _find_card(self, folder: Path, location: str = "") -> str:
        """The card of the folder that the model was loaded from, whose records are then copied, or a short one."""
        source = getattr(self, "name_or_path", "")
        card = read_card(source) if source else None
        if card is None:
            return make_card(self, location or folder.name)
        for name in RECORDS:
            if (Path(source) / name).is_file() and not (folder / name).exists():
                shutil.copy(Path(source) / name, folder / name)
        return card
