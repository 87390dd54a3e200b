"""PYTHONPATH of a process that runs the code of a checkout."""

from pathlib import Path

from config.settings import PROJECT_ROOT


def code_path(checkout: Path) -> str:
    """Return where the service, the tests and the client of a checkout are."""
    return f"{checkout}:{checkout / 'clients' / 'python'}"


#: The path of this checkout.
CODE_PATH = code_path(PROJECT_ROOT)
