"""The cost of indexing clips: decoding and encoding apart, and the memory that it takes, by the clips' length.

    python -m benchmarks.clip_index MODEL

200 clips are made: 640 x 360 pixels, 25 frames a second, 10 seconds, H.264; 20 different ones, each ten times with
another title, so that all files differ; and 40 with each film 61 times in a row, 10 minutes. Processor seconds
per clip, of one process with one thread for the model; the memory is the highest that a process of its own has held
above what it held with the model loaded, with as many threads as the machine has cores. Kept in
`benchmarks/results/clip_index.json`.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from hf_cots import ImageIndex, load_encoder
from hf_cots.search.encoders import frames_per_clip, media_steps
from hf_cots.search.gallery import open_gallery
from hf_cots.search.reading import ImageReader

from .machine import machine
from .video_decoding import repeat_film


WIDTH, HEIGHT, RATE, SECONDS = 640, 360, 25, 10
DIFFERENT, COPIES, LONG_COPIES, LONGER = 20, 10, 2, 61  # 60 would show the same two pictures at all sampled times
BATCH = 64


def make_film(path: Path, seed: int) -> None:
    """A pan over a picture of blurred noise."""
    small = np.random.default_rng(seed).integers(0, 256, (12, 48, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(small).resize((2 * WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt, stream.options = WIDTH, HEIGHT, "yuv420p", {"preset": "veryfast"}
        for number in range(SECONDS * RATE):
            left = number * WIDTH // (SECONDS * RATE)
            frame = np.ascontiguousarray(picture[:, left : left + WIDTH])
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        file.mux(stream.encode())


def copy_film(source: Path, target: Path, title: str) -> None:
    """The same pictures in a file of other bytes."""
    with av.open(str(source)) as file, av.open(str(target), "w") as output:
        output.metadata["title"] = title
        template = file.streams.video[0]
        stream = output.add_stream_from_template(template)
        for packet in file.demux(template):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)


def make_folders(folder: Path) -> tuple[Path, Path]:
    """Short clips, and long ones."""
    short, long = folder / "short", folder / "long"
    short.mkdir()
    long.mkdir()
    for seed in range(DIFFERENT):
        make_film(folder / "film.mp4", seed)
        repeat_film(folder / "film.mp4", folder / "long.mp4", LONGER)
        for copy in range(COPIES):
            copy_film(folder / "film.mp4", short / f"{seed:02d}-{copy}.mp4", f"{seed} {copy}")
            if copy < LONG_COPIES:
                copy_film(folder / "long.mp4", long / f"{seed:02d}-{copy}.mp4", f"{seed} {copy}")
    return short, long


def measure_steps(model: str, folder: Path) -> dict[str, float]:
    """Processor seconds per clip of reading (hash, frames, pixels), and of the model."""
    encoder, gallery = load_encoder(model, "cpu"), open_gallery(folder)
    prepare, embed = media_steps(encoder, BATCH)
    reader = ImageReader(gallery, prepare, (), frames_per_clip(encoder))
    seconds = {"read": 0.0, "model": 0.0}
    step = BATCH // frames_per_clip(encoder)
    for start in range(0, len(gallery.paths), step):
        begin = time.process_time()
        loaded = [reader.load(index) for index in range(start, min(start + step, len(gallery.paths)))]
        middle = time.process_time()
        embed([each.prepared for each in loaded])
        seconds["read"] += middle - begin
        seconds["model"] += time.process_time() - middle
    return {name: value / len(gallery.paths) for name, value in seconds.items()}


def index_folder(model: str, folder: Path, to: Path, queue: Any) -> None:
    torch.set_num_threads(1)
    encoder = load_encoder(model, "cpu")
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far was while loading
    before = read_memory("VmRSS")
    begin = time.process_time()
    index = ImageIndex.build(encoder, folder, to, batch_size=BATCH)
    seconds = time.process_time() - begin
    size = sum(path.stat().st_size for path in to.iterdir())
    grown = read_memory("VmHWM") - before
    queue.put(
        {"clips": index.count_clips(), "processor_seconds": seconds, "memory_megabytes": grown, "index_bytes": size}
    )


def read_memory(field: str) -> float:
    """Megabytes of this process, as Linux tells them: now (VmRSS), or the highest (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def measure_index(model: str, folder: Path, to: Path) -> dict[str, Any]:
    """Of indexing a folder, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=index_folder, args=(model, folder, to, queue))
    process.start()
    result = queue.get()
    process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="Folder or Hub id.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "clip_index.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"what": "processor seconds per clip; memory beyond that of the loaded model"}
    results["model"] = Path(arguments.model).name
    with tempfile.TemporaryDirectory() as name:
        folders = dict(zip(("10 s", "610 s"), make_folders(Path(name))))
        for length, folder in folders.items():
            results[length] = {"bytes": sum(path.stat().st_size for path in folder.iterdir())}
            results[length] |= measure_index(arguments.model, folder, Path(name, f"index {length}"))
            results[length]["seconds_per_clip"] = measure_steps(arguments.model, folder)
            print(length, results[length], flush=True)
    arguments.output.write_text(json.dumps(results | {"machine": machine()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
