#!/usr/bin/env bash
# The compilers of module authors: clang and wasi-libc, Debian's rustc, and
# AssemblyScript (npm, into a folder that git ignores).
set -euo pipefail
cd "$(dirname "$0")/.."
command -v npm >/dev/null || conformance/ensure.sh nodejs npm
conformance/ensure.sh clang-14 lld-14 wasi-libc libclang-rt-14-dev-wasm32 rustc libstd-rust-dev-wasm32
npm install --prefix abi/assemblyscript --no-audit --no-fund --no-package-lock --loglevel=error
