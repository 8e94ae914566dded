"""What each client gets from a Hub, against what it gets from the folder that was uploaded: the largest differences.

    python -m benchmarks.hub_clients --output benchmarks/results/hub_clients.json

A tiny model with random weights is uploaded to a Hub on this machine by `hf-cots publish` and `hf upload`, and a
trained one by `--push_to_hub`; then every client reads them in a process with this package and in one that cannot
import it. The tests run the same (tests/test_hub_clients.py). About a minute.
"""

import argparse
import json
import tempfile
from pathlib import Path

from hf_cots.evaluation.retrieval.report import installed_versions
from tests.support.hub_clients import run_clients, serve_clients
from tests.support.worlds import World

from .machine import machine


VERSIONS = ("hf-cots", "torch", "transformers", "huggingface_hub", "datasets", "sentence-transformers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/hub_clients.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serve_clients(World(Path(folder))) as (server, user):
        found = {mode: run_clients(server, user, mode, timeout=3600) for mode in ("with", "without")}
    failed = [client for clients in found.values() for client, result in clients.items() if isinstance(result, str)]
    if failed:
        raise SystemExit(f"these clients failed, as tests/test_hub_clients.py shows: {', '.join(failed)}")
    report = {"machine": machine(), "versions": installed_versions(VERSIONS), "largest differences": found}
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
