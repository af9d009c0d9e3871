"""One TLS context for all connections of the process."""

from __future__ import annotations

import ssl
from functools import cache

import httpx2


@cache
def tls_context() -> ssl.SSLContext:
    """The system's trusted certificates, or those that SSL_CERT_FILE and SSL_CERT_DIR name.

    Reading them takes 20 to 150 ms during which the event loop stands still, and the SDKs do it up to three times per client.
    """
    return httpx2.create_ssl_context()
