"""The cost of a clip: reading its frames, and encoding them, apart; against decoding all of it.

    python -m benchmarks.video_decoding

Clips are made: 720p at 30 frames a second, a picture that is panned over, H.264 with a key frame at least every 250
frames, as x264 does by default; one of 60 seconds, and the same ten times in a row; and an animated WebP of 512 pixels
and 60 frames. Processor seconds, which other load on the machine hardly affects, medians; the memory is the highest
that the process has held above what it held before it read anything, in a process of its own. The encoder is that of
COTS-base (ViT-B/16 at 384 pixels, random weights). The result is kept in `benchmarks/results/video_decoding.json`.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from hf_cots import COTSConfig, COTSModel, COTSVideoProcessor
from hf_cots.models import read_frames

from .machine import machine


SIZE, RATE, KEY_FRAMES = (1280, 720), 30, 250
FRAMES = 8


def make_film(path: Path, seconds: int) -> None:
    """A pan over a picture of blurred noise, with some noise of its own in every frame."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (45, 120, 3), dtype=np.uint8))
    picture = np.asarray(small.resize((1920, 720), Image.Resampling.BICUBIC)).astype(np.int16)
    grain = rng.integers(-6, 7, (8, 720, 1280, 1), dtype=np.int16)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.gop_size, stream.options = KEY_FRAMES, {"preset": "veryfast"}
        for number in range(seconds * RATE):
            left = int(320 + 319 * np.sin(number / 90))
            pixels = np.clip(picture[:, left : left + 1280] + grain[number % 8], 0, 255).astype(np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        file.mux(stream.encode())


def repeat_film(source: Path, target: Path, times: int) -> None:
    """The same film several times in a row, without encoding it again."""
    with av.open(str(target), "w") as output:
        stream, offset = None, 0
        for _ in range(times):
            with av.open(str(source)) as file:
                template = file.streams.video[0]
                stream = output.add_stream_from_template(template) if stream is None else stream
                for packet in file.demux(template):
                    if packet.dts is not None:
                        packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                        packet.stream = stream
                        output.mux(packet)
                offset += template.duration


def decode_all(path: Path) -> None:
    """What reading 8 frames costs if everything is decoded; only these are made images."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        wanted = {int((i + 0.5) * stream.frames / FRAMES) for i in range(FRAMES)}
        for number, frame in enumerate(file.decode(stream)):
            if number in wanted:
                frame.to_image()


def processor_seconds(work: Callable[[], Any], repeats: int) -> float:
    """The median of several runs."""
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        seconds.append(time.process_time() - begin)
    return statistics.median(seconds)


def memory(field: str) -> float:
    """Megabytes that this process holds (VmRSS), or held at most (VmHWM)."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) / 1024


def grown_megabytes(path: Path, queue: Any) -> None:
    read_frames([Image.new("RGB", (2, 2))])  # imports
    Path("/proc/self/clear_refs").write_text("5")  # the highest from now on
    before = memory("VmRSS")
    read_frames(path, FRAMES)
    queue.put(memory("VmHWM") - before)


def measure_memory(path: Path) -> float:
    """Of reading 8 frames, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=grown_megabytes, args=(path, queue))
    process.start()
    grown = queue.get()
    process.join()
    return grown


def measure(paths: dict[str, Path], repeats: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, path in paths.items():
        clip = read_frames(path, FRAMES)
        results[name] = {"duration": clip.duration, "bytes": path.stat().st_size}
        results[name]["read_8_frames_seconds"] = processor_seconds(lambda p=path: read_frames(p, FRAMES), repeats)  # type: ignore[misc]
        results[name]["read_1_frame_seconds"] = processor_seconds(lambda p=path: read_frames(p, 1), repeats)  # type: ignore[misc]
        results[name]["memory_megabytes"] = measure_memory(path)
        if path.suffix == ".mp4":
            results[name]["decode_all_seconds"] = processor_seconds(lambda p=path: decode_all(p), 1)  # type: ignore[misc]
        print(name, results[name], flush=True)
    return results


@torch.no_grad()
def measure_encoder(path: Path, repeats: int) -> dict[str, float]:
    """Pixels and features of 8 different frames, and of 8 equal ones."""
    model, processor = COTSModel(COTSConfig()).eval(), COTSVideoProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    clip = read_frames(path, FRAMES)
    pixels = processor(clip, return_tensors="pt")["pixel_values_videos"]
    equal = pixels[:, :1].expand_as(pixels)
    return {
        "pixels_seconds": processor_seconds(lambda: processor(clip, return_tensors="pt"), repeats),
        "encode_8_frames_seconds": processor_seconds(lambda: model.get_video_features(pixels), repeats),
        "encode_8_equal_frames_seconds": processor_seconds(lambda: model.get_video_features(equal), repeats),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "video_decoding.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = {"60 s": Path(folder, "60.mp4"), "600 s": Path(folder, "600.mp4"), "webp": Path(folder, "a.webp")}
        make_film(paths["60 s"], 60)
        repeat_film(paths["60 s"], paths["600 s"], 10)
        first, *rest = read_frames(paths["60 s"], 60).frames
        images = [image.resize((512, 512)) for image in (first, *rest)]
        images[0].save(paths["webp"], save_all=True, append_images=images[1:], duration=40)
        results = {"what": "seconds of the processor, medians; memory beyond the process before", "clips": {}}
        results |= {"clips": measure(paths, arguments.repeats), "encoder": measure_encoder(paths["60 s"], 2)}
    arguments.output.write_text(json.dumps(results | {"machine": machine()}, indent=2) + "\n")
    print(json.dumps(results["encoder"]))


if __name__ == "__main__":
    main()
