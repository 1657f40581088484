#!/usr/bin/env bash
# The Modbus peers: pymodbus, libmodbus and socat (Debian), modbus-serial and
# jsmodbus (npm, into a folder that git ignores).
set -euo pipefail
cd "$(dirname "$0")/.."
command -v npm >/dev/null || conformance/ensure.sh nodejs npm
conformance/ensure.sh python3-pymodbus python3-serial python3-serial-asyncio libmodbus-dev socat gcc libc6-dev
npm install --prefix sources/modbus/testdata --no-audit --no-fund --no-package-lock --loglevel=error
