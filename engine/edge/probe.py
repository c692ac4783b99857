"""Ask whether a server answers: ``python -m engine.edge.probe URL [CA-FILE]``, for health checks.

With ``tcp://HOST:PORT`` it is enough that somebody listens.

Nothing but the standard library, for it runs every few seconds in every container.
"""

from __future__ import annotations

import socket
import ssl
import sys
import urllib.request
from urllib.parse import urlsplit

TIMEOUT_S = 5.0


def answers(url: str, authority: str | None = None) -> bool:
    """Whether a GET of `url` is answered with 200, or a connection taken.

    Args:
        url: ``http``, ``https`` or ``tcp``.
        authority: File with the certificate to trust, the only one.
    """
    context = ssl.create_default_context(cafile=authority) if authority else None
    try:
        if (parts := urlsplit(url)).scheme == "tcp":
            socket.create_connection((parts.hostname or "", parts.port or 0), TIMEOUT_S).close()
            return True
        with urllib.request.urlopen(url, timeout=TIMEOUT_S, context=context) as answer:
            return bool(answer.status == 200)
    except OSError:  # what urllib raises, TLS included, derives from it
        return False


if __name__ == "__main__":
    sys.exit(0 if answers(*sys.argv[1:3]) else 1)
