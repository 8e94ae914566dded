"""Requests and responses of the JSON API."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


MAX_RESULTS = 500
MAX_TEXT = 2_000  # characters of a text or a filter
MAX_COLUMNS = 50  # columns named in a request
Cell = str | bool | int | float | None


class Filtered(BaseModel):
    """The fields that all search requests share."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    k: int = Field(48, ge=1, le=MAX_RESULTS, description="How many images.")
    where: str | None = Field(None, max_length=MAX_TEXT, description="An SQL expression over the columns.")
    filters: dict[str, list[Cell]] = Field(
        default_factory=dict,
        max_length=MAX_COLUMNS,
        description="Column: values, of which an image must have one; null is none.",
    )


class SearchRequest(Filtered):
    """A search for a text, an image, or both."""

    text: str | None = Field(None, max_length=MAX_TEXT, description="Text to search for.")
    image: str | None = Field(
        None, description="A data URL (data:image/png;base64,..., data:video/mp4;...); never a path or another URL."
    )
    minus: str | None = Field(
        None, max_length=MAX_TEXT, description="Text describing what the results should not show."
    )
    rerank: bool = Field(False, description="Re-rank the best images by the text, if the server has a re-ranker.")
    hybrid: list[str] = Field(
        default_factory=list,
        max_length=MAX_COLUMNS,
        description="Columns (or path) to also search by keyword.",
    )


class SimilarRequest(Filtered):
    """A search for images similar to one of the index."""

    id: int = Field(ge=0, lt=2**63, description="The `id` of a result.")


class Clip(BaseModel):
    """The clip fields of a result."""

    moment: float = Field(description="Seconds of the frame that is most similar to the query.")
    duration: float = Field(description="Seconds.")
    times: list[float] = Field(description="Seconds of the frames that were compared.")
    sheet: str = Field(description="Address of an image of these frames, side by side.")
    media_type: str = Field(description="Of the clip; an animated image begins with image/.")


class Result(BaseModel):
    """An image or a clip that was found."""

    id: int = Field(description="By which it can be asked for, until the index is updated.")
    path: str = Field(description="Within the source of the index.")
    score: float = Field(
        description="Cosine similarity to the query, the sum of reciprocal ranks, or the re-ranker's score."
    )
    similarity: float | None = Field(None, description="Cosine similarity, of a hybrid search.")
    columns: dict[str, Any]
    image: str = Field(description="Address of the image, or of the clip.")
    thumbnail: str = Field(description="Address of a small version; of a clip, of its frame at the moment.")
    clip: Clip | None = Field(None, description="null of an image.")


class Timings(BaseModel):
    """Times in milliseconds."""

    encode: float
    search: float
    rerank: float
    total: float = Field(description="With the time spent waiting for other requests.")


class Approximation(BaseModel):
    """The recall of approximate search, measured when the index was last written."""

    results: int = Field(description="For how many results: 10, or 100 for more than 10.")
    recall: float = Field(description="The part of the best that is found; the lower one of images and texts.")


class SearchResponse(BaseModel):
    """The images found, best first."""

    results: list[Result]
    timings: Timings
    approximate: Approximation | None = Field(description="null where all images were compared.")


class FacetValue(BaseModel):
    """A value of a column and the number of images that have it."""

    value: Cell
    count: int


class Facet(BaseModel):
    """A column with few values."""

    column: str
    values: list[FacetValue]


class Info(BaseModel):
    """The index that is served."""

    name: str
    model: str
    images: int = Field(description="With the clips.")
    clips: int
    columns: list[str]
    keywords: list[str] = Field(description="Columns of text, which `hybrid` may name.")
    facets: list[Facet]
    rerank: bool = Field(description="Whether there is a re-ranker.")
    max_upload_mb: float


class Error(BaseModel):
    """The error of a request."""

    error: str
