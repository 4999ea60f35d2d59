#!/usr/bin/env bash
# The tests that need a GPU, and then the benchmark; arguments go to gpu.py.
#
#     benchmarks/gpu.sh --models 1b --out gpu.md
#     WHEELS=folder benchmarks/gpu.sh --models 8b --out gpu.md --parts rate,sharing
#
# It wants Python 3.11 or later with torch for CUDA (2.11 or later, which brings Triton), transformers, peft, pytest and
# hypothesis; Luthier itself runs from src/. What else it needs, and the others to compare with, can lie as wheels in
# WHEELS, which is installed aside, without the network:
#
#     pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_17_x86_64 -d folder \
#         pydantic pydantic_core annotated_types typing_inspection trl datasets dill multiprocess liger_kernel
#
# (pydantic_core in the version that pydantic asks for; pyarrow, pandas, xxhash, fsspec and accelerate, which datasets
# and trl ask for, if they are missing.) Tests take some minutes, most of them compilation; so does each part of each model.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
if [ -n "${WHEELS:-}" ]; then
  aside="$(mktemp -d)"
  "$python" -m pip install -q --no-index --no-deps --no-compile --target "$aside" "$WHEELS"/*.whl
fi
export PYTHONPATH="$PWD/src${aside:+:$aside}${PYTHONPATH:+:$PYTHONPATH}"
"$python" -m pytest -q -p no:cacheprovider tests/gpu/test_cuda.py
"$python" benchmarks/gpu.py "$@"
