"""Where the figures of cards and docs come from that stand neither in a block nor in a claim, and which of them no
file of results or settings holds, and why. By section ("file#heading") or, of sources, also by file."""

ABLATION = ("benchmarks/results/ablation.md", "benchmarks/results/ablation.jsonl")
ICONS = ("benchmarks/results/icons.md", "benchmarks/results/icons.jsonl")
COOKIE = ("model_cards/cookie-emoji/ablation.md", "benchmarks/results/cookie_ablation.jsonl")
FINE_TUNING = ("benchmarks/results/fine_tuning.md", "benchmarks/results/fine_tuning.jsonl")
RERANKING = ("benchmarks/results/rerank_at_scale.md", "benchmarks/results/rerank_at_scale.jsonl")


def of_card(card, *names):
    return tuple(f"model_cards/{card}/{name}" for name in names)


SOURCES = {
    "docs/results.md#Does COTS beat CLIP's loss?": ABLATION,
    "docs/results.md#At equal training time": ABLATION,
    "docs/results.md#150,000 icons": ICONS,
    "docs/results.md#What each level brings": ABLATION,
    "docs/results.md#Negative results": (*COOKIE, *FINE_TUNING),
    "docs/results.md#Two-stage search": RERANKING,
    "docs/results.md#Clips": of_card("cots-video", "results.json"),
    "docs/results.md#Compared with other libraries": ("benchmarks/results/comparisons.json",),
    "docs/search.md#An index on disk": ("benchmarks/results/approximate_search.json",),
    "docs/search.md#Two-stage search": ("benchmarks/results/simla_rerank.json",),
    "docs/export.md#Without torch": of_card("cots-icons", "export.json"),
    "docs/export.md#What it costs": ("benchmarks/results/export.json", "benchmarks/results/export_openvino.json"),
    "docs/training.md#Fine-tuning": FINE_TUNING,
    "docs/training.md#Distributed training and precision": ("benchmarks/results/data_loading.json",),
    "model_cards/cookie-emoji/README.md": (*COOKIE, *of_card("cookie-emoji", "recipe.yaml")),
    "model_cards/cots-emoji/README.md": of_card("cots-emoji", "results.json", "recipe.yaml"),
    "model_cards/cots-emoji/README.md#From scratch": ("src/hf_cots/demo/recipes/cots_from_scratch.yaml",),
    "model_cards/cots-finetuned/README.md": FINE_TUNING,
    "model_cards/cots-icons/README.md": of_card(
        *("cots-icons", "results.json", "export.json", "report.json", "recipe.yaml")
    ),
    "model_cards/cots-scratch/README.md": (*ABLATION, *of_card("cots-scratch", "recipe.yaml")),
    "model_cards/cots-warm/README.md": (*ABLATION, *of_card("cots-warm", "recipe.yaml")),
    "model_cards/cots-video/README.md": of_card("cots-video", "results.json", "demo.json", "recipe.yaml"),
    "model_cards/e5-multilingual/README.md": (
        *(
            "benchmarks/results/e5_multilingual.json",
            *of_card("e5-multilingual", "emoji.yaml", "icons.yaml", "icons.json"),
        ),
    ),
    "model_cards/minilm-multilingual/README.md": (
        *("benchmarks/results/multilingual.json", *of_card("minilm-multilingual", "recipe.yaml")),
    ),
    "model_cards/simla-emoji/README.md": (
        *("benchmarks/results/simla_rerank.json", *of_card("simla-emoji", "recipe.yaml")),
    ),
}

NOT_RECORDED = {
    "README.md#Search": ["200,000"],  # advice
    "docs/results.md#Does COTS beat CLIP's loss?": [
        *("1.05", "1.07", "1.09"),  # times of steps, taken by hand
        "150,000",  # the set, roundly
    ],
    "docs/results.md#At equal training time": [
        *("74 ms", "961 ms", "1,273", "1,702", "130 ms", "78 ms"),  # parts of steps, timed by hand
        *("1.4", "1.5"),  # times of steps, taken by hand
        "100 billion",  # operations per second of a core
        "30,522",  # MiniLM's vocabulary
        "120.4",  # a mean over two tables
    ],
    "docs/results.md#150,000 icons": [
        *("1.04", "1.07", "1.44", "1.57", "1.72", "1.86"),  # times of steps, from the work folder's timing.json
        "124.3",  # the first of three seeds, whose mean the table has
        *("0.99", "8,192", "128 steps", "16 steps"),  # settings, and what follows from them
        *("7.5", "12.7"),  # a preliminary run that was not kept
    ],
    "docs/results.md#What each level brings": ["1.05", "1.24", "1.6", "1.9"],  # times of steps, taken by hand
    "docs/results.md#Negative results": [
        "1.24",  # times of steps, taken by hand
        "0.9",  # a setting
        "150,000",  # icons, rounded
    ],
    "docs/results.md#Two-stage search": ["4,889"],  # images of the set that benchmarks/toned_emoji.py makes
    "docs/results.md#Clips": ["120 clips"],  # 116 to 129, those of two of three folds
    "docs/results.md#Compared with other libraries": ["5 captions"],  # an image, as the benchmark makes them
    "docs/results.md#Measured elsewhere": ["50.5", "66.9", "75.2", "88.2"],  # of the paper
    "docs/search.md#An index on disk": [
        # settings, and rounded sizes of sets
        *("0.99", "1,000", "1,024", "20 seconds", "32 bytes", "512 images", "100,000", "150,000"),
        *("10.1145", "1571941.1572114"),  # a DOI
        # indexes of 200,000 vectors to a million, and hybrid search, timed by hand
        *("0.0003", "0.012", "229 MB", "132 MB", "84 MB", "26 ms", "34 ms", "120 ms", "8 MB", "6 seconds", "45 MB"),
        *("90 ms", "200 ms", "29 ms", "62 ms", "232 ms", "1.15", "21.8", "21.9"),
        # the index of 100,000 icons, timed by hand
        *("4 minutes", "15 seconds", "410 images", "120 MB", "11 seconds", "4.6", "4.1", "870 MB", "0.2", "17 ms"),
        "0.0006",  # standard error, of which the record has four digits for each number of results
        "4,096",  # texts, as the benchmark makes them
    ],
    "docs/search.md#Clips": ["1.41", "2104.08860", "384 images", "4 KB"],  # a moment, a paper, and settings
    "docs/search.md#A search page": ["10 seconds", "50 million"],  # limits
    "docs/export.md#Without torch": ["102 MB"],  # of the fp32 export
    "docs/export.md#In a browser": ["7 ms", "8 ms"],  # timed by hand
    "docs/export.md#What it costs": [
        "0.97",  # a setting, and an overlap
        # other ways of quantization, which were measured by hand and not kept
        *("0.86", "0.93", "0.94", "0.96", "0.98", "0.99", "1.0", "1.1", "1.5", "1.7", "2.0", "2.1", "2.3", "2.4"),
        *("2.5", "2.6", "416 emoji", "416 images", "673 names"),
    ],
    "docs/training.md#Model": ["195,375,872"],  # tested beside the model
    "docs/training.md#What to switch on": [
        *("1.05", "1.24", "1.6", "1.9"),  # times of steps, taken by hand
        *("0.1", "0.25"),  # settings
        "150,000",  # the set, roundly
    ],
    "docs/training.md#Fine-tuning": [
        *("0.75", "0.9", "0.999", "8,990"),  # settings
        *("0.4", "1.24", "1.4"),  # times of steps, taken by hand
    ],
    "docs/training.md#Distributed training and precision": ["0.35"],  # an assumption
    "docs/training.md#What the log shows": ["0.3"],  # advice
    "model_cards/cookie-base/README.md": ["16,801,792", "213,067,008"],  # tested below
    "model_cards/cookie-emoji/README.md#Three seeds of 200 steps": [
        *("1.3", "1.9", "2.1", "2.7"),  # steps relative to `cm`, timed by hand
        *("28.7", "9.4", "50.5", "0.001"),  # the comparison of `all` with 600 steps of `cm`
    ],
    "model_cards/cots-base/README.md": ["5.3", "195,375,872"],  # million pairs of the paper; tested beside the model
    "model_cards/cots-emoji/README.md": [
        "600 steps",  # of the demo in bfloat16, which is in its code
        "1.4",  # times of steps, taken by hand
        *("32.5", "42.5", "64.4", "68.7", "85.7", "92.9"),  # by kind of emoji: the file has no ranks of single queries
    ],
    "model_cards/cots-emoji/README.md#From scratch": [
        "3,168",  # images of the demo's two styles
        # a run whose results file was not kept
        *("6.3", "7.3", "8.0", "8.7", "10.8", "23.3", "23.7", "24.0", "25.1", "25.8", "26.5", "32.4", "35.9", "36.6"),
        *("36.9", "37.6", "38.0", "287 queries"),
    ],
    "model_cards/cots-finetuned/README.md": ["50,000"],  # advice
    "model_cards/cots-icons/README.md#Results": ["8,380", "10 seconds", "823 icons"],  # timed by hand
    "model_cards/cots-icons/README.md#Training": [
        *("14,000", "8 epochs", "57 minutes"),  # the model that was measured: its recipe has twice the steps by now
        *("1.5", "7.5", "7.8", "11.8", "12.7", "15.2"),  # preliminary runs, which were not kept
    ],
    "model_cards/cots-scratch/README.md": ["15 epochs", "1.6"],  # 3,000 steps of 16; times of steps
    "model_cards/cots-small/README.md": ["44,428,160"],  # tested below
    "model_cards/cots-video/README.md#Results": ["120 clips", "10 minutes"],  # 116 to 129, by fold; taken by hand
    "model_cards/cots-warm/README.md": ["10,000"],  # advice
    "model_cards/cots-warm/README.md#Findings": [
        *("0.05", "0.9", "0.99", "0.995", "2,048", "6 epochs", "12 epochs"),  # settings
        *("5,000", "50,000"),  # advice
        "9,600",  # 600 steps of 16
    ],
    "model_cards/cots-warm/README.md#Time": ["1.05", "1.09", "4 ms", "7 ms"],  # times of steps, taken by hand
    "model_cards/e5-multilingual/README.md#The tower": [
        *("0.9998", "1,000", "20,794", "21,000"),  # the comparison with the package's engine, by hand
        *("250,002", "488 MB", "91 MB"),  # of the package
    ],
    "model_cards/e5-multilingual/README.md#Limits": ["0.98", "0.99"],  # cosines that the package states
    "model_cards/minilm-multilingual/README.md#Training": ["26,000", "30,522", "42,000"],  # pieces and pairs, rounded
    "model_cards/simla-base/README.md": ["223,742,723", "238,264,183", "4 million"],  # tested beside the model
    "model_cards/simla-emoji/README.md": [
        # runs that were not kept
        *("0.59", "0.636", "0.41", "0.28", "0.9", "1,200", "125 steps", "350 steps", "500 steps", "5,382"),
        "69 minutes",  # timed by hand
    ],
}
