#!/bin/sh
# Installs the peers of the Modbus conformance tests: pymodbus, libmodbus and
# socat (Debian), modbus-serial and jsmodbus (npm, into a folder that git
# ignores).
#   go test -tags conformance ./sources/modbus/
set -eu
cd "$(dirname "$0")/.."
apt-get update -qq
apt-get install -y -qq --no-install-recommends python3-pymodbus python3-serial python3-serial-asyncio libmodbus-dev socat gcc libc6-dev
npm install --prefix sources/modbus/testdata --no-audit --no-fund --no-package-lock
