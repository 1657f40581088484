#!/usr/bin/env bash
# The peers of the end-to-end suite are those of the sources' suites, and the
# compilers of module authors.
set -euo pipefail
here="$(dirname "$0")"
"$here/install-mqtt.sh"
"$here/install-opcua.sh"
"$here/install-modbus.sh"
"$here/install-wasm.sh"
