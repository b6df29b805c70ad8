"""Repository ids of the Hugging Face hub, its addresses and its own files."""

from __future__ import annotations

import re

REPO_ID_PATTERN = re.compile(
    r"(?P<prefix>hf:)?(?![^@]*--)(?!.*\.\.)"
    r"(?P<repository>\w(?:[\w.-]{0,94}\w)?/\w(?:[\w.-]{0,94}\w)?)(?<!\.git)"
    r"(?:@(?P<revision>\w[\w./-]*))?",
    re.ASCII,
)
HUB_PREFIX = "hf:"
HUB_URL = "https://huggingface.co"  # base URL of repository pages
GITATTRIBUTES_FILE = ".gitattributes"  # list of large files, written by the hub
DOWNLOAD_CACHE = ".cache/huggingface"  # records of the client in a download folder
