"""The HTTP front end: takes requests, hands them to the pool, answers. Never touches MongoDB.

The service is an application: in its processes, `config` and `workers` are its own packages, even
if the current directory, PYTHONPATH or the environment has others with these names. In a checkout,
they are beside this package. A wheel has them in its folder `bundled`, so that an installation
takes no names that a project may have for its own packages.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

__version__ = "0.1.0"

_BUNDLED = Path(__file__).resolve().with_name("bundled")
_HOME = _BUNDLED if _BUNDLED.is_dir() else _BUNDLED.parent.parent
_OWN = ("config", "workers")


class _OwnPackages:
    """Finds the service's packages before any others with their names. Python's import calls it."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where one of the service's packages is, or None for all other modules."""
        return PathFinder.find_spec(name, [str(_HOME)]) if name in _OWN else None


def _forget_others() -> None:
    """Drop modules of others with these names that were imported earlier, as a `.pth` file may."""
    for name, module in list(sys.modules.items()):
        package = name.partition(".")[0]
        if package in _OWN:
            file = getattr(module, "__file__", None)
            # An environment of others may be within the checkout.
            if file is None or not Path(file).resolve().is_relative_to(_HOME / package):
                del sys.modules[name]


sys.meta_path.insert(0, _OwnPackages)
_forget_others()
