"""A release on the Hugging Face hub: uploaded aside, verified there, and only then under its name.

    staging-...   a branch with every file, made by one commit
    verify        the server's hash of each file is that of the release
    REVISION      a new branch of that commit, or one commit with the same files
    main          the page: it gets the first release of a repository, too
    staging-...   removed; what shall be public becomes so last

Each step looks at what is there first, so the same command continues a run that ended anywhere.
What a step ordered is read back: a hub that answers 200 and does nothing is found out before
anything becomes public, and before a report says that it is so.
Nothing depends on how the client brings the bytes (LFS or Xet).
Source: huggingface_hub v2.4.0, hf_api.py: create_commit (which uploads large files before),
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
from camelpress.core.hub.model_location import GITATTRIBUTES_FILE, HUB_PREFIX, REPO_ID_PATTERN
from camelpress.core.progress import note
from camelpress.publish.destinations.hub_errors import hub_errors
from camelpress.publish.release.checksums import ReleaseFiles

MAIN = "main"
STAGING = "staging-"
STAGING_DIGEST_DIGITS = 12  # digits of a release's hash in the name of its staging branch
MANUAL_APPROVAL: Literal["manual"] = "manual"  # how the hub lets readers in, one by one
READ_BACK_PAUSES = (1.0, 3.0)  # seconds before the hub is asked again whether it did what it said
HubState = TypeVar("HubState")


@dataclass(frozen=True)
class HubDestination:
    """A revision of a model repository, as what is published there is to be.

    Who sees a repository sees all its branches, and other releases may be among them: so a gate is
    closed here, and never opened.

    Args:
        repository: org/name.
        revision: the branch that the release becomes.
        public: for everybody to see; otherwise private.
        gated: whether each reader has to be let in by hand.
        force: replace an earlier release there.
    """

    repository: str
    revision: str
    public: bool
    gated: bool
    force: bool

    @classmethod
    def parse(
        cls, to: str, variant: str, *, public: bool, gated: bool, force: bool
    ) -> HubDestination:
        """From `hf:org/name` or `hf:org/name@branch`; without one, the variant names it.

        Raises:
            RecipeProblem: it is neither.
        """
        named = REPO_ID_PATTERN.fullmatch(to)
        revision = named["revision"] or variant if named else ""
        if named is None or revision.startswith((STAGING, "refs/")):
            raise RecipeProblem(
                f"{to!r} is no place on the hub to publish to",
                next_step=f"write it as {HUB_PREFIX}org/name, or as {HUB_PREFIX}org/name@branch",
            )
        return cls(named["repository"], revision, public=public, gated=gated, force=force)

    def __str__(self) -> str:
        return f"{HUB_PREFIX}{self.repository}@{self.revision}"

    @property
    def title(self) -> str:
        """A name for the release where nobody gave one."""
        return self.repository.partition("/")[2]

    def require_ready(self) -> tuple[str, ...]:
        """See that a release may go there; nothing is written yet.

        Returns:
            The other variants that are published there.
        Raises:
            OutputProblem: no login, a public repository, or files that no release has.
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
        """Bring a finished release there, and say what came of it.

        Args:
            folder: a release that `verify` passes.
        Raises:
            OutputExists: another release is there, and `force` is not given.
            OutputProblem: as `require_ready`; no right to write; the hub or the connection fails.
                What was under the revision's name is there still.
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
        """Reads back who may see the repository: an answer of 200 is no proof.

        Raises:
            OutputProblem: the hub does not show the gate that the release needs.
        """
        info = self._read_back(
            lambda: self._require_info(api),
            lambda found: not self.gated or found.gated == MANUAL_APPROVAL,
        )
        if info is None:
            raise OutputProblem(
                f"the hub took the order to gate {self.repository}, and shows it without that gate",
                next_step="turn on gated access with manual approval in the settings of its page, "
                "then run the same command again",
            )
        return info

    def _make_public(self, api: HfApi) -> ModelInfo:
        """Makes the repository public, and reads back that it is, with its gate.

        Raises:
            OutputProblem: it is still private; or its gate is gone, and it is private again.
        """
        note(f"{HUB_PREFIX}{self.repository}: becomes public, with all its branches")
        api.update_repo_settings(self.repository, private=False)
        info = self._read_back(
            lambda: self._require_info(api), lambda found: found.private is False
        )
        if info is None:
            raise OutputProblem(
                f"the hub took the order to make {self.repository} public, and shows it private",
                next_step="make it public in the settings of its page; the release is complete",
            )
        if self.gated and info.gated != MANUAL_APPROVAL:
            api.update_repo_settings(self.repository, private=True)
            raise OutputProblem(
                f"{self.repository} lost its gate when it became public, and was ordered to be "
                "private again",
                next_step="see on its page that it is, and turn on gated access there",
            )
        return info

    def _remove_staging(self, api: HfApi) -> None:
        """Removes the branches of this and earlier uploads, and reads back that they are gone.

        Raises:
            OutputProblem: the hub still shows one of them.
        """
        pattern = re.compile(
            rf"{re.escape(self._staging_prefix)}[0-9a-f]{{{STAGING_DIGEST_DIGITS}}}"
        )
        staged = [branch for branch in self._heads(api) if pattern.fullmatch(branch)]
        for branch in staged:
            api.delete_branch(self.repository, branch=branch)
        if not staged:
            return
        heads = self._read_back(
            lambda: self._heads(api), lambda found: not found.keys() & {*staged}
        )
        if heads is None:
            raise OutputProblem(
                f"the hub took the order to remove {staged[0]} of {self.repository}, and still "
                "shows it",
                next_step="remove that branch on its page, then run the same command again",
            )

    def _require_head(self, api: HfApi, branch: str, commit: str) -> None:
        """Reads back that a branch leads to a commit.

        Raises:
            OutputProblem: it does not.
        """
        heads = self._read_back(lambda: self._heads(api), lambda found: found.get(branch) == commit)
        if heads is None:
            raise OutputProblem(
                f"the hub took the order to move {branch} of {self.repository} to "
                f"{commit[:STAGING_DIGEST_DIGITS]}, and shows it elsewhere",
                next_step="see who else publishes there, then run the same command again",
            )

    def _read_back(
        self, read: Callable[[], HubState], holds: Callable[[HubState], bool]
    ) -> HubState | None:
        """Returns what the hub shows once it holds; None where it never does."""
        for wait in (0.0, *READ_BACK_PAUSES):
            time.sleep(wait)
            if holds(shown := read()):
                return shown
        return None

    def _require_info(self, api: HfApi) -> ModelInfo:
        """What the hub says of a repository that was there a moment ago.

        Raises:
            OutputProblem: it does not show it.
        """
        info = self._info(api)
        if info is None:
            raise OutputProblem(
                f"the hub does not show {self.repository}, which was there a moment ago",
                next_step="see on its page whether somebody removed it, then run the same again",
            )
        return info

    def _info(self, api: HfApi) -> ModelInfo | None:
        """What the hub says of the repository; None where there is none.

        Raises:
            OutputProblem: it is public, and that was not asked for.
        """
        try:
            info = api.model_info(self.repository)
        except RepositoryNotFoundError:
            return None
        if info.private is None:
            raise OutputProblem(
                f"the hub does not say whether {HUB_PREFIX}{self.repository} is private",
                next_step="see on its page who can see it, and whether HF_ENDPOINT names a hub",
            )
        if not info.private and not self.public:
            raise OutputProblem(
                f"{HUB_PREFIX}{self.repository} is public",
                next_step="make it private on its page, or give --public --i-have-the-right",
            )
        return info

    def _create(self, api: HfApi) -> ModelInfo:
        note(f"{HUB_PREFIX}{self.repository}: a new repository, private")
        api.create_repo(self.repository, private=True, exist_ok=True)
        return self._require_info(api)

    def _heads(self, api: HfApi) -> dict[str, str]:
        """Branch to commit."""
        branches = api.list_repo_refs(self.repository).branches
        return {branch.name: branch.target_commit for branch in branches}

    def _tree(self, api: HfApi, commit: str) -> dict[str, RepoFile]:
        """The files of a commit but for the hub's own."""
        found = api.list_repo_tree(self.repository, revision=commit, recursive=True)
        files = (each for each in found if isinstance(each, RepoFile))
        return {each.path: each for each in files if each.path != GITATTRIBUTES_FILE}

    def _require_release_files(self, tree: Mapping[str, RepoFile]) -> None:
        if tree and CHECKSUM_FILE not in tree:
            raise OutputProblem(
                f"{self} holds files that are no release, {min(tree)} for one",
                next_step="name another branch or repository, or remove them yourself",
            )

    def _commit_release(self, api: HfApi, heads: Mapping[str, str], release: ReleaseFiles) -> str:
        """The commit of the revision, once it holds the release."""
        head = heads.get(self.revision)
        if head is not None:
            there = self._tree(api, head)
            if release.matches_remote(_changed_names(release, there), there.keys()):
                return head
            self._require_release_files(there)
            if there and not self.force:
                raise OutputExists(
                    f"{self} holds another release",
                    next_step="name another branch, or give --force to replace it",
                )
        staged = self._stage(api, heads, release)
        if head is not None:
            return self._commit(api, self.revision, head, release)
        api.create_branch(self.repository, branch=self.revision, revision=staged)
        self._require_head(api, self.revision, staged)
        return staged

    @property
    def _staging_prefix(self) -> str:
        return f"{STAGING}{self.revision.replace('/', '-')}-"

    def _stage(self, api: HfApi, heads: Mapping[str, str], release: ReleaseFiles) -> str:
        """The commit of a branch aside that holds the release, as the server says itself."""
        branch = self._staging_prefix + release.sha256[CHECKSUM_FILE][:STAGING_DIGEST_DIGITS]
        head = heads.get(branch)
        if head is None:
            head = heads.get(self.revision, heads[MAIN])
            api.create_branch(self.repository, branch=branch, revision=head)
        return self._commit(api, branch, head, release)

    def _commit(self, api: HfApi, branch: str, head: str, release: ReleaseFiles) -> str:
        """One commit on a branch whose head is known, after which it holds the release alone."""
        files = release.files
        wrong = _changed_names(release, self._tree(api, head))
        if not wrong:
            return head
        adds = [CommitOperationAdd(name, files[name]) for name in wrong if name in files]
        for each in adds:
            release.require_unchanged(each.path_in_repo, each.upload_info.sha256.hex())
        nbytes = sum(each.upload_info.size for each in adds)
        note(f"{branch}: {len(adds)} files, {nbytes / 1e6:,.1f} MB, less what the hub has already")
        commit: str = api.create_commit(
            self.repository,
            [*adds, *(CommitOperationDelete(name) for name in wrong if name not in files)],
            commit_message=f"A release by camelpress {__version__}",
            revision=branch,
            parent_commit=head,
        ).oid
        if broken := _changed_names(release, self._tree(api, commit)):
            raise OutputProblem(
                f"the hub holds {', '.join(broken[:3])} otherwise than it was sent, in {branch} of "
                f"{self.repository}",
                next_step="run the same command again; if that does not help, write to the hub",
            )
        self._require_head(api, branch, commit)
        return commit


def _changed_names(release: ReleaseFiles, tree: Mapping[str, RepoFile]) -> list[str]:
    """Names of files that are only here or only there, or not the same."""
    both = release.files.keys() & tree.keys()
    same = {name for name in both if _is_same(release, name, tree[name])}
    return sorted((release.files.keys() | tree.keys()) - same)


def _is_same(release: ReleaseFiles, name: str, there: RepoFile) -> bool:
    """By the hash that the server has of a file: SHA-256 of a large one, else that of git."""
    if there.lfs is not None:
        return there.lfs.sha256 == release.sha256[name]
    path = release.files[name]
    return there.size == path.stat().st_size and there.blob_id == git_sha1(path.read_bytes())


def _api() -> HfApi:
    prepare_client()
    return HfApi(token=True, library_name="camelpress", library_version=__version__)
