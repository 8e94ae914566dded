"""`hf-cots data`: write data sets made from public packages, as parquet."""

import os
from pathlib import Path
from typing import Annotated

import typer

from .._errors import check_output_folder
from .app import app


data_app = typer.Typer(
    no_args_is_help=True, help="Make data sets from public npm, Python and Debian packages, as parquet."
)
app.add_typer(data_app, name="data", rich_help_panel="Data")

Folder = Annotated[Path, typer.Argument(help="Output folder for the parquet files, report.json and LICENSES.md.")]
Size = Annotated[int, typer.Option(min=16, help="Image size in pixels.")]
Offline = Annotated[bool, typer.Option("--offline", help="Do not download anything; use the cached packages.")]


def say_counts(counts: dict[str, int], output: Path) -> None:
    """Print the number of rows of each file."""
    parts = ", ".join(f"{side}.parquet {count:,}" for side, count in counts.items())
    typer.echo(f"rows in {output}: {parts}")


@data_app.command()
def icons(
    output: Folder,
    size: Size = 64,
    seed: Annotated[int, typer.Option(help="Seed for choosing the held-out words.")] = 0,
    workers: Annotated[
        int, typer.Option(min=1, help="Number of rendering processes; the result does not depend on it.")
    ] = os.cpu_count() or 1,
    offline: Offline = False,
) -> None:
    """Make the icon set: about 150,000 images with names and keywords. Downloads eight npm packages (135 MB) once.

    Emoji in all styles are written to OUTPUT/emoji."""
    from ..data.sets.emoji_styles import write_emoji_styles
    from ..data.sets.icon_keywords import KEYWORD_PACKAGES
    from ..data.sets.icons import write_icon_set
    from ..data.sets.packages import EMOJIBASE, ICONIFY, fetch_package

    check_output_folder(output)
    iconify = fetch_package(ICONIFY, offline)
    keywords = {package: fetch_package(package, offline) for package in KEYWORD_PACKAGES}
    say_counts(write_icon_set(output, iconify, keywords, size, seed, workers, progress=True), output)
    emoji_folder = output / "emoji"
    say_counts(write_emoji_styles(emoji_folder, iconify, keywords[EMOJIBASE], seed=seed, progress=True), emoji_folder)


@data_app.command()
def emoji(
    output: Folder,
    size: Size = 72,
    seed: Annotated[int, typer.Option(help="Seed for choosing the held-out concepts.")] = 0,
    two_styles: Annotated[
        bool, typer.Option("--two-styles", help="Use only Twemoji and OpenMoji, which need no download.")
    ] = False,
    offline: Offline = False,
) -> None:
    """Make the emoji set: eleven styles, split by concept. Downloads two npm packages (111 MB) once."""
    from ..data.sets.emoji_styles import PYTHON_STYLES, STYLES, write_emoji_styles
    from ..data.sets.packages import EMOJIBASE, ICONIFY, fetch_package

    check_output_folder(output)
    iconify = None if two_styles else fetch_package(ICONIFY, offline)
    emojibase = None if two_styles else fetch_package(EMOJIBASE, offline)
    styles = PYTHON_STYLES if two_styles else STYLES
    say_counts(write_emoji_styles(output, iconify, emojibase, styles, size, seed=seed, progress=True), output)


@data_app.command()
def clips(
    output: Folder,
    seed: Annotated[int, typer.Option(help="Seed for choosing the held-out concepts.")] = 0,
    offline: Offline = False,
) -> None:
    """Make the clip set: 427 animated emoji with names and keywords. Downloads two npm packages (172 MB) once.

    The held-out concepts are those of the emoji set."""
    from ..data.sets.clips import write_clip_set
    from ..data.sets.packages import EMOJIBASE, FLUENT_ANIMATED, fetch_package

    check_output_folder(output)
    animated, emojibase = fetch_package(FLUENT_ANIMATED, offline), fetch_package(EMOJIBASE, offline)
    say_counts(write_clip_set(output, animated, emojibase, seed=seed), output)


@data_app.command()
def translations(
    output: Folder,
    seed: Annotated[int, typer.Option(help="Seed for choosing the held-out concepts.")] = 0,
    offline: Offline = False,
) -> None:
    """Make a table of emoji names and keywords in 105 languages. Downloads two npm packages (11 MB) once.

    The held-out concepts are those of the emoji set."""
    from ..data.sets.packages import CLDR, CLDR_DERIVED, fetch_package
    from ..data.sets.translations import write_translation_set

    check_output_folder(output)
    files = fetch_package(CLDR, offline), fetch_package(CLDR_DERIVED, offline)
    say_counts(write_translation_set(output, files, seed=seed), output)


@data_app.command()
def openclipart(
    output: Folder,
    deb: Annotated[
        Path | None,
        typer.Option(help="The .deb file, or the folder of its SVG files; by default it is downloaded with apt."),
    ] = None,
    size: Size = 64,
    seed: Annotated[int, typer.Option(help="Seed for choosing the held-out clusters.")] = 0,
) -> None:
    """Make the openclipart set: 3,300 drawings with titles, from the Debian package openclipart-svg."""
    from ..data.sets.openclipart import write_openclipart_parquet

    check_output_folder(output)
    say_counts(write_openclipart_parquet(output, deb, size=size, seed=seed), output)
