"""Video processor of COTS: frames of clips as the image processor gives images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import VideosKwargs
from transformers.utils import is_torch_tensor
from transformers.video_processing_utils import BaseVideoProcessor

from .image_processing_cots import COTSImageProcessor
from .video_frames import VideoFrames, read_frames


FILES = (str, Path, bytes, bytearray, memoryview)


class COTSVideosKwargs(VideosKwargs, total=False):  # type: ignore[call-arg]
    """`times`: seconds of each clip at which frames are taken, in place of `num_frames` uniform ones."""

    times: list[float] | tuple[float, ...] | None


class COTSVideoProcessor(BaseVideoProcessor):
    """`video_processor(clips, return_tensors="pt")` gives `pixel_values_videos` (clips, frames, 3, height, width)
    float32 and `frame_mask` (clips, frames) bool, which is false where a clip has fewer frames than another.

    Frames are read with PyAV and PIL ([`read_frames`]) and get, bit for bit, the pixels that [`COTSImageProcessor`]
    gives them as images. It does not need torchvision, which transformers' own video processors do; without it
    `transformers.AutoVideoProcessor` cannot be used, and this class or a whole [`COTSProcessor`] loads it.

    Args:
        num_frames (`int`, defaults to 8): frames of each clip, from the middles of so many equal parts.
        kwargs: size, mean and deviation, ..., as [`COTSImageProcessor`] takes them.
    """

    valid_kwargs = COTSVideosKwargs
    model_input_names = ["pixel_values_videos", "frame_mask"]
    num_frames = 8
    resample = COTSImageProcessor.resample
    image_mean = COTSImageProcessor.image_mean
    image_std = COTSImageProcessor.image_std
    size = COTSImageProcessor.size
    default_to_square = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    @classmethod
    def from_image_processor(cls, image_processor: BaseImageProcessor, num_frames: int = 8) -> "COTSVideoProcessor":
        """The video processor that gives frames the size and colors that an image processor gives images."""
        known = COTSImageProcessor.valid_kwargs.__annotations__.keys() & cls.valid_kwargs.__annotations__.keys()
        fields = {name: value for name, value in image_processor.to_dict().items() if name in known}
        return cls(**fields, num_frames=num_frames)

    @property
    def image_processor(self) -> COTSImageProcessor:
        """The image processor that frames go through."""
        known = COTSImageProcessor.valid_kwargs.__annotations__
        return COTSImageProcessor(**{name: value for name, value in self.to_dict().items() if name in known})

    def preprocess(self, videos: Any, **kwargs: Any) -> BatchFeature:
        """Sample frames and process them.

        Args:
            videos: one clip or a list of them. A clip is a path or the bytes of a video file or an animated image, a
                [`VideoFrames`], a list of images, or an array (frames, height, width, 3). Images in memory, of which
                each counts as a second, are sampled like files; with `do_sample_frames=False` all are taken.
            kwargs: `num_frames`, `times`, `return_tensors`, and what [`COTSImageProcessor`] takes.

        Raises:
            OSError, ValueError: naming the clip and what is wrong with it.
        """
        num_frames = kwargs.pop("num_frames", None) or self.num_frames
        times, tensors = kwargs.pop("times", None), kwargs.pop("return_tensors", None)
        sample = kwargs.pop("do_sample_frames", None)
        known = COTSImageProcessor.valid_kwargs.__annotations__
        options = {name: value for name, value in kwargs.items() if name in known and value is not None}
        clips = [
            _as_clip(clip, i, num_frames, times, sample is not False) for i, clip in enumerate(list_clips(videos))
        ]
        image_processor = self.image_processor
        pixels = [image_processor(clip.images, **options, return_tensors="np")["pixel_values"] for clip in clips]
        longest = max(len(clip.frame_index) for clip in clips)
        values = np.zeros((len(clips), longest, *pixels[0].shape[1:]), dtype=pixels[0].dtype)
        mask = np.zeros((len(clips), longest), dtype=bool)
        for i, clip in enumerate(clips):
            values[i, : len(clip.frame_index)] = pixels[i][clip.frame_index]
            mask[i, : len(clip.frame_index)] = True
        return BatchFeature({"pixel_values_videos": values, "frame_mask": mask}, tensor_type=tensors)


def list_clips(videos: Any) -> list[Any]:
    """The single clips of one clip or of a list of them.

    Raises:
        ValueError: if there is none.
    """
    if isinstance(videos, (*FILES, VideoFrames)) or (_is_array(videos) and videos.ndim == 4):
        return [videos]
    clips = list(videos)
    if not clips:
        raise ValueError("videos is empty: give at least one clip")
    if all(isinstance(image, Image.Image) or (_is_array(image) and image.ndim < 4) for image in clips):
        return [clips]
    return clips


def _is_array(clip: Any) -> bool:
    return isinstance(clip, np.ndarray) or is_torch_tensor(clip)


def _as_clip(clip: Any, number: int, num_frames: int, times: Sequence[float] | None, sample: bool) -> VideoFrames:
    """The sampled frames of a clip of any kind; errors say which of the list it is."""
    if isinstance(clip, VideoFrames):
        return clip
    if not sample and isinstance(clip, FILES):
        raise ValueError(f"videos[{number}]: frames of a file must be sampled: leave out do_sample_frames=False")
    try:
        if isinstance(clip, FILES):
            return read_frames(clip if isinstance(clip, (str, Path)) else bytes(clip), num_frames, times)
        images = list(clip)
        return read_frames(images, num_frames if sample else max(1, len(images)), times if sample else None)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"videos[{number}]: {error}") from None
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"videos[{number}]: {error}") from None


__all__ = ["COTSVideoProcessor"]
