"""Small clips of plain colors, as files."""

import os
import time
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from tests.support.pixel_encoder import write_image


RED, GREEN, BLUE, WHITE = (220, 30, 30), (20, 160, 40), (30, 40, 230), (250, 250, 250)
SIDE = 32


def scenes(colors, side=SIDE):
    """An image of each color."""
    return [Image.new("RGB", (side, side), color) for color in colors]


def write_animation(path, colors, seconds=0.5, age=3600):
    """An animated GIF or WebP in which each color is shown so long."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = scenes(colors)
    options = {"lossless": True} if path.suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=others, duration=int(1000 * seconds), loop=0, **options)
    return make_older(path, age)


def write_film(path, colors, seconds=0.5, age=3600, rate=10, side=SIDE, codec="mpeg4"):
    """An MP4 in which each color is shown so long."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width = stream.height = side
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, rate)
        for color in colors:
            frame = av.VideoFrame.from_ndarray(np.full((side, side, 3), color, np.uint8), format="rgb24")
            for _ in range(int(rate * seconds)):
                frame.pts = None
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return make_older(path, age)


def make_older(path, age):
    """As if the file had been written so many seconds ago."""
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def write_mixed_folder(folder):
    """Two images, a GIF of one frame, and three clips."""
    write_image(folder / "a.png", 1)
    write_image(folder / "sub" / "b.jpg", 2)
    scenes([RED])[0].save(folder / "still.gif")
    make_older(folder / "still.gif", 3600)
    write_animation(folder / "moving.webp", (RED, GREEN, BLUE))
    write_animation(folder / "sub" / "moving.gif", (BLUE, WHITE))
    write_film(folder / "film.mp4", (GREEN, RED, WHITE, BLUE))
    return folder
