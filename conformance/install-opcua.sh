#!/bin/sh
# Installs the peers of the OPC UA conformance tests: node-opcua (npm) and
# asyncua (PyPI), each into a folder that git ignores.
#   go test -tags conformance ./sources/opcua/
set -eu
cd "$(dirname "$0")/.."
npm install --prefix sources/opcua/testdata --no-audit --no-fund --no-package-lock
python3 -m venv .cache/opcua-venv
.cache/opcua-venv/bin/pip install --quiet asyncua==2.1.0
