"""Uploads a release to the Hugging Face hub: staged on a branch, verified, then named.

    staging-...   upload all files to a staging branch in one commit
    verify        compare the server's hash of each file with the release
    REVISION      create the branch at that commit, or commit the same files to it
    main          copy the first release of a repository to its page, too
    staging-...   remove the staging branch; make the repository public last

Each step checks the state of the hub first, so the same command continues an interrupted run. Each
change is read back, before the repository becomes public and before the report confirms it: a hub
may answer 200 without applying the change. The transfer protocol (LFS or Xet) does not matter.
Source: huggingface_hub v2.4.0, hf_api.py: create_commit (uploads large files first),
list_repo_tree, create_branch.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from camelpress import __version__
from camelpress.core.errors import OutputExists, OutputProblem, RecipeProblem
from camelpress.core.files.file_hashes import CHECKSUM_FILE, git_sha1
from camelpress.core.hub.hub_download import prepare_client
from camelpress.core.hub.repo_id import GITATTRIBUTES_FILE, HUB_PREFIX, REPO_ID_PATTERN
from camelpress.core.progress import note
from camelpress.publish.destinations.hub_errors import hub_errors
from camelpress.publish.release.checksums import ReleaseFiles
from camelpress.reporting.number_format import format_megabytes

MAIN = "main"
STAGING = "staging-"
STAGING_DIGEST_DIGITS = 12  # hex digits of the release hash in a staging branch name
MANUAL_APPROVAL: Literal["manual"] = "manual"  # gate with manual approval of each reader
READ_BACK_PAUSES = (1.0, 3.0)  # seconds before each retry of a read-back
HubState = TypeVar("HubState")


@dataclass(frozen=True)
class HubDestination:
    """Branch of a model repository on the hub, with the visibility of the release.

    A repository shows all its branches, with other releases among them. Therefore an upload may
    close a gate, but never opens one.

    Args:
        repository: org/name.
        revision: branch of the release.
        public: make the repository public, else private.
        gated: require manual approval of each reader.
        force: replace an earlier release on the branch.
    """

    repository: str
    revision: str
    public: bool
    gated: bool
    force: bool

    @classmethod
    def parse(
        cls, address: str, variant: str, *, public: bool, gated: bool, force: bool
    ) -> HubDestination:
        """Parses `hf:org/name` or `hf:org/name@branch`; the default branch is the variant.

        Raises:
            RecipeProblem: the address has another form.
        """
        match = REPO_ID_PATTERN.fullmatch(address)
        revision = match["revision"] or variant if match else ""
        if match is None or revision.startswith((STAGING, "refs/")):
            raise RecipeProblem(
                f"{address!r} is not a repository on the hub",
                next_step=f"write it as {HUB_PREFIX}org/name, or as {HUB_PREFIX}org/name@branch",
            )
        return cls(match["repository"], revision, public=public, gated=gated, force=force)

    def __str__(self) -> str:
        return f"{HUB_PREFIX}{self.repository}@{self.revision}"

    @property
    def title(self) -> str:
        """Default title of the release."""
        return self.repository.partition("/")[2]

    def require_ready(self) -> tuple[str, ...]:
        """Checks access to the repository without writing.

        Returns:
            Branches with other variants of the release.
        Raises:
            OutputProblem: there is no login, the repository is public, or the branch holds files
                other than a release.
        """
        with hub_errors(self.repository):
            api = _api()
            if self._info(api) is None:
                return ()
            heads = self._heads(api)
            if self.revision in heads:
                self._require_release_files(self._tree(api, heads[self.revision]))
            others = sorted(heads.keys() - {MAIN, self.revision})
            return tuple(
                name
                for name in others
                if not name.startswith(STAGING) and CHECKSUM_FILE in self._tree(api, heads[name])
            )

    def upload(self, folder: Path) -> dict[str, Any]:
        """Uploads a finished release, and returns commit, visibility and file count.

        Args:
            folder: release folder that passes `verify`.
        Raises:
            OutputExists: the branch holds another release, and `force` is False.
            OutputProblem: as `require_ready`; or the login lacks write access, or the hub or the
                connection fails. The branch keeps its earlier content.
        """
        release = ReleaseFiles.of(folder)
        with hub_errors(self.repository):
            api = _api()
            info = self._info(api) or self._create(api)
            if self.gated and info.gated != MANUAL_APPROVAL:
                api.update_repo_settings(self.repository, gated=MANUAL_APPROVAL)
                self._require_gate(api)
            heads = self._heads(api)
            commit = self._commit_release(api, heads, release)
            if self.revision != MAIN and not self._tree(api, heads[MAIN]):
                self._commit(api, MAIN, heads[MAIN], release)
            self._remove_staging(api)
            info = self._require_gate(api)
            if self.public and info.private:
                info = self._make_public(api)
        return {
            "to": str(self),
            "commit": commit,
            "private": bool(info.private),
            "gated": bool(info.gated),
            "files": len(release.files),
        }

    def _require_gate(self, api: HfApi) -> ModelInfo:
        """Reads back the gate of the repository, since an answer of 200 is no proof.

        Raises:
            OutputProblem: the hub does not show the required gate.
        """
        info = self._read_back(
            lambda: self._require_info(api),
            lambda info: not self.gated or info.gated == MANUAL_APPROVAL,
        )
        if info is None:
            raise OutputProblem(
                f"the hub confirmed the gate of {self.repository}, but shows it without a gate",
                next_step="turn on gated access with manual approval in the settings of its page, "
                "then run the same command again",
            )
        return info

    def _make_public(self, api: HfApi) -> ModelInfo:
        """Makes the repository public, and reads back its visibility and gate.

        Raises:
            OutputProblem: the repository is still private, or became private again without a gate.
        """
        note(f"{HUB_PREFIX}{self.repository}: becomes public, with all its branches")
        api.update_repo_settings(self.repository, private=False)
        info = self._read_back(lambda: self._require_info(api), lambda info: info.private is False)
        if info is None:
            raise OutputProblem(
                f"the hub confirmed {self.repository} as public, but shows it as private",
                next_step="make it public in the settings of its page; the release is complete",
            )
        if self.gated and info.gated != MANUAL_APPROVAL:
            api.update_repo_settings(self.repository, private=True)
            raise OutputProblem(
                f"{self.repository} lost its gate when it became public, and was set to private "
                "again",
                next_step="check on its page that it is private, and turn on gated access there",
            )
        return info

    def _remove_staging(self, api: HfApi) -> None:
        """Removes the staging branches of this and earlier uploads, and checks their absence.

        Raises:
            OutputProblem: the hub still shows a staging branch.
        """
        pattern = re.compile(
            rf"{re.escape(self._staging_prefix)}[0-9a-f]{{{STAGING_DIGEST_DIGITS}}}"
        )
        staging_branches = [branch for branch in self._heads(api) if pattern.fullmatch(branch)]
        for branch in staging_branches:
            api.delete_branch(self.repository, branch=branch)
        if not staging_branches:
            return
        heads = self._read_back(
            lambda: self._heads(api), lambda heads: not heads.keys() & {*staging_branches}
        )
        if heads is None:
            raise OutputProblem(
                f"the hub confirmed the removal of {staging_branches[0]} from {self.repository}, "
                "but still shows it",
                next_step="remove that branch on its page, then run the same command again",
            )

    def _require_head(self, api: HfApi, branch: str, commit: str) -> None:
        """Reads back the commit of a branch.

        Raises:
            OutputProblem: the branch points to another commit.
        """
        heads = self._read_back(lambda: self._heads(api), lambda heads: heads.get(branch) == commit)
        if heads is None:
            raise OutputProblem(
                f"the hub confirmed the move of {branch} of {self.repository} to "
                f"{commit[:STAGING_DIGEST_DIGITS]}, but shows it at another commit",
                next_step="check for other uploads to it, then run the same command again",
            )

    def _read_back(
        self, read: Callable[[], HubState], holds: Callable[[HubState], bool]
    ) -> HubState | None:
        """Reads the state of the hub until the condition holds; None after the last retry."""
        for seconds in (0.0, *READ_BACK_PAUSES):
            time.sleep(seconds)
            if holds(state := read()):
                return state
        return None

    def _require_info(self, api: HfApi) -> ModelInfo:
        """Returns the info of an existing repository.

        Raises:
            OutputProblem: the hub no longer shows the repository.
        """
        info = self._info(api)
        if info is None:
            raise OutputProblem(
                f"the hub no longer shows {self.repository}",
                next_step="check on its page whether somebody removed it, then try again",
            )
        return info

    def _info(self, api: HfApi) -> ModelInfo | None:
        """Returns the info of the repository; None if it does not exist.

        Raises:
            OutputProblem: the repository is public, but the settings say private.
        """
        try:
            info = api.model_info(self.repository)
        except RepositoryNotFoundError:
            return None
        if info.private is None:
            raise OutputProblem(
                f"the hub does not say whether {HUB_PREFIX}{self.repository} is private",
                next_step="check its visibility on its page, and whether HF_ENDPOINT names a hub",
            )
        if not info.private and not self.public:
            raise OutputProblem(
                f"{HUB_PREFIX}{self.repository} is public",
                next_step="make it private on its page, or give --public --i-have-the-right",
            )
        return info

    def _create(self, api: HfApi) -> ModelInfo:
        note(f"{HUB_PREFIX}{self.repository}: new private repository")
        api.create_repo(self.repository, private=True, exist_ok=True)
        return self._require_info(api)

    def _heads(self, api: HfApi) -> dict[str, str]:
        """Maps branch names to commits."""
        branches = api.list_repo_refs(self.repository).branches
        return {branch.name: branch.target_commit for branch in branches}

    def _tree(self, api: HfApi, commit: str) -> dict[str, RepoFile]:
        """Maps names to files of a commit, without .gitattributes of the hub."""
        entries = api.list_repo_tree(self.repository, revision=commit, recursive=True)
        files = (file for file in entries if isinstance(file, RepoFile))
        return {file.path: file for file in files if file.path != GITATTRIBUTES_FILE}

    def _require_release_files(self, tree: Mapping[str, RepoFile]) -> None:
        if tree and CHECKSUM_FILE not in tree:
            raise OutputProblem(
                f"{self} holds files other than a release, for example {min(tree)}",
                next_step="name another branch or repository, or remove the files yourself",
            )

    def _commit_release(self, api: HfApi, heads: Mapping[str, str], release: ReleaseFiles) -> str:
        """Commits the release to its branch, and returns the commit."""
        head = heads.get(self.revision)
        if head is not None:
            tree = self._tree(api, head)
            if release.matches_remote(_changed_names(release, tree), tree.keys()):
                return head
            self._require_release_files(tree)
            if tree and not self.force:
                raise OutputExists(
                    f"{self} holds another release",
                    next_step="name another branch, or give --force to replace it",
                )
        staging_commit = self._stage(api, heads, release)
        if head is not None:
            return self._commit(api, self.revision, head, release)
        api.create_branch(self.repository, branch=self.revision, revision=staging_commit)
        self._require_head(api, self.revision, staging_commit)
        return staging_commit

    @property
    def _staging_prefix(self) -> str:
        return f"{STAGING}{self.revision.replace('/', '-')}-"

    def _stage(self, api: HfApi, heads: Mapping[str, str], release: ReleaseFiles) -> str:
        """Commits the release to a staging branch, and returns the verified commit."""
        branch = self._staging_prefix + release.sha256[CHECKSUM_FILE][:STAGING_DIGEST_DIGITS]
        head = heads.get(branch)
        if head is None:
            head = heads.get(self.revision, heads[MAIN])
            api.create_branch(self.repository, branch=branch, revision=head)
        return self._commit(api, branch, head, release)

    def _commit(self, api: HfApi, branch: str, head: str, release: ReleaseFiles) -> str:
        """Makes a branch hold exactly the release with one commit on top of a known head."""
        files = release.files
        changed_names = _changed_names(release, self._tree(api, head))
        if not changed_names:
            return head
        additions = [
            CommitOperationAdd(name, files[name]) for name in changed_names if name in files
        ]
        for addition in additions:
            release.require_unchanged(addition.path_in_repo, addition.upload_info.sha256.hex())
        nbytes = sum(addition.upload_info.size for addition in additions)
        size = f"{len(additions)} files, {format_megabytes(nbytes)}"
        note(f"{branch}: {size}; files already on the hub are not sent again")
        commit: str = api.create_commit(
            self.repository,
            [
                *additions,
                *(CommitOperationDelete(name) for name in changed_names if name not in files),
            ],
            commit_message=f"A release by camelpress {__version__}",
            revision=branch,
            parent_commit=head,
        ).oid
        if broken := _changed_names(release, self._tree(api, commit)):
            raise OutputProblem(
                f"the hub stored other bytes of {', '.join(broken[:3])} than sent, in {branch} of "
                f"{self.repository}",
                next_step="run the same command again; if that does not help, write to the hub",
            )
        self._require_head(api, branch, commit)
        return commit


def _changed_names(release: ReleaseFiles, tree: Mapping[str, RepoFile]) -> list[str]:
    """Returns names of files with different content, or present on one side only."""
    common = release.files.keys() & tree.keys()
    equal_names = {name for name in common if _is_same(release, name, tree[name])}
    return sorted((release.files.keys() | tree.keys()) - equal_names)


def _is_same(release: ReleaseFiles, name: str, remote: RepoFile) -> bool:
    """Compares a file with the server by SHA-256 for LFS files, else by its git hash."""
    if remote.lfs is not None:
        return remote.lfs.sha256 == release.sha256[name]
    path = release.files[name]
    return remote.size == path.stat().st_size and remote.blob_id == git_sha1(path.read_bytes())


def _api() -> HfApi:
    prepare_client()
    return HfApi(token=True, library_name="camelpress", library_version=__version__)
