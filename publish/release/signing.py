"""Signs a release with OpenSSF model signing, and verifies the signature.

    model.pub    public key to check the release for changes
    model.sig    sigstore bundle over all files except itself and SHA256SUMS

The public key in a release proves integrity only. Trust in the signer needs a public key from
another source.
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
from camelpress.core.hub.repo_id import DOWNLOAD_CACHE
from camelpress.core.output.unfinished_output import MARK_FILE
from camelpress.core.runtime import optional_packages

SIGNATURE_FILE, PUBLIC_KEY_FILE = "model.sig", "model.pub"
UNSIGNED_FILES = (SIGNATURE_FILE, CHECKSUM_FILE)
MAX_KEY_BYTES = 2**16  # bytes of a private key file


def require_model_signing() -> None:
    """Checks that the package model-signing is installed.

    Raises:
        ToolProblem: the package is not installed.
    """
    optional_packages.require_package(
        "model_signing", need="signatures need the package model-signing", extra="sign"
    )


def write_public_key(folder: Path, private_key: Path) -> None:
    """Writes the public key of a private key into a release.

    Raises:
        ToolProblem: as `require_model_signing`.
        RecipeProblem: the file is not an unencrypted private key on an elliptic curve.
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
            f"{private_key} is not a key on an elliptic curve",
            next_step="make one with `openssl ecparam -name prime256v1 -genkey -noout`",
        )
    text = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (folder / PUBLIC_KEY_FILE).write_bytes(text)


def sign_release(folder: Path, private_key: Path) -> None:
    """Writes the signature of a release that lacks only the signature and `SHA256SUMS`.

    Raises:
        RecipeProblem: model-signing rejects the key.
    """
    from model_signing import hashing, signing

    # The mark of an unfinished output is removed before the release gets its name.
    unsigned_paths = [folder / name for name in (*UNSIGNED_FILES, MARK_FILE)]
    hashing_config = hashing.Config().set_ignored_paths(paths=unsigned_paths, ignore_git_paths=True)
    try:
        signer = signing.Config().use_elliptic_key_signer(private_key=private_key)
        signer.set_hashing_config(hashing_config).sign(folder, folder / SIGNATURE_FILE)
    except ValueError as error:
        raise RecipeProblem(
            f"{private_key} cannot sign ({error})", next_step="use a key on the curve prime256v1"
        ) from error


def signature_problems(folder: Path, public_key: Path | None, *, links: bool) -> list[str]:
    """Returns problems of the signature of a release; an empty list for an unsigned release.

    Args:
        folder: release folder.
        public_key: public key of the expected signer; None for the key in the release.
        links: True if the files are links, as in the cache of the hub client.
    Raises:
        ToolProblem: as `require_model_signing`, with an explicit public key.
    """
    if not (folder / SIGNATURE_FILE).is_file():
        return [f"there is no signature, {SIGNATURE_FILE}"] if public_key else []
    if public_key is not None:
        require_model_signing()
    elif not optional_packages.is_installed("model_signing"):
        return []
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from model_signing import hashing, verifying

    unsigned_paths = [folder / name for name in (*UNSIGNED_FILES, DOWNLOAD_CACHE)]
    hashing_config = hashing.Config().use_file_serialization(allow_symlinks=links)
    hashing_config.set_ignored_paths(paths=unsigned_paths, ignore_git_paths=True)
    key = public_key or folder / PUBLIC_KEY_FILE
    try:
        checker = verifying.Config().use_elliptic_key_verifier(public_key=key)
        with redirect_stdout(sys.stderr):  # the verifier prints warnings to stdout
            checker.set_hashing_config(hashing_config).verify(folder, folder / SIGNATURE_FILE)
    except InvalidSignature:
        return [f"{SIGNATURE_FILE} was not made with the key {key.name}"]
    except (OSError, ValueError, TypeError, LookupError, UnsupportedAlgorithm) as error:
        message = " ".join(str(error).split())
        changed_names = ", ".join(re.findall(r"Hash mismatch for \\?'(.+?)\\?': Expected", message))
        reason = f"{changed_names} changed since" if changed_names else message
        return [
            f"{SIGNATURE_FILE} does not vouch for these files with the key {key.name} ({reason})"
        ]
    return []
