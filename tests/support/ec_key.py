"""A private key as `openssl ecparam -name prime256v1 -genkey -noout` makes it."""

from __future__ import annotations

from pathlib import Path


def write_key(path: Path) -> Path:
    """Another one each time; needs the package cryptography."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    path.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    return path
