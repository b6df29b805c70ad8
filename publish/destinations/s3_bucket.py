"""A release in an S3 bucket: every object first, and SHA256SUMS, without which it is none, last.

A bucket has no renames, so what is there is never replaced: another release needs another prefix.
Each object is read back and hashed before SHA256SUMS is written. s3fs heeds the usual settings of
AWS: AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL.
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
CHUNK_BYTES = 1 << 22  # bytes


@dataclass(frozen=True)
class S3Destination:
    """A prefix of a bucket.

    Args:
        path: bucket/prefix.
    """

    path: str

    @classmethod
    def parse(cls, to: str) -> S3Destination:
        """From `s3://bucket/prefix`.

        Raises:
            RecipeProblem: it is not that.
            EngineProblem: s3fs is not there.
        """
        found = S3_URL.fullmatch(to)
        if found is None:
            raise RecipeProblem(
                f"{to!r} is no place in a bucket", next_step=f"write it as {S3_SCHEME}bucket/prefix"
            )
        optional_packages.require_package("s3fs", need="buckets need the package s3fs", extra="s3")
        return cls(f"{found['bucket']}/{found['prefix']}")

    def __str__(self) -> str:
        return f"{S3_SCHEME}{self.path}"

    @property
    def title(self) -> str:
        """A name for the release where nobody gave one."""
        return self.path.rpartition("/")[2]

    def require_ready(self) -> tuple[str, ...]:
        """See that the bucket can be listed.

        Raises:
            OutputProblem: it cannot.
        """
        with _s3_errors(str(self)):
            self._object_names(_filesystem())
        return ()

    def upload(self, folder: Path) -> dict[str, Any]:
        """Bring a finished release there, going on with what is there already.

        Raises:
            OutputExists: another release is there, or other files.
            OutputProblem: the bucket fails, or keeps other bytes than were sent.
        """
        release = ReleaseFiles.of(folder)
        with _s3_errors(str(self)):
            system = _filesystem()
            missing = self._names_to_send(system, release)
            for name in track(missing, "upload"):
                system.put_file(str(release.files[name]), f"{self.path}/{name}")
                if self._sha256(system, name) != release.sha256[name]:
                    raise OutputProblem(
                        f"{self} did not keep {name} as it was sealed",
                        next_step="remove it there, then run the same command again; without "
                        f"{CHECKSUM_FILE} it is no release",
                    )
        return {
            "to": str(self),
            "commit": release.sha256[CHECKSUM_FILE],
            "files": len(release.files),
        }

    def _names_to_send(self, system: Any, release: ReleaseFiles) -> list[str]:
        """What has to be sent, `SHA256SUMS` last.

        Raises:
            OutputExists: something else is there.
        """
        there = self._object_names(system)
        both = sorted(there & release.files.keys())
        differing = {name for name in both if self._sha256(system, name) != release.sha256[name]}
        if CHECKSUM_FILE in there and release.matches_remote(
            there ^ release.files.keys() | differing, there
        ):
            return []
        begun = (
            {SIGNATURE_FILE} if CHECKSUM_FILE not in there else set()
        )  # every run makes another one
        if strange := (there - release.files.keys()) | (differing - begun):
            raise OutputExists(
                f"{self} holds something else, {min(strange)} for one",
                next_step="name another prefix; what is in a bucket is never replaced",
            )
        return [name for name in release.files if name not in there or name in differing]

    def _object_names(self, system: Any) -> set[str]:
        system.invalidate_cache()
        bucket = self.path.partition("/")[0]
        system.ls(bucket)  # a bucket that is not there is told so
        found = system.find(self.path)
        return {name.removeprefix(f"{self.path}/") for name in found}

    def _sha256(self, system: Any, name: str) -> str:
        """The hash of the bytes that are there."""
        digest = hashlib.sha256()
        with system.open(f"{self.path}/{name}", "rb") as file:
            while piece := file.read(CHUNK_BYTES):
                digest.update(piece)
        return digest.hexdigest()


def _filesystem() -> Any:
    import s3fs

    return s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)


@contextmanager
def _s3_errors(place: str) -> Iterator[None]:
    """Turn every error of the client into one line; its words can hold keys.

    Raises:
        OutputProblem: in place of what the client raises.
    """
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except NoCredentialsError as error:
        raise OutputProblem(
            f"{place} needs a login",
            next_step="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        ) from error
    except PermissionError as error:
        raise OutputProblem(
            f"this login may not read and write {place}",
            next_step="take one with the right to list, get and put objects there",
        ) from error
    except FileNotFoundError as error:
        raise OutputProblem(
            f"the bucket of {place} does not exist", next_step="make it, or correct its name"
        ) from error
    except (OSError, BotoCoreError, ClientError) as error:
        raise OutputProblem(
            f"{place} failed, or cannot be reached ({type(error).__name__})",
            next_step="run the same command again: it goes on with what is missing",
        ) from error
