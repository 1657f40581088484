#!/usr/bin/env bash
# The vendor's other clients, which judge the Zerobus emulator: the npm package (a
# prebuilt Rust core; its TypeScript wrapper is not needed) and the one for Python.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v npm >/dev/null || conformance/ensure.sh nodejs npm
python3 -c 'import ensurepip' 2>/dev/null || conformance/ensure.sh python3 python3-venv
dir=.cache/zerobus
mkdir -p "$dir"
if [ ! -d "$dir/node_modules/@databricks" ]; then
  (cd "$dir" && npm install --no-audit --no-fund --no-save --ignore-scripts --loglevel=error \
    @databricks/zerobus-ingest-sdk-linux-x64-gnu@1.3.0)
fi
if [ ! -x "$dir/venv/bin/python" ] || ! "$dir/venv/bin/python" -c 'import zerobus' 2>/dev/null; then
  python3 -m venv "$dir/venv"
  "$dir/venv/bin/pip" install --quiet --disable-pip-version-check databricks-zerobus-ingest-sdk==1.10.0
fi
