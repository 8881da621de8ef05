"""How to install what an extra brings, from where manytune itself was installed."""

from __future__ import annotations

import json
from pathlib import Path


def install_command(extra: str) -> str:
    """The command that installs an extra, such as `pip install -e '/home/me/manytune[serve]'` for a checkout.

    It names the checkout or wheel that manytune came from, as nothing need be published under manytune's name; where
    that isn't known or is gone, the name, which pip takes for what is installed.

    Args:
        extra: Its name, such as `serve`.
    """
    origin = _origin()
    if origin is None:
        return f"pip install 'manytune[{extra}]'"
    path, is_editable = origin
    return f"pip install {'-e ' if is_editable else ''}'{path}[{extra}]'"


def _origin() -> tuple[Path, bool] | None:
    """The checkout or wheel that manytune was installed from, by its record (PEP 610), and whether as editable."""
    # Here, as they import HTTP and mail, for which no command line waits.
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import urlparse
    from urllib.request import url2pathname

    try:
        record = json.loads(distribution("manytune").read_text("direct_url.json") or "{}")
        address = urlparse(str(record.get("url", "")))
        path = Path(url2pathname(address.path))
        is_editable = bool(record.get("dir_info", {}).get("editable"))
    except (PackageNotFoundError, OSError, ValueError, AttributeError):
        return None
    return (path, is_editable) if address.scheme == "file" and path.exists() else None
