#!/bin/sh
# New pins from pyproject.toml, and from them workflow/envs/dpdm.yaml. A pin that still fits stays: delete its line, or the file,
# for a newer one. Needs uv, and in UV_FIND_LINKS the place of PyTorch's CPU wheels.
set -eu
cd "$(dirname "$0")/.."

pin() {
    name=$1
    shift
    uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes --no-annotate --quiet \
        --no-emit-index-url --no-emit-find-links --custom-compile-command requirements/compile.sh \
        --output-file "requirements/$name.txt" "$@"
}

pin cuda
override=$(mktemp)
trap 'rm "$override"' EXIT
echo "$(grep -o '^torch==[0-9.]*' requirements/cuda.txt)+cpu" > "$override"
pin cpu --override "$override"
{
    echo "# Made by requirements/compile.sh from requirements/cuda.txt, for \`snakemake --sdm conda\`."
    printf 'channels: [conda-forge, nodefaults]\ndependencies:\n  - python=3.11\n  - pip\n  - pip:\n'
    sed -n 's/^\([a-z0-9-]*==[^\\]*[^\\ ]\) *\\$/      - "\1"/p' requirements/cuda.txt
} > workflow/envs/dpdm.yaml
