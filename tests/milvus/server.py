"""A Milvus standalone of the PyPI package `milvus`, for as long as tests need it."""

import contextlib
import logging
import time

from pymilvus import MilvusClient


COMPONENTS = ("rootCoord", "proxy", "queryCoord", "queryNode", "indexNode", "dataCoord", "dataNode")


@contextlib.contextmanager
def running_server(folder, port=0):
    """The address of a server whose files are in a folder; it listens on this machine only."""
    from milvus import MilvusServer, MilvusServerConfig

    config = MilvusServerConfig(data_dir=str(folder))
    for component in COMPONENTS:  # else each looks for the machine's address in its network
        config.set(f"{component}.ip", "127.0.0.1")
    if port:
        config.update(proxy_port=port)
    server = MilvusServer(config)
    server.start()
    try:
        address = f"http://127.0.0.1:{server.listen_port}"
        wait_until_ready(address)
        yield address
    finally:
        server.stop()


def wait_until_ready(address, seconds=120):
    """Wait until collections can be listed, which is later than the server's own answer that it is well."""
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    end = time.monotonic() + seconds
    while True:
        try:
            MilvusClient(address, timeout=10).list_collections()
            return
        except Exception:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)
