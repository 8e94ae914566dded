"""ProtocolSpec test sets from files in their layout, with the published counts and invented contents."""

import hashlib
import itertools
import json

import numpy as np
import pytest
import torch

from hf_cots.data.images import BrokenImage
from hf_cots.evaluation.retrieval import protocols
from hf_cots.evaluation.retrieval.directions import rank_direction
from hf_cots.search.encoders import EncodedPairs, encode_pairs
from hf_cots.search.loading import load_encoder
from tests.support.embeddings import equal
from tests.support.worlds import World, all_pairs


def coco(images=5_000, captions=25_010):
    """The layout of dataset_coco.json: a test split of the published size, and some of the other splits."""
    extra = captions - 5 * images
    entries, sentence = [], itertools.count()
    for number in range(images + 20):
        texts = [
            {"raw": f"caption {k} of picture {number}", "sentid": next(sentence), "imgid": number, "tokens": []}
            for k in range(5 + (number < extra))
        ]
        split = "test" if number < images else ("train", "val", "restval")[number % 3]
        entries.append(
            {
                "filename": f"COCO_val2014_{7 * number:012d}.jpg",
                "filepath": "val2014",
                "split": split,
                "imgid": number,
                "cocoid": 7 * number,
                "sentids": [s["sentid"] for s in texts],
                "sentences": texts,
            }
        )
    return {"dataset": "coco", "images": entries}


def flickr(images=1_000):
    data = coco(images, 5 * images)
    for number, entry in enumerate(data["images"]):
        entry["filename"] = f"{1000 + number}.jpg"
        del entry["cocoid"], entry["filepath"]
    return data | {"dataset": "flickr30k"}


def write(path, data):
    path.write_text(json.dumps(data))
    return path


def write_images(folder, entries):
    """The first images only; more are not read before the evaluation."""
    for entry, (_, picture, _) in zip(entries[:10], all_pairs()):
        path = folder / entry.get("filepath", "") / entry["filename"]
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


@pytest.mark.parametrize(("protocol", "folds"), [("coco-5k", 1), ("coco-1k", 5)])
def test_coco_has_its_published_counts(tmp_path, protocol, folds):
    data = coco()
    write_images(tmp_path / "images", data["images"])
    loaded = protocols.load_protocol(protocol, write(tmp_path / "dataset_coco.json", data), tmp_path / "images")
    assert len(loaded.pairs.table) == 5_000
    assert len(loaded.pairs) == 25_000
    assert loaded.folds == folds
    assert len(set(loaded.pairs.image_ids.tolist())) == 5_000
    assert [loaded.pairs.caption(i) for i in (0, 4, 5)] == [
        "caption 0 of picture 0",
        "caption 4 of picture 0",  # the sixth does not count
        "caption 0 of picture 1",
    ]
    assert loaded.pairs.read_row(3).size == (32, 32)


def test_flickr30k_has_its_published_counts(tmp_path):
    data = flickr()
    write_images(tmp_path / "images", data["images"])
    loaded = protocols.load_protocol("flickr30k", write(tmp_path / "f.json", data), tmp_path / "images")
    assert (len(loaded.pairs.table), len(loaded.pairs), loaded.folds) == (1_000, 5_000, 1)


def test_the_checksum_is_that_of_the_sorted_ids_and_can_be_demanded(tmp_path):
    data = flickr()
    write_images(tmp_path / "images", data["images"])
    lines = sorted(
        " ".join([entry["filename"], *(str(s["sentid"]) for s in entry["sentences"][:5])])
        for entry in data["images"]
        if entry["split"] == "test"
    )
    expected = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    path = write(tmp_path / "f.json", data)
    assert protocols.load_protocol("flickr30k", path, tmp_path / "images", checksum=expected).checksum == expected
    write(path, data | {"images": data["images"][::-1]})
    write_images(tmp_path / "images", data["images"][:1000][::-1])
    assert protocols.load_protocol("karpathy", path, tmp_path / "images").checksum == expected
    data["images"][0]["sentences"][0]["sentid"] = 99_999
    with pytest.raises(ValueError, match=f"have the checksum [0-9a-f]{{64}}, but {expected} is expected"):
        protocols.load_protocol("flickr30k", write(path, data), tmp_path / "images", checksum=expected)


def test_the_checksum_tells_which_caption_belongs_to_which_image():
    assert protocols.id_checksum([("a", [1, 2]), ("b", [3])]) == protocols.id_checksum([("b", [3]), ("a", [1, 2])])
    assert protocols.id_checksum([("a", [1]), ("b", [2, 3])]) != protocols.id_checksum([("a", [1, 2]), ("b", [3])])


def test_any_split_in_the_layout_can_be_read(tmp_path):
    data = coco(images=10, captions=50)
    write_images(tmp_path / "images", data["images"][10:])
    path = write(tmp_path / "mine.json", data)
    assert len(protocols.load_protocol("karpathy", path, tmp_path / "images", "val").pairs) == 5 * 7
    assert len(protocols.load_protocol("karpathy", path, tmp_path / "images", "train+restval").pairs) == 5 * 13


def spoil(index, change):
    """A change of one image's entry."""

    def spoiled(data):
        change(data["images"][index])
        return data

    return spoiled


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data | {"dataset": "flickr8k"}, "needs the data set 'coco', but this file is for 'flickr8k'"),
        (
            lambda data: data | {"images": data["images"][1:]},
            "has 4,999 images and 25,004 captions, but the published",
        ),
        (lambda data: {"dataset": "coco"}, "the list 'images'"),
        (spoil(3, lambda image: image.pop("split")), r"images\[3\] has no 'split'"),
        (
            spoil(3, lambda image: image.update(sentences=image["sentences"][:4])),
            r"images\[3\] \(COCO_val2014_000000000021.jpg\) has 4 captions, 5 are needed",
        ),
        (
            spoil(3, lambda image: image["sentences"][1].pop("raw")),
            r"images\[3\] has a sentence without 'raw' or 'sentid'",
        ),
        (spoil(5, lambda image: image.update(cocoid=0)), "image 0 occurs twice in coco-5k"),
        (lambda data: [1], "expected an object with the published fields, got list"),
    ],
)
def test_a_file_that_is_not_the_published_one_is_refused(tmp_path, change, message):
    path = write(tmp_path / "dataset.json", change(coco()))
    with pytest.raises(ValueError, match=message) as caught:
        protocols.load_protocol("coco-5k", path, tmp_path)
    assert "dataset.json" in str(caught.value)


def test_other_errors_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="unknown protocol 'coco'; choose from coco-5k, coco-1k, flickr30k, karpathy"):
        protocols.load_protocol("coco", "a", "b")
    with pytest.raises(FileNotFoundError, match="no such file: /nothing"):
        protocols.load_protocol("coco-5k", "/nothing", "b")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json: not a JSON file"):
        protocols.load_protocol("coco-5k", tmp_path / "x.json", "b")
    path = write(tmp_path / "y.json", coco(10, 50))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        protocols.load_protocol("karpathy", path, tmp_path / "nothing")
    with pytest.raises(ValueError, match="no split 'dev'; it has restval, test, train, val"):
        protocols.load_protocol("karpathy", path, tmp_path, "dev")
    with pytest.raises(ValueError, match="none of the first 8 images in column 'image' can be read"):
        protocols.load_protocol("karpathy", path, tmp_path)


# ---------------------------------------------------------------------- folds


def random_pairs(images=20, captions=3, broken=()):
    """Ids in an order that is not that of the rows."""
    rows = [row for row in range(images) if row not in broken]
    ids = (torch.randperm(images) + 100)[rows].numpy()
    return EncodedPairs(
        image_embeds=torch.randn(len(rows), 4).numpy(),
        text_embeds=torch.randn(len(rows) * captions, 4).numpy(),
        image_ids=ids,
        text_ids=np.repeat(ids, captions),
        rows=rows,
        captions=[captions * row + i for row in rows for i in range(captions)],
        broken=[BrokenImage(f"p{row}", "gone") for row in broken],
    )


def test_folds_are_contiguous_and_each_is_a_task_of_its_own():
    encoded = random_pairs()
    folds = protocols.split_folds(encoded, 5)
    assert [fold.rows for fold in folds] == [list(range(4 * i, 4 * i + 4)) for i in range(5)]
    assert [fold.captions for fold in folds] == [list(range(12 * i, 12 * i + 12)) for i in range(5)]
    results = []
    for i, fold in enumerate(folds):
        assert equal(fold.image_embeds, encoded.image_embeds[4 * i : 4 * i + 4])
        assert equal(fold.text_embeds, encoded.text_embeds[12 * i : 12 * i + 12])
        assert equal(fold.text_ids, np.repeat(fold.image_ids, 3))
        results.append(rank_direction(*fold.side("text_to_image")).metrics())
    assert protocols.mean_of_folds(results)["R@1"] == pytest.approx(sum(result["R@1"] for result in results) / 5)


def test_a_broken_image_moves_no_other_to_another_fold():
    folds = protocols.split_folds(random_pairs(broken=[5]), 5)
    assert [len(fold.rows) for fold in folds] == [4, 3, 4, 4, 4]
    assert folds[1].rows == [4, 6, 7]
    assert [len(fold.captions) for fold in folds] == [12, 9, 12, 12, 12]


def test_images_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="20 images cannot be divided into 3 folds"):
        protocols.split_folds(random_pairs(), 3)


def test_a_protocol_runs_from_file_to_figures(tmp_path, monkeypatch):
    """Ten images stand for COCO's 5,000: encoded, split into folds, averaged."""
    data = coco(images=10, captions=53)
    write_images(tmp_path / "images", data["images"])
    monkeypatch.setitem(protocols.PROTOCOLS, "coco-1k", protocols.ProtocolSpec("coco", "test", 10, 53, folds=5))
    loaded = protocols.load_protocol("coco-1k", write(tmp_path / "c.json", data), tmp_path / "images")
    world = World(tmp_path)
    encoded = encode_pairs(load_encoder(str(world.model), device="cpu"), loaded.pairs)
    parts = protocols.split_folds(encoded, loaded.folds)
    assert [(len(part.rows), len(part.captions)) for part in parts] == [(2, 10)] * 5
    results = [rank_direction(*part.side("text_to_image")).metrics() for part in parts]
    assert protocols.mean_of_folds(results)["gallery"] == 2


# ---------------------------------------------------------------------- MSR-VTT


def msrvtt_csv(path, pairs=1_000, header="key,vid_key,video_id,sentence", cell='a man, "walking"'):
    quoted = '"' + cell.replace('"', '""') + '"'
    rows = [f"ret{i},msr{i},video{i},{quoted}" for i in range(pairs)]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_msrvtt_1ka_is_a_list_of_a_thousand_pairs(tmp_path):
    path = msrvtt_csv(tmp_path / "test.csv")
    videos = {"videos": [{"video_id": f"video{i}"} for i in range(1_200)], "sentences": []}
    pairs = protocols.load_msrvtt_1ka(path, write(tmp_path / "data.json", videos))
    assert len(pairs) == 1_000
    assert (pairs[7].video_id, pairs[7].sentence) == ("video7", 'a man, "walking"')
    assert protocols.load_msrvtt_1ka(path) == pairs


def test_msrvtt_errors_are_one_line(tmp_path):
    path = tmp_path / "test.csv"
    with pytest.raises(FileNotFoundError, match=r"no such file: .*test\.csv"):
        protocols.load_msrvtt_1ka(path)
    with pytest.raises(ValueError, match="999 pairs, but the published 1k-A has 1,000"):
        protocols.load_msrvtt_1ka(msrvtt_csv(path, 999))
    with pytest.raises(ValueError, match="has no column 'sentence'; it has key, vid_key, video_id, text"):
        protocols.load_msrvtt_1ka(msrvtt_csv(path, header="key,vid_key,video_id,text"))
    with pytest.raises(ValueError, match="pair 0, counted from 0, has no video id or no sentence"):
        protocols.load_msrvtt_1ka(msrvtt_csv(path, cell=" "))
    path.write_text(msrvtt_csv(path).read_text().replace("video12,", "video13,"))
    with pytest.raises(ValueError, match="video13 occurs twice"):
        protocols.load_msrvtt_1ka(path)
    videos = write(tmp_path / "data.json", {"videos": [{"video_id": f"video{i}"} for i in range(900)]})
    with pytest.raises(ValueError, match=r"100 videos of .*test\.csv are missing, such as video900"):
        protocols.load_msrvtt_1ka(msrvtt_csv(path), videos)
