"""`hf-cots`, as a user types it."""

import json

import pytest
import torch

from hf_cots import load_encoder
from tests.support.cli import call, error_of, succeed
from tests.support.worlds import all_pairs, draw, write_images


VERBS = {
    "Train": ("train", "train-tokenizer", "tokenize", "demo"),
    "Evaluate": ("evaluate", "classify", "text-matching", "image-retrieval", "inspect", "inspect-token-level"),
    "Search": ("index", "search"),
    "Data": ("openclipart", "audit", "convert"),
}


def test_help_names_every_verb_under_its_panel():
    text = call("--help").output
    starts = [text.index(f"─ {panel} ─") for panel in VERBS]
    assert starts == sorted(starts)
    for start, end, verbs in zip(starts, [*starts[1:], None], VERBS.values()):
        assert all(f"│ {verb} " in text[start:end] for verb in verbs)


def test_the_same_thing_has_the_same_name():
    for verb, flags in {"search": ("-k", "--k"), "evaluate": ("-k", "--k", "--output", "--batch-size")}.items():
        words = call(verb, "--help").output.split()
        assert all(flag in words for flag in flags), verb


def test_search_prints_the_best_files_first(world, tmp_path):
    for colour in ("red", "green", "black"):
        draw(colour, "circle", "left").save(tmp_path / f"{colour}.png")
    (tmp_path / "broken.png").write_bytes(b"<html>")
    result = succeed("search", world.model, tmp_path, "a red circle", "-k", 2)
    lines = [line.split("  ", 1) for line in result.stdout.splitlines() if line]
    assert len(lines) == 2
    scores = [float(score) for score, _ in lines]
    assert scores == sorted(scores, reverse=True)
    assert all(path.startswith(str(tmp_path)) and path.endswith(".png") for _, path in lines)
    assert "skipping unreadable " in result.stderr
    assert "broken.png" in "".join(result.stderr.split())
    assert "skipping" not in result.stdout


def test_evaluate_prints_a_table_and_writes_json(world, tmp_path):
    output = tmp_path / "deep" / "results.json"
    result = succeed("evaluate", world.model, world.parquet, "--output", output)
    assert "text to image" in result.output
    results = json.loads(output.read_text())
    for direction in ("text_to_image", "image_to_text"):
        values = results[direction]
        assert values.keys() >= {"R@1", "R@5", "R@10", "median_rank", "queries", "gallery", "intervals"}
        assert values["gallery"] == 40
        low, high = values["intervals"]["R@10"]
        assert low <= values["R@10"] <= high
        assert f"{values['R@10']:.1f} [{low:.1f}, {high:.1f}]" in result.output
    assert "transductive" not in results
    assert "comparison" not in results


def test_evaluate_takes_a_plain_folder(world):
    succeed("evaluate", world.model, world.imagefolder)


def test_train_takes_the_flags_of_the_module(world, tmp_path):
    succeed("train", *world.flags(tmp_path, max_steps=1))
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_other_errors_keep_their_traceback(world, monkeypatch):
    monkeypatch.setattr("hf_cots.search.disk_index.DiskIndex.search", None)
    assert isinstance(call("search", world.model, world.imagefolder, "red").exception, TypeError)


# ---------------------------------------------------------------------- the other tasks


@pytest.fixture(scope="module")
def colour_folders(tmp_path_factory):
    """Class folders named by colour, one picture broken."""
    root = tmp_path_factory.mktemp("colours")
    for name, picture, caption in all_pairs():
        folder = root / caption.rsplit(" ", 2)[0].replace(" ", "_")
        folder.mkdir(exist_ok=True)
        picture.save(folder / name)
    (root / "red" / "broken.png").write_bytes(b"<html>")
    return root


def reproducible(report, model):
    """What every report must hold; the bare figures are tested where they are made."""
    assert report["model"]["name"] == str(model)
    assert len(report["model"]["fingerprint"]) == len(report["data"]["fingerprint"]) == 32
    assert report["environment"]["packages"].keys() >= {"torch", "transformers", "hf-cots"}
    assert report["statistics"]["resamples"] == 1000


def test_classify_prints_a_table_and_writes_json(world, colour_folders, tmp_path):
    output = tmp_path / "deep" / "zero-shot.json"
    flags = ("--template", "a {}", "--template", "the {} square", "--output", output)
    result = succeed("classify", world.model, colour_folders, *flags)
    report = json.loads(output.read_text())
    figures = report["zero_shot"]
    low, high = figures["intervals"]["top1"]
    assert f"{figures['top1']:.1f} [{low:.1f}, {high:.1f}]" in result.output
    assert (figures["images"], figures["classes"], figures["top5"]) == (40, 5, 100)
    assert report["chance"]["zero_shot"]["top1"] == 20
    assert report["settings"]["templates"] == ["a {}", "the {} square"]
    assert report["settings"]["class_names"]["light_blue"] == "light blue"
    assert "broken.png" in report["data"]["left_out"][0]
    assert "broken.png" in "".join(result.stderr.split())
    reproducible(report, world.model)
    again = tmp_path / "again.json"
    call("classify", world.model, colour_folders, *flags[:-1], again)
    assert json.loads(again.read_text())["zero_shot"] == figures
    assert json.loads(again.read_text())["data"] == report["data"]


def test_text_matching_takes_tables_and_sts_benchmark(world, tmp_path):
    texts = [caption for _, _, caption in all_pairs()]
    rows = [(texts[i], texts[-1 - i], i % 6) for i in range(20)]
    (tmp_path / "x.csv").write_text("a,b,s\n" + "".join(f"{a},{b},{s}\n" for a, b, s in rows))
    (tmp_path / "sts-test.csv").write_text(
        "".join(f"g\tf\ty\t{i}\t{s}\t{a}\t{b}\n" for i, (a, b, s) in enumerate(rows))
    )
    outputs = [tmp_path / "table.json", tmp_path / "sts.json"]
    columns = ("--text-a", "a", "--text-b", "b", "--score-column", "s")
    first = call("text-matching", world.model, tmp_path / "x.csv", *columns, "--output", outputs[0])
    second = call("text-matching", world.model, tmp_path / "sts-test.csv", "--sts-benchmark", "--output", outputs[1])
    assert (first.exit_code, second.exit_code) == (0, 0), first.output + second.output
    table, sts = (json.loads(output.read_text()) for output in outputs)
    assert table["text_matching"] == sts["text_matching"]
    assert table["data"]["fingerprint"] == sts["data"]["fingerprint"]
    assert f"{table['text_matching']['spearman']:.3f} [" in first.output
    reproducible(table, world.model)


def test_image_retrieval_within_across_and_against(world, colour_folders, tmp_path):
    output = tmp_path / "images.json"
    result = succeed("image-retrieval", world.model, colour_folders, "--output", output)
    report = json.loads(output.read_text())
    figures = report["image_to_image"]
    assert (figures["queries"], figures["gallery"], figures["queries_without_answer"]) == (40, 39, 0)
    low, high = figures["intervals"]["mAP"]
    assert f"{figures['mAP']:.1f} [{low:.1f}, {high:.1f}]" in result.output
    reproducible(report, world.model)

    other = call("image-retrieval", world.model, colour_folders, "--gallery", world.parquet, "--label-column", "label")
    assert "no column 'label'" in error_of(other)

    folder = write_images(tmp_path / "images")
    words = {name: caption.split() for name, _, caption in all_pairs()}
    rows = [{"file_name": name, "colour": each[0], "shape": each[-2]} for name, each in words.items()]
    world.write_metadata(folder, rows)
    across = ("--label-column", "colour", "--across", "shape", "--output", output)
    succeed("image-retrieval", world.model, folder, *across)
    assert json.loads(output.read_text())["image_to_image"]["gallery"] == 20
    against = ("--label-column", "colour", "--gallery", folder, "--output", output)
    succeed("image-retrieval", world.model, folder, *against)
    report = json.loads(output.read_text())
    assert report["image_to_image"]["gallery"] == 39  # the same data as gallery: still no picture finds itself
    assert report["gallery"]["fingerprint"] == report["data"]["fingerprint"]


def test_evaluate_takes_a_split_in_karpathys_layout(world, tmp_path):
    images = [
        {
            "filename": name,
            "imgid": number,
            "split": "val" if number < 10 else "train",
            "sentences": [{"raw": f"{word} {caption}", "sentid": 5 * number + k} for k, word in enumerate("abcde")],
        }
        for number, (name, _, caption) in enumerate(all_pairs())
    ]
    (tmp_path / "mine.json").write_text(json.dumps({"dataset": "mine", "images": images}))
    flags = ("--protocol", "karpathy", "--split", "val", "--image-root", world.imagefolder)
    output = tmp_path / "results.json"
    succeed("evaluate", world.model, tmp_path / "mine.json", *flags, "--output", output)
    report = json.loads(output.read_text())
    assert (report["text_to_image"]["queries"], report["text_to_image"]["gallery"]) == (50, 10)
    checksum = report["data"]["id_checksum"]
    succeed("evaluate", world.model, tmp_path / "mine.json", *flags, "--id-checksum", checksum)
    refused = call("evaluate", world.model, tmp_path / "mine.json", *flags, "--id-checksum", "0" * 64)
    assert f"have the checksum {checksum}, but {'0' * 64} is expected" in error_of(refused)


@pytest.mark.parametrize("verb", ["train", "train-tokenizer"])
def test_training_verbs_show_the_help_of_the_modules(verb):
    shown = succeed(verb, "--help")
    assert "--train_data" in shown.output


SEARCH, CLASSIFY = ("search", "MODEL", "IMAGES"), ("classify", "MODEL", "FOLDERS")
EVALUATE, RETRIEVE = ("evaluate", "MODEL", "PARQUET"), ("image-retrieval", "MODEL")
TRAIN = ("--train_data", "x", "--output_dir", "OUTPUT")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("search", "MODEL", "/nothing/here", "red"), "no such folder"),
        ((*SEARCH, " "), "the query is empty"),
        ((*SEARCH, "red", "-k", "0"), "k must be a whole number of at least 1"),
        (("search", "/nothing/model", "IMAGES", "red"), "error:"),
        ((*EVALUATE, "--compare", "/nothing/model"), "no such model folder: /nothing/model"),
        ((*EVALUATE, "--compare", "/nothing/results.json"), "no such file: /nothing/results.queries.parquet"),
        ((*EVALUATE, "--querybank", "/nothing.csv"), "no such file or folder: /nothing.csv"),
        ((*EVALUATE, "--beta", "0", "--dual-softmax"), "beta must be above 0"),
        ((*EVALUATE, "--protocol", "coco-5k"), "set --image-root"),
        ((*EVALUATE, "--caption-column", "words"), "no column 'words'"),
        (("train", *TRAIN, "--vision", "x"), "give exactly one source for the model"),
        (("train-tokenizer", *TRAIN, "--train_data", "/nothing.csv"), "no such file or folder: /nothing.csv"),
        (("classify", "MODEL", "/nothing"), "no such file or folder: /nothing"),
        ((*CLASSIFY, "--template", "a photo"), "the template 'a photo' has no {}"),
        ((*CLASSIFY, "--classes", "/nothing"), "no such file: /nothing"),
        (("classify", "/nothing", "FOLDERS"), "no such model folder: /nothing"),
        (("text-matching", "MODEL", "/nothing", "--sts-benchmark"), "no such file: /nothing"),
        (("text-matching", "MODEL", "PARQUET"), "has no column 'sentence1'"),
        ((*RETRIEVE, "PARQUET", "--label-column", "caption"), "none of 40 images has another"),
        ((*RETRIEVE, "FOLDERS", "--across", "style"), "has no column 'style'"),
    ],
)
def test_errors_are_one_line(world, colour_folders, tmp_path, monkeypatch, arguments, message):
    """Mistakes in an evaluation are found before anything is encoded."""
    monkeypatch.setattr("hf_cots.evaluation.retrieval.run.evaluate_encoder", None)  # would be a TypeError
    stands_for = {"MODEL": world.model, "FOLDERS": colour_folders, "PARQUET": world.parquet}
    stands_for |= {"IMAGES": world.imagefolder, "OUTPUT": tmp_path}
    result = call(*(stands_for.get(argument, argument) for argument in arguments))
    assert message in error_of(result)
    assert result.stdout == ""


def test_embeddings_are_truncated(world, tmp_path):
    done = succeed("convert", "truncate", world.model, "--dim", 8, "--output", tmp_path / "s")
    assert "embeddings truncated from 16 to 8 dimensions" in done.output
    whole, small = (load_encoder(str(folder)).encode_texts(["a dog"]) for folder in (world.model, tmp_path / "s"))
    expected = torch.nn.functional.normalize(torch.from_numpy(whole[:, :8]), dim=1)
    torch.testing.assert_close(torch.from_numpy(small), expected, rtol=1e-5, atol=1e-6)
    card = (tmp_path / "s" / "README.md").read_text()
    assert "first 8 of 16 dimensions" in card
    assert "model-index" not in card
    result = call("convert", "truncate", world.model, "--dim", 99, "--output", tmp_path / "t")
    assert "got 99" in error_of(result)
