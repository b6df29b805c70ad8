"""Uploads a release to an S3 bucket, with SHA256SUMS as the last object.

A prefix without SHA256SUMS is not a release. A bucket has no renames, so existing objects are never
replaced, and another release needs another prefix. Each object is read back and hashed before
SHA256SUMS is written. s3fs reads the usual AWS settings: AWS_ACCESS_KEY_ID, AWS_PROFILE,
AWS_ENDPOINT_URL.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camelpress.core.errors import OutputExists, OutputProblem, RecipeProblem
from camelpress.core.files.file_hashes import CHECKSUM_FILE
from camelpress.core.progress import track
from camelpress.core.runtime import optional_packages
from camelpress.publish.release.checksums import ReleaseFiles
from camelpress.publish.release.signing import SIGNATURE_FILE

S3_SCHEME = "s3://"
S3_URL = re.compile(
    r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(?P<prefix>\w[\w.-]*(/\w[\w.-]*)*)/?",
    re.ASCII,
)
CHUNK_BYTES = 1 << 22  # bytes per read


@dataclass(frozen=True)
class S3Destination:
    """Prefix of an S3 bucket.

    Args:
        path: bucket/prefix.
    """

    path: str

    @classmethod
    def parse(cls, address: str) -> S3Destination:
        """Parses `s3://bucket/prefix`.

        Raises:
            RecipeProblem: the address has another form.
            ToolProblem: the package s3fs is not installed.
        """
        match = S3_URL.fullmatch(address)
        if match is None:
            raise RecipeProblem(
                f"{address!r} is not an address in a bucket",
                next_step=f"write it as {S3_SCHEME}bucket/prefix",
            )
        optional_packages.require_package("s3fs", need="buckets need the package s3fs", extra="s3")
        return cls(f"{match['bucket']}/{match['prefix']}")

    def __str__(self) -> str:
        return f"{S3_SCHEME}{self.path}"

    @property
    def title(self) -> str:
        """Default title of the release."""
        return self.path.rpartition("/")[2]

    def require_ready(self) -> tuple[str, ...]:
        """Checks that the bucket can be listed.

        Raises:
            OutputProblem: listing fails.
        """
        with _s3_errors(str(self)):
            self._object_names(_filesystem())
        return ()

    def upload(self, folder: Path) -> dict[str, Any]:
        """Uploads the missing files of a finished release, and returns its address and hash.

        Raises:
            OutputExists: the prefix holds another release or other files.
            OutputProblem: the bucket fails, or stores other bytes than were sent.
        """
        release = ReleaseFiles.of(folder)
        with _s3_errors(str(self)):
            system = _filesystem()
            missing_names = self._names_to_send(system, release)
            for name in track(missing_names, "upload"):
                system.put_file(str(release.files[name]), f"{self.path}/{name}")
                if self._sha256(system, name) != release.sha256[name]:
                    raise OutputProblem(
                        f"{self} stored other bytes of {name} than were sent",
                        next_step="remove that object, then run the same command again; without "
                        f"{CHECKSUM_FILE} the prefix is not a release",
                    )
        return {
            "to": str(self),
            "commit": release.sha256[CHECKSUM_FILE],
            "files": len(release.files),
        }

    def _names_to_send(self, system: Any, release: ReleaseFiles) -> list[str]:
        """Lists the names of files to upload, `SHA256SUMS` last.

        Raises:
            OutputExists: the prefix holds another release or other files.
        """
        remote_names = self._object_names(system)
        common = sorted(remote_names & release.files.keys())
        different_names = {
            name for name in common if self._sha256(system, name) != release.sha256[name]
        }
        if CHECKSUM_FILE in remote_names and release.matches_remote(
            remote_names ^ release.files.keys() | different_names, remote_names
        ):
            return []
        # Every run makes a new signature, so an unfinished upload may hold an older one.
        replaceable = {SIGNATURE_FILE} if CHECKSUM_FILE not in remote_names else set()
        if foreign := (remote_names - release.files.keys()) | (different_names - replaceable):
            raise OutputExists(
                f"{self} holds other objects, for example {min(foreign)}",
                next_step="name another prefix; objects in a bucket are never replaced",
            )
        return [
            name for name in release.files if name not in remote_names or name in different_names
        ]

    def _object_names(self, system: Any) -> set[str]:
        system.invalidate_cache()
        bucket = self.path.partition("/")[0]
        system.ls(bucket)  # raises FileNotFoundError for a missing bucket
        paths = system.find(self.path)
        return {name.removeprefix(f"{self.path}/") for name in paths}

    def _sha256(self, system: Any, name: str) -> str:
        """Computes the SHA-256 of a remote object."""
        digest = hashlib.sha256()
        with system.open(f"{self.path}/{name}", "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()


def _filesystem() -> Any:
    import s3fs

    return s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)


@contextmanager
def _s3_errors(address: str) -> Iterator[None]:
    """Turns every error of the S3 client into a one-line problem without secrets.

    Raises:
        OutputProblem: the client raised an error.
    """
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except NoCredentialsError as error:
        raise OutputProblem(
            f"{address} needs a login",
            next_step="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        ) from error
    except PermissionError as error:
        raise OutputProblem(
            f"this login may not read and write {address}",
            next_step="use a login with the right to list, get and put objects there",
        ) from error
    except FileNotFoundError as error:
        raise OutputProblem(
            f"the bucket of {address} does not exist", next_step="create it, or correct its name"
        ) from error
    except (OSError, BotoCoreError, ClientError) as error:
        raise OutputProblem(
            f"{address} failed, or cannot be reached ({type(error).__name__})",
            next_step="run the same command again: it continues with the missing files",
        ) from error
