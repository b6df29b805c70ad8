#!/usr/bin/env bash
# Create the virtual environments of other tools: make_env.sh NAME...
#
# A client loads our checkpoints, a peer is measured beside us: NAME is one of the requirement files
# NAME.txt here or in benchmarks/peers. The environment is .venv-clients/NAME at the root of the
# repository, made from that file and, where there is one, NAME-nodeps.txt. It is left alone when
# it was made from the same requirement files.
# CLIENT_PYTHON names the interpreter (default: python3.11).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)

make_env() {
    local name=$1 file files env stamp wanted pip
    for file in "$here/$name.txt" "$root/benchmarks/peers/$name.txt"; do
        [[ -f $file ]] && break
    done
    if [[ $name == */* || ! -f $file ]]; then
        echo "usage: make_env.sh NAME..., each a NAME.txt in tests/clients or benchmarks/peers" >&2
        exit 2
    fi
    files=("$file")
    if [[ -f ${file%.txt}-nodeps.txt ]]; then
        files+=("${file%.txt}-nodeps.txt")
    fi
    env=$root/.venv-clients/$name
    stamp=$env/requirements.sha256
    wanted=$(cat "${files[@]}" | sha256sum | cut -d ' ' -f 1)
    if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
        echo "$env is up to date"
        return
    fi

    rm -rf "$env"
    mkdir -p "$root/.venv-clients"
    "${CLIENT_PYTHON:-python3.11}" -m venv "$env"
    pip=("$env/bin/python" -m pip --disable-pip-version-check install --quiet)
    # torch goes first and alone, so that no other package has a say in its version.
    "${pip[@]}" "$(grep -m 1 '^torch==' "$file")"
    "${pip[@]}" -r "$file"
    if [[ ${#files[@]} -gt 1 ]]; then
        "${pip[@]}" --no-deps --no-build-isolation -r "${files[1]}"
    fi
    # Written last: an interrupted installation has no stamp and is made anew.
    echo "$wanted" >"$stamp"
    echo "$env is ready"
}

if [[ $# -eq 0 ]]; then
    set -- "" # says how it is used
fi
for name in "$@"; do
    make_env "$name"
done
