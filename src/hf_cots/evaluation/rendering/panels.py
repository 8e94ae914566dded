"""Tensors as pictures: contact sheets, and rows of panels with a title below each."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont


BACKGROUND = (235, 235, 235)  # so that white pictures have edges


def to_picture(pixels: torch.Tensor, side: int | None = None) -> Image.Image:
    """Pixels (3, height, width) in [0, 1] as a picture, enlarged or reduced to `side` x `side` without smoothing."""
    values = (pixels.detach().float().clamp(0, 1) * 255).round().byte()
    picture = Image.fromarray(values.permute(1, 2, 0).cpu().numpy())
    return picture if side is None else picture.resize((side, side), Image.Resampling.NEAREST)


def contact_sheet(rows: Sequence[torch.Tensor], side: int = 72, gap: int = 4) -> Image.Image:
    """Rows of pictures (columns, 3, height, width), on white, each `side` pixels large."""
    step = side + gap
    sheet = Image.new("RGB", (len(rows[0]) * step + gap, len(rows) * step + gap), "white")
    for row, pictures in enumerate(rows):
        for column, pixels in enumerate(pictures):
            sheet.paste(to_picture(pixels, side), (column * step + gap, row * step + gap))
    return sheet


def draw_panels(panels: Sequence[tuple[str, torch.Tensor]], side: int = 224, gap: int = 8) -> Image.Image:
    """Panels side by side.

    Args:
        panels: a title of one or two lines, and pixels (3, height, width) in [0, 1], of each.
        side: of each panel in pixels; enlarging does not smooth.
        gap: between them.
    """
    font = ImageFont.load_default(13)
    sheet = Image.new("RGB", (len(panels) * (side + gap) + gap, side + 4 * gap + 34), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for number, (title, pixels) in enumerate(panels):
        left = number * (side + gap) + gap
        sheet.paste(to_picture(pixels, side), (left, gap))
        lines = [_cut(line, pen, font, side - 2) for line in title.split("\n")]
        pen.multiline_text((left, side + 2 * gap), "\n".join(lines), fill="black", font=font)
    return sheet


def _cut(line: str, pen: ImageDraw.ImageDraw, font, width: int) -> str:
    """A line that is not wider than `width` pixels; what is lost of it shows as dots."""
    if pen.textlength(line, font=font) <= width:
        return line
    while line and pen.textlength(line + "...", font=font) > width:
        line = line[:-1]
    return line + "..."
