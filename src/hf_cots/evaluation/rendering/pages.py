"""Pages of pictures: one HTML file with its thumbnails inside, so that it can be sent, or kept with the results."""

import base64
import html
import io

from ...data.sources import PairDataset


STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
img { max-width: 100%; border-radius: 4px; background: #fff; }
figcaption { overflow-wrap: anywhere; }
"""


def page(title: str, style: str, body: str) -> str:
    """A whole HTML document.

    Args:
        title: plain text, also its heading.
        style: CSS beside what all pages share.
        body: HTML.
    """
    text = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{text}</title>'
        f"<style>{STYLE}{style}</style></head><body><h1>{text}</h1>{body}</body></html>\n"
    )


def thumbnail(pairs: PairDataset, row: int, size: int) -> str:
    """An `<img>` with a row's picture inside, at most `size` pixels a side."""
    picture = pairs.read_row(row)
    picture.thumbnail((size, size))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="row {row}" src="data:image/jpeg;base64,{data}">'
