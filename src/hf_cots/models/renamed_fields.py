"""Old names of config fields, their values and buffers, as found in saved files and recipes."""

from typing import Any


RENAMED = {
    "fresh_negatives": "enqueue_before_loss",
    "masked_share": "masked_fraction",
    "reference_quirks": "match_original_code",
}
RENAMED_VALUES = {"text_view": {"sibling": "other_caption"}}
# Options that are gone, with the value that they had unless somebody set them: the only one that can be loaded.
REMOVED = {
    "contrast_on_masked_images": False,
    "detach_global_features": False,
    "detach_task_target": False,
    "task_direction": "symmetric",
}
RENAMED_BUFFERS = {"pair_numbers": "pair_index"}  # of `KeyQueue`


def rename_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Rename config fields from their old names to the current ones.

    Raises:
        ValueError: if an option that was removed has another value than its default, or a field stands under both
            of its names.
    """
    renamed: dict[str, Any] = {}
    for name, value in fields.items():
        if name in REMOVED:
            if value != REMOVED[name]:
                raise ValueError(f"the option {name} was removed; only its default {REMOVED[name]!r} can be loaded")
            continue
        new = RENAMED.get(name, name)
        if new != name and new in fields:
            raise ValueError(f"{name} is now called {new}; give one of the two")
        values = RENAMED_VALUES.get(new, {})
        renamed[new] = values.get(value, value) if isinstance(value, str) else value
    return renamed
