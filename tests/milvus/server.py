"""A Milvus standalone of the PyPI package `milvus`, for as long as tests need it; one at a time on a machine."""

import contextlib
import logging
import time

from milvus import MilvusServer, MilvusServerConfig
from pymilvus import MilvusClient


COMPONENTS = ("rootCoord", "proxy", "queryCoord", "queryNode", "indexNode", "dataCoord", "dataNode")
SECONDS = 180


@contextlib.contextmanager
def running_server(folder):
    """The address of a server whose files are in a folder."""
    config = MilvusServerConfig(data_dir=str(folder))
    for component in COMPONENTS:  # else each looks for the machine's address in its network
        config.set(f"{component}.ip", "127.0.0.1")
    server = MilvusServer(config, wait_for_started=False)
    server.start()
    try:
        address = f"http://127.0.0.1:{server.listen_port}"
        wait_until_ready(address, server.server_proc, folder)
        yield address
    finally:
        server.stop()


def wait_until_ready(address, process, folder):
    """Wait until collections can be listed, which is later than the server's own answer that it is well."""
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    end = time.monotonic() + SECONDS
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"Milvus has ended; see {folder}/logs. Does another one run on this machine?")
        try:
            MilvusClient(address, timeout=5).list_collections()
            return
        except Exception:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)
