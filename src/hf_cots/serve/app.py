"""The application: the page, its JSON API, and the images and clips of the index by id."""

import logging
import pathlib
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from ..data.images import BrokenImage
from ..search.disk_index import DiskIndex
from ..search.milvus_index import MilvusIndex
from .catalog import Location
from .clips import ClipFiles, answer_clip, draw_frame, draw_sheet, media_type_of, nearest_time
from .engine import Busy, Engine, NotFound
from .guard import HEADERS, LOOPBACK, Guard
from .images import ImageFiles, UploadError, check_upload, decode_data_url
from .schemas import (
    MAX_COLUMNS,
    MAX_RESULTS,
    MAX_TEXT,
    Cell,
    Error,
    Info,
    SearchRequest,
    SearchResponse,
    SimilarRequest,
)


if TYPE_CHECKING:
    from ..search.reranked import RerankedIndex

logger = logging.getLogger(__name__)

PAGE = {
    "/": ("index.html", "text/html"),
    "/docs": ("docs.html", "text/html"),
    "/static/app.css": ("app.css", "text/css"),
    "/static/app.js": ("app.js", "text/javascript"),
    "/static/docs.js": ("docs.js", "text/javascript"),
    "/favicon.ico": ("icon.svg", "image/svg+xml"),
}
FORM_EXTRA = 64 << 10  # bytes of a request other than its image
MAX_FIELDS = 10 + MAX_COLUMNS  # in a form
RETRY_SECONDS = 2
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Error, "description": text}
    for status, text in {
        400: "The query or its filter is wrong.",
        404: "No such image.",
        413: "The upload is too large.",
        415: "Neither JSON nor a form.",
        422: "A field is wrong.",
        503: "Busy.",
    }.items()
}
Text = Annotated[str | None, Query(max_length=MAX_TEXT, description="Text to search for.")]
Minus = Annotated[str | None, Query(max_length=MAX_TEXT, description="What they should not show.")]
Where = Annotated[str | None, Query(max_length=MAX_TEXT, description="An SQL expression over the columns.")]
Filters = Annotated[str | None, Query(description='A JSON object, such as {"style": ["flat"]}.')]
Hybrid = Annotated[list[str] | None, Query(description="Columns to also search by keyword.")]
Count = Annotated[int, Query(ge=1, le=MAX_RESULTS)]
FILTERS = TypeAdapter(dict[str, list[Cell]])
Seconds = Annotated[float | None, Query(ge=0, allow_inf_nan=False, description="Seconds, of a clip.")]
ImageId = Annotated[int, Path(ge=0, lt=2**63)]


def create_app(
    index: DiskIndex | MilvusIndex,
    reranker: "RerankedIndex | None" = None,
    hosts: Sequence[str] | None = LOOPBACK,
    max_upload_bytes: int = 10 << 20,
) -> FastAPI:
    """Create the ASGI application that serves an index.

    Args:
        index: an index opened by [`ImageIndex.open`]. Updates by other processes are picked up.
        reranker: a re-ranker over that index, for requests that ask for it.
        hosts: the allowed host names; None allows all, for a server that is open to other machines.
        max_upload_bytes: maximum size of a query image.

    Raises:
        OSError, ValueError: if the index cannot be read.
    """
    engine = Engine(index, reranker)
    app = FastAPI(
        title="hf-cots search",
        description="Search the images of an index with a text or an image.",
        docs_url=None,  # FastAPI's page loads scripts from other servers; /docs is our own
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.add_middleware(Guard, hosts=hosts, max_body=max_upload_bytes * 4 // 3 + FORM_EXTRA)  # base64 is 4/3
    add_request_errors(app)
    add_index_errors(app)
    add_page(app)
    add_info(app, engine, max_upload_bytes)
    add_search(app, engine, max_upload_bytes)
    add_similar(app, engine)
    add_images(app, engine)
    return app


def add_page(app: FastAPI) -> None:
    """Serve the files of the page and no others."""
    folder = files("hf_cots.serve") / "page"

    def serve(body: bytes, media_type: str) -> Any:
        async def answer() -> Response:
            return Response(body, media_type=media_type, headers={"cache-control": "no-cache"})

        return answer

    for address, (name, media_type) in PAGE.items():
        app.get(address, include_in_schema=False)(serve((folder / name).read_bytes(), media_type))


def body_schema(model: type[BaseModel], form: bool = False) -> dict[str, Any]:
    """Return the OpenAPI entry of a request body that is parsed by hand."""
    schema = model.model_json_schema()
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if form:
        fields = schema["properties"] | {"image": {"type": "string", "format": "binary", "description": "A file."}}
        fields["filters"] = {"type": "string", "description": "A JSON object."}
        content["multipart/form-data"] = {"schema": {"type": "object", "properties": fields}}
    return {"requestBody": {"required": True, "content": content}}


def add_search(app: FastAPI, engine: Engine, max_upload_bytes: int) -> None:
    """Add the endpoints that search for a text, an image, or both."""

    @app.get("/api/search", response_model=SearchResponse, responses=ERRORS)
    def search(
        text: Text = None,
        minus: Minus = None,
        where: Where = None,
        filters: Filters = None,
        k: Count = 48,
        rerank: bool = False,
        hybrid: Hybrid = None,
    ) -> Response:
        """Search for a text."""
        fields = {"text": text, "minus": minus, "where": where, "k": k, "rerank": rerank, "hybrid": hybrid or []}
        request = SearchRequest.model_validate(fields | read_filters(filters))
        engine.refresh()
        return answer(engine.search(request))

    @app.post(
        "/api/search", response_model=SearchResponse, responses=ERRORS, openapi_extra=body_schema(SearchRequest, True)
    )
    async def search_with_image(request: Request) -> Response:
        """Search for a text, an image, or both: as JSON with a data URL, or as a form with a file."""
        fields, upload = await read_request(request, max_upload_bytes)

        def work() -> Response:
            engine.refresh()
            return answer(engine.search(fields, upload))

        return await run_in_threadpool(work)


def add_similar(app: FastAPI, engine: Engine) -> None:
    """Add the endpoints that search for images similar to one of the index."""

    @app.get("/api/similar", response_model=SearchResponse, responses=ERRORS)
    def similar(
        id: Annotated[int, Query(ge=0, lt=2**63)], where: Where = None, filters: Filters = None, k: Count = 48
    ) -> Response:
        """Search for images similar to one of the index."""
        request = SimilarRequest.model_validate({"id": id, "where": where, "k": k} | read_filters(filters))
        engine.refresh()
        return answer(engine.similar(request))

    @app.post(
        "/api/similar", response_model=SearchResponse, responses=ERRORS, openapi_extra=body_schema(SimilarRequest)
    )
    async def similar_by_body(request: Request) -> Response:
        """Search for images similar to one of the index."""
        check_media_type(request, "application/json")
        fields = SimilarRequest.model_validate_json(await request.body())

        def work() -> Response:
            engine.refresh()
            return answer(engine.similar(fields))

        return await run_in_threadpool(work)


def add_info(app: FastAPI, engine: Engine, max_upload_bytes: int) -> None:
    """Add the endpoint for what a page must know before the first search."""

    @app.get("/api/info", response_model=Info)
    def info() -> Response:
        """Describe the index: the number of images, its columns, and the values of columns with few values."""
        engine.refresh()
        return answer(engine.info(max_upload_bytes))


def add_images(app: FastAPI, engine: Engine) -> None:
    """Serve the images and clips of the index by the ids of their rows."""
    kept, clips = ImageFiles(), ClipFiles()

    def clip_of(location: Location) -> tuple[pathlib.Path | bytes, str]:
        source = engine.find_source(location)
        clips.check(source, location.digest, location.path.name)
        return source, location.path.name

    @app.get("/image/{id}", response_class=Response, responses=ERRORS)
    def image(id: ImageId, request: Request) -> Response:
        """Return an image or a clip of the index; for clips in files, Range requests are supported."""
        engine.refresh()
        location = engine.locate(id)
        headers = cache_headers(location.digest)
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        if location.times is not None:
            return answer_clip(clip_of(location)[0], media_type_of(location.path), headers)
        data, media_type = kept.original(engine.read(location), location.digest, location.path.name)
        return Response(data, media_type=media_type, headers=headers)

    @app.get("/thumbnail/{id}", response_class=Response, responses=ERRORS)
    def thumbnail(id: ImageId, request: Request, at: Seconds = None) -> Response:
        """Return a small version of an image of the index, or of the frame of a clip nearest to `at`."""
        engine.refresh()
        location = engine.locate(id)
        if location.times is None:
            digest, name = location.digest, location.path.name
            return answer_small(request, kept, digest, lambda: kept.thumbnail(engine.read(location), digest, name))
        time = nearest_time(location.times, at)
        key = f"{location.digest}@{time}"
        return answer_small(request, kept, key, lambda: kept.make(key, lambda: draw_frame(*clip_of(location), time)))

    @app.get("/sheet/{id}", response_class=Response, responses=ERRORS)
    def sheet(id: ImageId, request: Request) -> Response:
        """Return the frames of a clip that were compared, side by side in squares."""
        engine.refresh()
        location = engine.locate(id)
        times = location.times
        if times is None:
            raise NotFound(f"image {id} is not a clip")
        key = f"{location.digest}-sheet"
        return answer_small(request, kept, key, lambda: kept.make(key, lambda: draw_sheet(*clip_of(location), times)))


def answer_small(request: Request, kept: ImageFiles, key: str, make: Callable[[], bytes]) -> Response:
    """Respond with a cached small image, or create it with `make`; with status 304 if the browser has it."""
    headers = cache_headers(f"{key}-thumbnail")
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    return Response(kept.kept_thumbnail(key) or make(), media_type="image/webp", headers=headers)


def cache_headers(name: str) -> dict[str, str]:
    """Return headers that let browsers cache an image but revalidate it, since an update may reuse an id."""
    return {"etag": f'"{name}"', "cache-control": "private, no-cache"}


def answer(model: BaseModel) -> Response:
    """Respond with a model as JSON; numbers that JSON cannot represent become null."""
    return Response(model.model_dump_json(), media_type="application/json")


# ---------------------------------------------------------------------- requests


def check_media_type(request: Request, *allowed: str) -> str:
    """Return the media type of a request body.

    Raises:
        HTTPException: if it is not an allowed one.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in allowed:
        raise HTTPException(415, f"the Content-Type must be {' or '.join(allowed)}")
    return media_type


def read_filters(text: str | None) -> dict[str, Any]:
    """Parse the field `filters`, which is JSON in query strings and forms.

    Raises:
        ValidationError: if it is not a JSON object of lists.
    """
    return {} if text is None else {"filters": FILTERS.validate_json(text)}


async def read_request(request: Request, max_upload_bytes: int) -> tuple[SearchRequest, bytes | None]:
    """Read the fields of a search request, and the image uploaded with it.

    Raises:
        HTTPException, ValidationError, UploadError: naming what is wrong.
    """
    upload = None
    if check_media_type(request, "application/json", "multipart/form-data") == "application/json":
        fields = SearchRequest.model_validate_json(await request.body())
    else:
        async with request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=max_upload_bytes * 4 // 3) as form:
            values: dict[str, Any] = dict(form)
            if isinstance(values.get("image"), UploadFile):
                upload = await values.pop("image").read()
            if isinstance(values.get("filters"), str):
                values |= read_filters(values["filters"])
            if "hybrid" in values:
                values["hybrid"] = form.getlist("hybrid")
        fields = SearchRequest.model_validate(values)
    if fields.image is not None:
        upload = decode_data_url(fields.image)
    if upload is not None:
        check_upload(upload, max_upload_bytes)
    return fields, upload


# ---------------------------------------------------------------------- errors


def add_request_errors(app: FastAPI) -> None:
    """Respond to invalid requests with {"error": ...}."""

    @app.exception_handler(RequestValidationError)
    @app.exception_handler(ValidationError)
    async def wrong_field(_: Request, error: RequestValidationError | ValidationError) -> Response:
        found = []
        for each in error.errors()[:3]:
            place = each["loc"][1:] if isinstance(error, RequestValidationError) else each["loc"]
            found.append(f"{'.'.join(str(part)[:50] for part in place) or 'the request'}: {each['msg']}")
        return say(422, "; ".join(found))

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return say(error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(UploadError)
    async def wrong_upload(_: Request, error: UploadError) -> Response:
        return say(error.status, str(error))

    @app.exception_handler(ValueError)
    async def wrong_query(_: Request, error: ValueError) -> Response:
        return say(400, str(error))


def add_index_errors(app: FastAPI) -> None:
    """Respond to errors of the index or the server with {"error": ...}, without a traceback."""

    @app.exception_handler(NotFound)
    async def not_found(_: Request, error: NotFound) -> Response:
        return say(404, str(error))

    @app.exception_handler(BrokenImage)
    async def broken(_: Request, error: BrokenImage) -> Response:
        return say(410, "the image can no longer be read, or has changed since it was indexed")

    @app.exception_handler(Busy)
    async def busy(_: Request, error: Busy) -> Response:
        return say(503, str(error), {"retry-after": str(RETRY_SECONDS)})

    @app.exception_handler(OSError)
    async def unreadable(_: Request, error: OSError) -> Response:
        logger.warning("%s", error)
        return say(503, "the index cannot be read now", {"retry-after": str(RETRY_SECONDS)})

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> Response:  # the server logs its traceback
        return say(500, "an error in the server; its log says more", HEADERS)  # this response bypasses the guard


def say(status: int, reason: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Respond with an error as JSON; a reason that is not valid UTF-8 is escaped."""
    body = reason[:500].encode("ascii", "backslashreplace").decode() if has_surrogates(reason) else reason[:500]
    return JSONResponse({"error": body}, status, headers)


def has_surrogates(text: str) -> bool:
    """Whether a text cannot be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
