"""`python -m hf_cots.distill_text`: loss and metrics by hand, exact resumption, and the tower that is saved."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, AutoTokenizer, BertModel

import hf_cots.distill_text
from hf_cots import COTSConfig, COTSModel, COTSProcessor, load_encoder
from hf_cots.data.translations import TranslationPairs
from hf_cots.training.arguments import parse_distillation_arguments, to_flags
from hf_cots.training.distillation import measure_translations
from tests.support.cli import call as call_cli
from tests.support.cli import error_of, succeed
from tests.support.runs import assert_same_checkpoints, assert_same_weights
from tests.support.tiny import QUIET
from tests.support.worlds import COLORS, SHAPES, all_pairs, tiny_processor


GERMAN = {"red": "rot", "green": "grün", "light blue": "hellblau", "yellow": "gelb", "black": "schwarz"}
GERMAN |= {"square": "Quadrat", "circle": "Kreis"}
RUSSIAN = {"red": "красный", "green": "зелёный", "light blue": "голубой", "yellow": "жёлтый", "black": "чёрный"}
RUSSIAN |= {"square": "квадрат", "circle": "круг"}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Colors and shapes in two languages."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    lines = ["english\ttranslation\tlanguage"]
    for color in COLORS:
        for shape in SHAPES:
            for language, words in (("de", GERMAN), ("ru", RUSSIAN)):
                lines.append(f"{color} {shape}\t{words[color]} {words[shape]}\t{language}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def flags(world, table, output_dir, **settings):
    """A few steps; a setting of None leaves a flag out."""
    defaults = {
        "teacher": world.towers(dropout=0.1)[1],
        "train_data": table,
        "output_dir": output_dir,
        "vocab_size": 150,
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 3,
    }
    chosen = {name: value for name, value in (defaults | settings).items() if value is not None}
    return to_flags(QUIET | chosen)


def train(*args, **settings):
    return hf_cots.distill_text.train(flags(*args, **settings))


def make_trainer(*args, **settings):
    return hf_cots.distill_text.build_trainer(*parse_distillation_arguments(flags(*args, **settings)))


def test_the_loss_is_the_mean_squared_error(world, table, tmp_path):
    trainer, _ = make_trainer(world, table, tmp_path)
    items = [trainer.train_dataset[0, i] for i in range(11)]
    teacher, tokenizer = BertModel.from_pretrained(world.towers()[1]), AutoTokenizer.from_pretrained(world.towers()[1])
    model = trainer.model.eval()

    def embed(tower, words, text):
        return tower(**words(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)

    errors = []
    for item in items:
        wanted = embed(teacher.eval(), tokenizer, trainer.train_dataset.sources[item["source_row"]])
        errors.append((embed(model, trainer.processing_class, item["text"]) - wanted).square().mean())
    loss = trainer.compute_loss(model, trainer.data_collator(items))
    assert loss.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-4)


def test_texts_that_are_cut_are_counted(world, table, tmp_path, caplog):
    """A color and a shape are two words or more, and four tokens with those of begin and end."""
    trainer, _ = make_trainer(world, table, tmp_path, max_text_length=4)
    pairs = trainer.train_dataset
    tokens = [len(trainer.processing_class(text)["input_ids"]) for text in pairs.translations[: -len(pairs.sources)]]
    teacher = AutoTokenizer.from_pretrained(world.towers()[1])
    cut = sum(n > 4 for n in tokens) + sum(len(teacher(text)["input_ids"]) > 4 for text in pairs.sources)
    assert cut > 0
    assert f"{cut} texts have more than 4 tokens and are truncated" in caplog.text
    caplog.clear()
    make_trainer(world, table, tmp_path)
    assert "are truncated" not in caplog.text


def test_english_texts_are_items_once(world, table, tmp_path):
    trainer, _ = make_trainer(world, table, tmp_path, languages=["de"])
    pairs = trainer.train_dataset
    assert len(pairs) == 2 * len(pairs.sources) == 20
    assert pairs.languages.count("en") == pairs.languages.count("de") == 10


def test_words_have_their_own_learning_rate(world, table, tmp_path):
    trainer, _ = make_trainer(
        world, table, tmp_path, learning_rate=1e-5, embedding_learning_rate=1e-2, weight_decay=0.1
    )
    groups = trainer.create_optimizer().param_groups
    words = trainer.model.get_input_embeddings().weight
    own = [group for group in groups if any(each is words for each in group["params"])]
    assert [(group["lr"], group["weight_decay"], len(group["params"])) for group in own] == [(1e-2, 0.0, 1)]
    assert {(group["lr"], group["weight_decay"]) for group in groups} == {(1e-2, 0.0), (1e-5, 0.0), (1e-5, 0.1)}
    assert sum(len(group["params"]) for group in groups) == len(list(trainer.model.parameters()))


def test_the_metrics():
    pairs = TranslationPairs(["a", "b", "a"], ["x", "y", "z"], ["de", "de", "fr"], "pairs")
    targets = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    embeds = torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert measure_translations(embeds, targets, pairs) == pytest.approx(
        {
            "mse": (4 / 2 + 5 / 2 + 2 / 2) / 3,
            "accuracy": 100 / 3,
            "mse_de": (4 / 2 + 5 / 2) / 2,
            "accuracy_de": 50,
            "mse_fr": 1,
            "accuracy_fr": 0,
        }
    )


def test_a_resumed_run_equals_the_uninterrupted_one(world, table, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2}
    train(world, table, tmp_path / "whole", **settings)
    train(world, table, tmp_path / "parts", **settings | {"max_steps": 2, "lr_scheduler_type": "constant"})
    train(world, table, tmp_path / "one", **settings | {"lr_scheduler_type": "constant"})
    train(world, table, tmp_path / "parts", **settings, resume_from_checkpoint="last", lr_scheduler_type="constant")
    assert_same_checkpoints(tmp_path / "one", tmp_path / "parts", 4)
    whole, parts = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "parts"))
    assert_same_weights(whole, parts)
    other = table.with_name("other.tsv")
    other.write_text(table.read_text(encoding="utf-8").replace("rot", "lila"), encoding="utf-8")
    with pytest.raises(ValueError, match="other data than that of its run"):
        train(world, other, tmp_path / "parts", **settings, resume_from_checkpoint="last")


@pytest.fixture(scope="module")
def student(world, table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    results = train(
        world, table, folder, max_steps=120, eval_data=table, learning_rate=2e-3, embedding_learning_rate=1e-2
    )
    assert results["accuracy_de"] > 60  # chance is 10
    assert results["accuracy_ru"] > 60
    return folder / "model"


def test_the_student_is_a_plain_tower(student, world):
    model, tokenizer = AutoModel.from_pretrained(student), AutoTokenizer.from_pretrained(student)
    assert model.config.vocab_size == len(tokenizer) > len(AutoTokenizer.from_pretrained(world.towers()[1]))
    record = json.loads((student / "distillation.json").read_text())
    assert (record["pooling"], record["languages"]) == ("mean", ["de", "en", "ru"])
    teacher, encoder = load_encoder(str(world.towers()[1])), load_encoder(str(student))
    english = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    russian = [f"{RUSSIAN[color]} {RUSSIAN[shape]}" for color in COLORS for shape in SHAPES]
    found = (encoder.encode_texts(russian) @ teacher.encode_texts(english).T).argmax(axis=1)
    assert (found == range(10)).mean() > 0.6


@pytest.fixture(scope="module")
def model(world, tmp_path_factory):
    """A COTS with the teacher as its text tower."""
    folder = tmp_path_factory.mktemp("cots")
    towers = map(str, world.towers())
    cots = COTSModel.from_vision_text_pretrained(*towers, text_pooling="mean", mask_token_id=4)
    cots.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def test_it_takes_the_place_of_its_teacher(model, student, tmp_path):
    succeed("convert", "text-tower", model, student, "--output", tmp_path / "out")
    before, after = load_encoder(str(model)), load_encoder(str(tmp_path / "out"))
    images = [image for _, image, _ in all_pairs()[:4]]
    assert (before.encode_images(images) == after.encode_images(images)).all()
    tower, projection = load_encoder(str(student)).model, after.model.text_projection
    inputs = after.processor.tokenizer("красный круг", return_tensors="pt")
    mean = tower(**inputs).last_hidden_state[0].mean(dim=0)
    expected = nn.functional.normalize(projection(mean[None]), dim=1)
    assert torch.allclose(torch.from_numpy(after.encode_texts(["красный круг"])), expected, atol=1e-6)
    assert after.processor.tokenizer.model_max_length == before.processor.tokenizer.model_max_length
    assert "another text tower" in (tmp_path / "out" / "README.md").read_text()


def test_another_text_tower_is_refused(model, student, tmp_path):
    trained = COTSModel.from_pretrained(model)
    with torch.no_grad():
        trained.text_model.encoder.layer[0].output.dense.bias[0] += 1e-3
    trained.save_pretrained(tmp_path / "trained")
    tiny_processor().save_pretrained(tmp_path / "trained")
    message = error_of(call_cli("convert", "text-tower", tmp_path / "trained", student, "--output", tmp_path / "out"))
    assert "is not text, the teacher of" in message or "was trained since" in message
    assert not (tmp_path / "out" / "config.json").exists()
    config = COTSConfig.from_pretrained(model, text_pooling="cls")
    COTSModel.from_pretrained(model, config=config).save_pretrained(tmp_path / "cls")
    tiny_processor().save_pretrained(tmp_path / "cls")
    assert 'text_pooling is "cls"' in error_of(
        call_cli("convert", "text-tower", tmp_path / "cls", student, "--output", tmp_path / "out")
    )
    assert "has no distillation.json" in error_of(
        call_cli("convert", "text-tower", model, model, "--output", tmp_path / "out")
    )


def test_a_dual_encoder_is_a_teacher_by_its_text_tower(world, table, model, student, tmp_path):
    _, fingerprint = make_trainer(world, table, tmp_path, teacher=model)
    assert fingerprint == json.loads((student / "distillation.json").read_text())["teacher_fingerprint"]
    assert isinstance(COTSProcessor.from_pretrained(model), COTSProcessor)
    cls = tmp_path / "cls"
    COTSModel.from_pretrained(model, config=COTSConfig.from_pretrained(model, text_pooling="cls")).save_pretrained(cls)
    with pytest.raises(ValueError, match='text_pooling is "cls"'):
        make_trainer(world, table, tmp_path, teacher=cls)
