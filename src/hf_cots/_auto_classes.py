"""Makes transformers' Auto classes know our models after `import hf_cots`, without importing transformers.

`hf_cots.models` registers the models, but needs transformers and torch, which take seconds to import. So the import
waits: a finder at the front of `sys.meta_path` counts how deep transformers' own imports are nested, and imports
`hf_cots.models` when the outermost one has ended and the Auto classes are there. Not earlier: transformers' core
imports `models.auto.configuration_auto` half-way through `modeling_utils`, when no model can be defined yet.
"""

import importlib
import sys
import threading
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


AUTO_CLASSES = "transformers.models.auto.configuration_auto"  # which the module of every Auto class imports


class AfterTransformers:
    """A finder that finds what `PathFinder` finds, and runs [`register`] after transformers' outermost import."""

    def __init__(self) -> None:
        self.depth = threading.local()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] != "transformers":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            loader, execute = spec.loader, spec.loader.exec_module

            def count_and_execute(module: ModuleType) -> None:
                self.depth.value = getattr(self.depth, "value", 0) + 1
                try:
                    execute(module)
                finally:
                    self.depth.value -= 1
                if self.depth.value == 0 and AUTO_CLASSES in sys.modules:
                    self.register()

            # On this module's own loader object, which stays what tools that ask for it expect.
            loader.exec_module = count_and_execute  # type: ignore[method-assign]
        return spec

    def register(self) -> None:
        """Import `hf_cots.models`; the finder has done its work."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)  # type: ignore[arg-type]
            importlib.import_module("hf_cots.models")


def register_with_transformers() -> None:
    """Register our models now if the Auto classes are imported, else as soon as they are."""
    finder = AfterTransformers()
    sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
    if AUTO_CLASSES in sys.modules:
        finder.register()
