#!/usr/bin/env bash
# The compilers of modules in C, Rust and AssemblyScript: for the tests of the SDKs
# and for bench/wasm.
set -euo pipefail
cd "$(dirname "$0")/.."
conformance/ensure.sh clang-14 lld-14 wasi-libc libclang-rt-14-dev-wasm32 rustc cargo libstd-rust-dev-wasm32 make
command -v npm >/dev/null || conformance/ensure.sh nodejs npm
[ -x abi/assemblyscript/node_modules/.bin/asc ] || (cd abi/assemblyscript && npm install --no-audit --no-fund --no-package-lock --loglevel=error)
