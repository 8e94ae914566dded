"""A search page and its JSON API over an index on disk or in Milvus; needs the extra `serve`."""

try:
    import fastapi  # noqa: F401
    import python_multipart  # noqa: F401
    import uvicorn  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error.name} is not installed, which the search page needs: pip install 'hf-cots[serve]'"
    ) from None

from .app import create_app


__all__ = ["create_app"]
