"""Draw pixels as images: contact sheets, and rows of panels with a title below each."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ...models.video_frames import VideoFrames


if TYPE_CHECKING:
    import torch

BACKGROUND = (235, 235, 235)  # gray, so that the edges of white images are visible
RIGHT = (60, 160, 100)


def to_image(pixels: "torch.Tensor", side: int) -> Image.Image:
    """Convert pixels (3, height, width) in [0, 1] to an image, scaled to `side` x `side` without smoothing."""
    values = (pixels.detach().float().clamp(0, 1) * 255).round().byte()
    image = Image.fromarray(values.permute(1, 2, 0).cpu().numpy())
    return image.resize((side, side), Image.Resampling.NEAREST)


def contact_sheet(rows: Sequence["torch.Tensor"], side: int = 72, gap: int = 4) -> Image.Image:
    """Draw rows of images (columns, 3, height, width) on white, each scaled to `side` x `side` pixels."""
    step = side + gap
    sheet = Image.new("RGB", (len(rows[0]) * step + gap, len(rows) * step + gap), "white")
    for row, images in enumerate(rows):
        for column, pixels in enumerate(images):
            sheet.paste(to_image(pixels, side), (column * step + gap, row * step + gap))
    return sheet


def draw_panels(panels: Sequence[tuple[str, "torch.Tensor"]], side: int = 224, gap: int = 8) -> Image.Image:
    """Draw panels side by side.

    Args:
        panels: for each a title of one or two lines, and pixels (3, height, width) in [0, 1].
        side: side of each panel in pixels; scaled without smoothing.
        gap: pixels between panels.
    """
    font = ImageFont.load_default(13)
    sheet = Image.new("RGB", (len(panels) * (side + gap) + gap, side + 4 * gap + 34), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for column, (title, pixels) in enumerate(panels):
        left = column * (side + gap) + gap
        sheet.paste(to_image(pixels, side), (left, gap))
        lines = [_truncate(line, pen, font, side - 2) for line in title.split("\n")]
        pen.multiline_text((left, side + 2 * gap), "\n".join(lines), fill="black", font=font)
    return sheet


def draw_sheet(
    panels: Sequence[tuple[str, Image.Image]], columns: int = 5, side: int = 180, gap: int = 8
) -> Image.Image:
    """Draw images in rows, each fitted into a square of `side` pixels, with a title of one line below it."""
    font, step = ImageFont.load_default(12), side + gap
    columns = max(1, min(columns, len(panels)))
    rows = -(-len(panels) // columns)
    sheet = Image.new("RGB", (columns * step + gap, rows * (step + 20) + gap), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for i, (title, image) in enumerate(panels):
        left, top = gap + i % columns * step, gap + i // columns * (step + 20)
        small = ImageOps.contain(image, (side, side))
        sheet.paste(small, (left + (side - small.width) // 2, top + (side - small.height) // 2))
        pen.text((left, top + side + 3), _truncate(title, pen, font, side), fill="black", font=font)
    return sheet


def draw_queries(
    rows: Sequence[tuple[str, Sequence[tuple[str, Image.Image, bool]]]], side: int = 104, gap: int = 8
) -> Image.Image:
    """Draw a row per text with the images found for it, the best first; right ones are framed.

    Args:
        rows: for each a text and its images, each with a short title and whether it is right.
        side: side in pixels of the square into which an image is fitted.
        gap: pixels between images.
    """
    font, left, step = ImageFont.load_default(13), 260, side + gap
    columns = max(len(found) for _, found in rows)
    sheet = Image.new("RGB", (left + columns * step + gap, len(rows) * (step + 18) + gap), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for number, (text, found) in enumerate(rows):
        top = gap + number * (step + 18)
        lines = textwrap.wrap(text, 34)[:5] or [""]
        pen.multiline_text((gap, top + side // 2 - 8 * len(lines)), "\n".join(lines), fill="black", font=font)
        for column, (title, image, right) in enumerate(found):
            place = left + column * step
            small = ImageOps.pad(image, (side, side), color="white")
            sheet.paste(small, (place, top))
            if right:
                pen.rectangle((place - 3, top - 3, place + side + 2, top + side + 2), outline=RIGHT, width=3)
            pen.text((place, top + side + 3), _truncate(title, pen, font, side), fill="black", font=font)
    return sheet


def as_picture(media: Image.Image | VideoFrames, side: int) -> Image.Image:
    """Return an image unchanged; for a clip, draw four frames in two rows, in a square of about `side` pixels."""
    if isinstance(media, VideoFrames):
        return frame_sheet(pick_frames(media.frames, 4), side // 2, columns=2)
    return media


def pick_frames(images: Sequence[Image.Image], most: int) -> list[Image.Image]:
    """Pick at most `most` of the images, evenly spaced."""
    count = min(most, len(images))
    return [images[(2 * i + 1) * len(images) // (2 * count)] for i in range(count)]


def frame_sheet(images: Sequence[Image.Image], side: int, columns: int, gap: int = 2) -> Image.Image:
    """Draw the frames of a clip in rows on white, each fitted into a square of `side` pixels."""
    step, rows = side + gap, -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * step - gap, rows * step - gap), "white")
    for i, image in enumerate(images):
        small = ImageOps.contain(image, (side, side))
        left, top = i % columns * step, i // columns * step
        sheet.paste(small, (left + (side - small.width) // 2, top + (side - small.height) // 2))
    return sheet


def _truncate(line: str, pen: ImageDraw.ImageDraw, font, width: int) -> str:
    """Truncate a line to `width` pixels, with an ellipsis."""
    if pen.textlength(line, font=font) <= width:
        return line
    while line and pen.textlength(line + "...", font=font) > width:
        line = line[:-1]
    return line + "..."
