"""A signature over a release by OpenSSF model signing: who holds the key vouches for every file.

    model.pub    the public key, so that anybody can check that nothing changed since
    model.sig    a sigstore bundle over all files but itself and SHA256SUMS, which lists it

Whether the key is somebody's whom one trusts, only a public key from elsewhere can tell.
Source: sigstore/model-transparency 059d6e3b, src/model_signing: signing.py, verifying.py.
"""

from __future__ import annotations

import re
import sys
from contextlib import redirect_stdout
from pathlib import Path

from camelpress.core.errors import RecipeProblem
from camelpress.core.files.file_hashes import CHECKSUM_FILE
from camelpress.core.files.regular_files import read_regular
from camelpress.core.hub.model_location import DOWNLOAD_CACHE
from camelpress.core.output.unfinished_output import MARK_FILE
from camelpress.core.runtime import optional_packages

SIGNATURE_FILE, PUBLIC_KEY_FILE = "model.sig", "model.pub"
UNSIGNED_FILES = (SIGNATURE_FILE, CHECKSUM_FILE)
MAX_KEY_BYTES = 2**16  # bytes of a file with a private key


def require_model_signing() -> None:
    """See that the package is there.

    Raises:
        EngineProblem: it is not.
    """
    optional_packages.require_package(
        "model_signing", need="signatures need the package model-signing", extra="sign"
    )


def write_public_key(folder: Path, private_key: Path) -> None:
    """Put the public half of a key into a release.

    Raises:
        EngineProblem: as `require_signing`.
        RecipeProblem: it is no unencrypted private key on one of the curves of NIST.
    """
    require_model_signing()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_private_key(
            read_regular(private_key, MAX_KEY_BYTES), password=None
        )
    except (OSError, ValueError, TypeError) as error:  # TypeError: a key with a password
        raise RecipeProblem(
            f"{private_key} cannot be read as a private key in PEM without a password",
            next_step="make one with `openssl ecparam -name prime256v1 -genkey -noout`",
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise RecipeProblem(
            f"{private_key} is no key on an elliptic curve",
            next_step="make one with `openssl ecparam -name prime256v1 -genkey -noout`",
        )
    text = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (folder / PUBLIC_KEY_FILE).write_bytes(text)


def sign_release(folder: Path, private_key: Path) -> None:
    """Write the signature of a release that lacks nothing but that and `SHA256SUMS`.

    Raises:
        RecipeProblem: the package does not take the key.
    """
    from model_signing import hashing, signing

    # The mark of an unfinished output goes before the release gets its name.
    unsigned = [folder / name for name in (*UNSIGNED_FILES, MARK_FILE)]
    hashed = hashing.Config().set_ignored_paths(paths=unsigned, ignore_git_paths=True)
    try:
        signer = signing.Config().use_elliptic_key_signer(private_key=private_key)
        signer.set_hashing_config(hashed).sign(folder, folder / SIGNATURE_FILE)
    except ValueError as error:
        raise RecipeProblem(
            f"{private_key} cannot sign ({error})", next_step="use a key on the curve prime256v1"
        ) from error


def signature_problems(folder: Path, public_key: Path | None, *, links: bool) -> list[str]:
    """What is wrong with the signature of a release; nothing where it is not signed.

    Args:
        folder: of the release.
        public_key: of whom one trusts; None: the one in the release.
        links: whether its files are links, as in the cache of the hub's client.
    Raises:
        EngineProblem: as `require_signing`, where a public key is given.
    """
    if not (folder / SIGNATURE_FILE).is_file():
        return [f"there is no signature, {SIGNATURE_FILE}"] if public_key else []
    if public_key is not None:
        require_model_signing()
    elif not optional_packages.is_installed("model_signing"):
        return []
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from model_signing import hashing, verifying

    unsigned = [folder / name for name in (*UNSIGNED_FILES, DOWNLOAD_CACHE)]
    hashed = hashing.Config().use_file_serialization(allow_symlinks=links)
    hashed.set_ignored_paths(paths=unsigned, ignore_git_paths=True)
    key = public_key or folder / PUBLIC_KEY_FILE
    try:
        checker = verifying.Config().use_elliptic_key_verifier(public_key=key)
        with redirect_stdout(sys.stderr):  # it prints warnings there
            checker.set_hashing_config(hashed).verify(folder, folder / SIGNATURE_FILE)
    except InvalidSignature:
        return [f"{SIGNATURE_FILE} was not made with the key {key.name}"]
    except (OSError, ValueError, TypeError, LookupError, UnsupportedAlgorithm) as error:
        said = " ".join(str(error).split())
        changed = ", ".join(re.findall(r"Hash mismatch for \\?'(.+?)\\?': Expected", said))
        reason = f"{changed} changed since" if changed else said
        return [
            f"{SIGNATURE_FILE} does not vouch for these files with the key {key.name} ({reason})"
        ]
    return []
