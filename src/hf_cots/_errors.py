"""User errors, and how every command reports them: one line, exit code 2.

Exceptions of libraries are recognized by name, so that this file does not import them.
"""

import errno
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console


# What wrong names, files, settings and missing packages raise.
USER_ERRORS = (OSError, ValueError, ModuleNotFoundError, MemoryError)
# The same of libraries whose exceptions derive from none of these. All else is a bug and keeps its traceback.
LIBRARY_ERRORS = {
    "PIL.Image.DecompressionBombError",
    "_pickle.UnpicklingError",
    "builtins.EOFError",
    "datasets.exceptions.DatasetsError",
    "huggingface_hub.errors.EntryNotFoundError",
    "huggingface_hub.errors.RevisionResolutionError",
    "huggingface_hub.errors.SafetensorsParsingError",
    "huggingface_hub.errors.StrictDataclassError",
    "huggingface_hub.errors.XetDownloadError",
    "httpx.HTTPError",
    "httpx2.HTTPError",
    "aiohttp.client_exceptions.ClientError",
    "_lzma.LZMAError",
    "pyarrow.lib.ArrowException",
    "subprocess.CalledProcessError",
    "tarfile.TarError",
    "torch.OutOfMemoryError",
    "torch.distributed.DistError",
    "yaml.error.YAMLError",
    "zipfile.BadZipFile",
    "zipfile.LargeZipFile",
    "zlib.error",
}
LIBRARY_NAMES = {"SafetensorError"}  # whose module is called differently from version to version
# Exceptions that only say that another one was raised.
WRAPPERS = {
    "datasets.exceptions.DatasetGenerationError",
    "huggingface_hub.errors.StrictDataclassClassValidationError",
    "huggingface_hub.errors.StrictDataclassFieldValidationError",
}
# What torch and transformers raise as RuntimeError, which else is a bug.
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED|Unable to allocate")
RUNTIME_ERRORS = re.compile(
    r"PytorchStream(Reader|Writer)|inline_container|archive is corrupted|Invalid magic number|unexpected EOF"
    r"|DataLoader worker \(pid|No space left on device|ignore_mismatched_sizes|Error\(s\) in loading state_dict"
    r"|Error while uploading '.*' to the Hub"
    r"|gloo/transport/.* (Connection closed|Connection reset|Broken pipe)"  # another process has ended, with an error
    r"|Found no NVIDIA driver|No CUDA GPUs are available|CUDA error: (invalid device|no kernel image)"
)
# What to do about an error of the Hub, the most specific first: classes of exceptions, and what a server answered.
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN (--token)"
AGAIN = "run it again; what came over whole is kept"
NETWORK = f"check the network (and HF_ENDPOINT, if it is set), then {AGAIN}; HF_HUB_OFFLINE=1 takes it from the cache"
HUB_HINTS = {
    "huggingface_hub.errors.GatedRepoError": f"it is gated: ask for access on its page, then {LOG_IN}",
    "huggingface_hub.errors.RepositoryNotFoundError": f"if it is private or gated, {LOG_IN}",
    "datasets.exceptions.DatasetNotFoundError": f"if it is private or gated, {LOG_IN}",
    "huggingface_hub.errors.RevisionNotFoundError": "no such branch, tag or commit: see its page, and --revision",
    "huggingface_hub.errors.OfflineModeIsEnabled": "it is not in the cache, and HF_HUB_OFFLINE forbids to download it",
    "answer 401": f"the token is not valid: {LOG_IN}",
    "answer 403": f"the token has no right to this: take one that has, and {LOG_IN}",
    "answer 429": f"it limits requests: wait some minutes, or {LOG_IN}",
    "answer 5xx": f"the fault is the Hub's: wait a while, then {AGAIN}",
    "httpx.TransportError": NETWORK,
    "httpx2.TransportError": NETWORK,
    "huggingface_hub.errors.LocalEntryNotFoundError": "it is not in the cache, and the Hub is not reached",
}
TRANSPORT_ERRORS = {"httpx.TransportError", "httpx2.TransportError"}
LESS_MEMORY = (
    "lower --batch-size; in training --per_device_train_batch_size (with --gradient_accumulation_steps or "
    "--gradient_cache for as many pairs in a step), or add --gradient_checkpointing"
)
WORKER = re.compile(r"Caught \w+ in .*\bprocess \d+\.\s+Original Traceback", re.DOTALL)
CLASS_NAME = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Refused|BrokenImage): ")
LFS_POINTER = b"version https://git-lfs"
LONGEST = 500  # characters of a library's message that are shown


def print_note(text: str, style: str) -> None:
    """Print one line on stderr, in color if the terminal supports it."""
    Console(stderr=True).print(text, style=style, highlight=False, markup=False, soft_wrap=True)


# ---------------------------------------------------------------------- what is known


def class_names(error: BaseException) -> list[str]:
    """Full names of an exception's class and its base classes."""
    return [f"{cls.__module__}.{cls.__qualname__}" for cls in type(error).__mro__]


def list_causes(error: BaseException | None) -> Iterator[BaseException]:
    """List an error, its cause, the cause's cause, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine or an accelerator ran out of memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and bool(OUT_OF_MEMORY.search(str(error)))
    )


def is_user_error(error: BaseException) -> bool:
    """Whether this is an error that the user can fix; otherwise it is a bug."""
    if isinstance(error, ImportError):
        ours = (error.name or "").partition(".")[0] == "hf_cots"
        return not ours and (isinstance(error, ModuleNotFoundError) or error.name is None)
    names = class_names(error)
    return (
        isinstance(error, USER_ERRORS)
        or not LIBRARY_ERRORS.isdisjoint(names)
        or type(error).__name__ in LIBRARY_NAMES
        or type(error) is Exception  # as tokenizers raises it; nothing else does
        or is_out_of_memory(error)
        or (isinstance(error, RuntimeError) and bool(RUNTIME_ERRORS.search(str(error))))
    )


# ---------------------------------------------------------------------- what is said


def explain(error: BaseException) -> str | None:
    """Explain a user error in one line: the cause, the file or field, and what to do. None for a bug.

    Args:
        error: the exception; if its message names no file, the file is looked up in its traceback.
    """
    if not is_user_error(error):
        return None
    specific = error
    while not WRAPPERS.isdisjoint(class_names(specific)[:1]) and specific.__cause__ is not None:
        specific = specific.__cause__
    if is_out_of_memory(specific):
        return f"out of memory: {shorten(first_sentences(str(specific)))}; {LESS_MEMORY}".replace(": ;", ":")
    text = describe(specific)
    if not is_user_error(specific) and " " not in text:  # such as a KeyError, which says no more than the key
        text = f"{type(specific).__name__}: {text}"
    text = name_file(specific, text)
    hint = find_hint(error)
    return text if hint is None or "hf auth login" in text else f"{text}; {hint}"


def describe(error: BaseException) -> str:
    """An error's own message in one line."""
    if isinstance(error, OSError) and error.strerror and error.errno and type(error).__module__ == "builtins":
        return ": ".join(str(part) for part in (error.filename, error.strerror) if part is not None)
    answer = describe_answer(error)
    if answer is not None:
        return answer
    text = str(error)
    if WORKER.match(text):  # of a process that loads data: its whole traceback
        text = CLASS_NAME.sub("", text.strip().splitlines()[-1])
    text = re.sub(r" ?\(Request ID:[^)]*\)", "", text)
    return shorten(text) or type(error).__name__


def shorten(text: str) -> str:
    """One line of at most about [`LONGEST`] characters."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rsplit(' ', 1)[0]} ..."


def first_sentences(text: str, count: int = 2) -> str:
    """Shorten a long message to its first sentences."""
    return " ".join(re.split(r"(?<=\.)\s+", text.strip())[:count]).rstrip(". ")


def read_status(error: BaseException) -> int | None:
    """The HTTP status of the Hub's answer, if the error contains no other information."""
    is_plain = class_names(error)[0] == "huggingface_hub.errors.HfHubHTTPError"
    return getattr(getattr(error, "response", None), "status_code", None) if is_plain else None


def find_hint(error: BaseException) -> str | None:
    """What to do about this error, if it was caused by an error of the Hub."""
    names: set[str] = set()
    for cause in list_causes(error):
        status = read_status(cause)
        names |= {*class_names(cause), f"answer {status}", f"answer {status // 100}xx" if status else ""}
    return next((hint for name, hint in HUB_HINTS.items() if name in names), None)


def describe_answer(error: BaseException) -> str | None:
    """What the Hub answered, or how the connection failed, if the error contains no other information."""
    status = read_status(error)
    if status is not None:
        response: Any = error.response  # type: ignore[attr-defined]
        said = response.headers.get("X-Error-Message") or response.reason_phrase
        return f"the Hub answers {status}, {said.strip().rstrip('.')}, for {response.url}"
    if not TRANSPORT_ERRORS.isdisjoint(class_names(error)):
        return f"the connection to the Hub broke: {shorten(str(error)) or type(error).__name__}"
    if str(error).startswith("Consistency check failed"):
        return f"{first_sentences(str(error), 1)}; {AGAIN}"
    return None


def describe_hub_fault(error: BaseException) -> str | None:
    """What the Hub answered, or how the connection failed, if that caused an error that libraries report as a missing
    file. None for other errors, and for those that the Hub names, such as a missing repository.

    Returns:
        One line; [`explain`] adds what to do.
    """
    return next((answer for answer in map(describe_answer, list_causes(error)) if answer is not None), None)


def name_file(error: BaseException, text: str) -> str:
    """Prefix a library's message with the file that it does not name, and say if the file is a git-lfs pointer."""
    named = describe_answer(error) is None and (not isinstance(error, OSError) or error.errno == errno.ENOSPC)
    path = find_file(error) if named and type(error) not in (ValueError, ModuleNotFoundError) else None
    if path is None:
        return text
    try:
        with open(path, "rb") as file:
            is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        is_pointer = False
    if is_pointer:
        return f"{path} is a git-lfs pointer and not the file itself: run `git lfs pull` in its folder, or download it"
    return text if os.path.basename(path) in text else f"{path}: {text}"


def find_file(error: BaseException) -> str | None:
    """Find the file that a library was processing: the innermost one in its own stack frames, or in the call to it."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    for frame in reversed(frames):
        for value in reversed(list(frame.f_locals.values())):
            path = path_of(value)
            if path is not None:
                return path
    return None


def path_of(value: Any) -> str | None:
    """The path of the data file that a variable names or has open, or None."""
    if not isinstance(value, (str, os.PathLike)):
        if not hasattr(value, "fileno"):
            return None
        value = getattr(value, "name", None)
    if not isinstance(value, (str, os.PathLike)) or not 0 < len(str(value)) < 4096 or "\n" in str(value):
        return None
    path = str(value)
    try:
        is_file = os.path.exists(path) and not os.path.isdir(path)
        return path if is_file and not path.endswith((".py", ".pyc", ".so")) else None
    except ValueError:  # a null byte
        return None


# ---------------------------------------------------------------------- the boundary


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Report user errors as one line on stderr with exit code 2, and Ctrl-C as one line with exit code 130; bugs keep
    their traceback.

    Raises:
        SystemExit: with the line as its message.
    """
    try:
        yield
    except BrokenPipeError:  # `hf-cots ... | head`, which is no error
        raise
    except KeyboardInterrupt as error:
        leave("; ".join(["stopped by Ctrl-C", *(map(str, error.args) if error.args else ["nothing was saved"])]), 130)
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        leave(f"error: {line}", 2)


def leave(line: str, code: int) -> None:
    """Print a line on stderr and exit."""
    stop = SystemExit(line)
    stop.code = code
    print_note(line, "red")
    raise stop from None


@contextmanager
def naming(subject: object) -> Iterator[None]:
    """Prefix errors raised in this context with the name of a file or flag, unless they already name it.

    Raises:
        ValueError: in one line, for each user error.
    """
    try:
        yield
    except FileNotFoundError as error:
        if error.filename is None:
            raise
        raise FileNotFoundError(f"no such file: {error.filename}") from error
    except RecursionError as error:
        raise ValueError(f"{subject}: nested too deeply") from error
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        raise ValueError(line if str(subject) in line else f"{subject}: {line}") from error


@contextmanager
def note_on_interrupt(describe_saved: Callable[[], str]) -> Iterator[None]:
    """On Ctrl-C in this context, report what is saved, as returned by `describe_saved`."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(*error.args, describe_saved()) from None


def check_output_folder(folder: Path | str) -> None:
    """Check, before any work is done, that a folder exists or can be created and is writable. It is not created yet,
    so that a later error leaves no empty folder behind.

    Raises:
        OSError: naming the folder.
    """
    existing = next(path for path in (Path(folder), *Path(folder).absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = error.strerror
        if existing.is_file():
            reason = "it is a file" if existing == Path(folder) else f"{existing} is a file"
        raise OSError(f"cannot write to the folder {folder}: {reason}") from error


def check_output_file(path: Path | str | None) -> None:
    """Create a file's folder and check that the file can be written, before any work is done. An existing file is kept
    until then.

    Raises:
        OSError: naming the file.
    """
    if path is None:
        return
    path = Path(path)
    if path.is_dir():
        raise OSError(f"cannot write {path}: it is a folder")
    check_output_folder(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not os.access(path, os.W_OK):
        raise OSError(f"cannot write {path}: {os.strerror(errno.EACCES)}")
