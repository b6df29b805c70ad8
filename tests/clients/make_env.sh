#!/usr/bin/env bash
# Create the virtual environment of a client: make_env.sh gptqmodel|autogptq
#
# The environment is .venv-clients/NAME at the root of the repository, made from NAME.txt and, where
# there is one, NAME-nodeps.txt. It is left alone when it was made from the same requirement files.
# CLIENT_PYTHON names the interpreter (default: python3.11).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
name=${1:-}
case $name in
gptqmodel | autogptq) ;;
*)
    echo "usage: make_env.sh gptqmodel|autogptq" >&2
    exit 2
    ;;
esac

files=("$here/$name.txt")
if [[ -f $here/$name-nodeps.txt ]]; then
    files+=("$here/$name-nodeps.txt")
fi
env=$root/.venv-clients/$name
stamp=$env/requirements.sha256
wanted=$(cat "${files[@]}" | sha256sum | cut -d ' ' -f 1)
if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
    echo "$env is up to date"
    exit 0
fi

rm -rf "$env"
mkdir -p "$root/.venv-clients"
"${CLIENT_PYTHON:-python3.11}" -m venv "$env"
pip=("$env/bin/python" -m pip --disable-pip-version-check install --quiet)
# torch goes first and alone, so that no other package has a say in its version.
"${pip[@]}" "$(grep -m 1 '^torch==' "$here/$name.txt")"
"${pip[@]}" -r "$here/$name.txt"
if [[ -f $here/$name-nodeps.txt ]]; then
    "${pip[@]}" --no-deps --no-build-isolation -r "$here/$name-nodeps.txt"
fi
# Written last: an interrupted installation has no stamp and is made anew.
echo "$wanted" >"$stamp"
echo "$env is ready"
