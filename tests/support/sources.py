"""A data set that changes under an index of it, in a folder or in Milvus."""

from pathlib import Path

import pytest

from hf_cots import ImageIndex
from hf_cots.data.images import BrokenImage
from tests.support.pixel_encoder import PixelEncoder
from tests.support.worlds import noise, write_parquet


def check_images_follow_the_data_set(folder, to):
    """Images are read from the data set as it is, after an update by the index itself and by another process."""
    images = [noise(6, 6, seed) for seed in range(5)]
    table = folder / "pairs.parquet"

    def write(**named):
        write_parquet(table, [(name, images[number], name) for name, number in named.items()])

    def read(index, name):
        return images.index(index.read_image(Path(name)))

    write(a=0, b=1)
    index, other = ImageIndex.build(PixelEncoder(), table, to), ImageIndex.open(to, PixelEncoder())
    assert [read(index, name) for name in "ab"] == [read(other, name) for name in "ab"] == [0, 1]
    write(c=2, b=3, a=0)
    assert index.update().changed == 1
    for each in (index, other):
        assert [read(each, name) for name in "abc"] == [0, 3, 2]
    write(c=4)
    ImageIndex.build(PixelEncoder(), table, to)
    for each in (index, other):
        assert read(each, "c") == 4
        with pytest.raises(BrokenImage, match=r"a: it is no longer in .*pairs\.parquet"):
            each.read_image(Path("a"))
