"""The routes that programs use: JSON in and out, errors as `application/problem+json` (RFC 9457)."""
