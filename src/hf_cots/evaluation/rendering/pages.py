"""Self-contained HTML pages: Jinja2 templates from `templates/`, with thumbnails embedded in the file."""

import base64
import io
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ...data.sources import PairDataset
from .panels import as_picture


TEMPLATES = Environment(
    loader=PackageLoader(__package__),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)


def render_page(template: str, **values: Any) -> str:
    """Render an HTML document.

    Args:
        template: name of a file in `templates/` that extends `base.html`.
        values: the template's variables, `title` among them. Text is escaped.
    """
    return TEMPLATES.get_template(template).render(values)


def thumbnail(pairs: PairDataset, row: int, size: int) -> str:
    """Encode the image of a row, or four frames of a clip in two rows, as the `data:` URI of a JPEG of at most `size`
    pixels per side."""
    image = as_picture(pairs.read_row(row), size)
    image.thumbnail((size, size))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
