"""The verb `hf-cots serve`."""

import ipaddress
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .._errors import note_on_interrupt, print_note
from .app import app, note_skipped
from .options import Revision, Token


if TYPE_CHECKING:
    from ..search.disk_index import DiskIndex
    from ..search.milvus_index import MilvusIndex

CONNECTIONS = 128  # at a time


@app.command(rich_help_panel="Search")
def serve(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INDEX | MODEL FOLDER",
            help="Index (a folder or a Milvus address); or a model followed by a folder.",
        ),
    ],
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="Folder of images and clips, if a model is given.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; with any other than the default, other machines can search too.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 8000,
    rerank: Annotated[str | None, typer.Option(help="SIMLA model to offer for re-ranking.")] = None,
    max_upload_mb: Annotated[
        float, typer.Option(min=0.001, max=1000, help="Maximum size of an uploaded query image, in MB.")
    ] = 10,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Serve a search page and a JSON API for an index, or for a folder, whose index is kept in the cache."""
    from ..search.clips import describe_count
    from ..serve import create_app
    from ..serve.guard import LOOPBACK

    listener = listen(host, port)  # an error here comes before the work, not after
    index = open_index(source, folder, revision)
    reranker = None
    if rerank:
        from ..search.reranked import RerankedIndex

        reranker = RerankedIndex.from_index(index, rerank)
    alone = is_loopback(host)
    served = create_app(index, reranker, LOOPBACK if alone else None, int(max_upload_mb * 2**20))
    index.search("a first text, so that the user's is as fast as the next", 1)
    name, port = ("localhost" if alone else host), listener.getsockname()[1]
    if not alone:
        print_note(f"warning: anyone who can reach {host} can search and see these images", "yellow")
    count = describe_count(len(index), index.count_clips())
    typer.echo(f"{count} at http://{f'[{name}]' if ':' in name else name}:{port} (press Ctrl-C to stop)")
    with note_on_interrupt(lambda: "the index is unchanged"):
        run(served, listener)


def open_index(source: str, folder: Path | None, revision: str | None) -> "DiskIndex | MilvusIndex":
    """Open an index, or the cached index of a model and a folder, which is updated first.

    Raises:
        ValueError: if an argument is missing or superfluous.
    """
    from ..search.base import BaseIndex
    from ..search.disk_index import DiskIndex
    from ..search.index import ImageIndex, open_folder
    from ..search.milvus import is_milvus
    from ..search.milvus_index import MilvusIndex
    from ..search.store import is_index

    index: BaseIndex
    if folder is None:
        if not (is_index(source) or is_milvus(source)):
            raise ValueError(
                f"{source} is not an index (create one with `hf-cots index`); or give a folder after the model"
            )
        index = ImageIndex.open(source)
    else:
        if is_index(source) or is_milvus(source):
            raise ValueError(f"{source} is an index: pass it alone, or pass a model and a folder")
        index, broken = open_folder(source, folder, revision, progress=True)
        note_skipped(broken)
    if not isinstance(index, (DiskIndex, MilvusIndex)):
        raise ValueError("the cache is not writable: set HF_COTS_CACHE, or create an index with `hf-cots index`")
    return index


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Raises:
        OSError: naming host and port, if the port is in use or the host is not an address of this machine.
    """
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        # Connections inherit it. asyncio does not set it for sockets made so, and each answer then waits 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"cannot listen on {host}, port {port}: {reason}; see --host and --port") from error


def is_loopback(host: str) -> bool:
    """Whether an address can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(served: object, listener: socket.socket) -> None:
    """Serve until Ctrl-C."""
    import uvicorn

    config = uvicorn.Config(
        served,  # type: ignore[arg-type]
        log_level="warning",
        access_log=False,
        limit_concurrency=CONNECTIONS,
        server_header=False,
        ws="none",
    )
    uvicorn.Server(config).run(sockets=[listener])
