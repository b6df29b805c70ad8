#!/bin/sh
# An environment with s3fs and moto's server, on top of .venv: botocore asks for an older
# python-dateutil than constraints.txt has.
#
#   tests/models/s3_env.sh .venv-s3
set -eu
place='import sysconfig; print(sysconfig.get_paths()["purelib"])'
below=$(.venv/bin/python -c "$place")
.venv/bin/python -m venv "$1"
printf '%s\n%s\n' "$below" "$PWD/src" > "$("$1/bin/python" -c "$place")/below.pth"
"$1/bin/python" -m pip --disable-pip-version-check install --quiet 's3fs>=2025.3' 'moto[server]>=5' pytest
