"""Keeps requests from consuming or writing that no person or program meant to make.

A browser's prefetch, and a request that some other site's page made a browser send, look like
any GET. They say what they are, and are refused before anything is touched.
"""

from collections.abc import Mapping

from chat_service.problems import refused_origin

_PREFETCH_HEADERS = ("Sec-Purpose", "Purpose", "X-Moz", "X-Purpose")


def refuse_the_unasked(headers: Mapping[str, str]) -> None:
    """Raise a 403 problem for a prefetch or a cross-site browser request."""
    if headers.get("Sec-Fetch-Site", "").strip().lower() == "cross-site":
        raise refused_origin("a cross-site browser request reads and writes nothing here")
    for name in _PREFETCH_HEADERS:
        announced = headers.get(name, "").lower()
        if "prefetch" in announced or "preview" in announced:
            raise refused_origin("a prefetch reads nothing here; ask again when it is wanted")
