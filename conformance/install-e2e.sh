#!/usr/bin/env bash
# The peers of the end-to-end suite are those of the MQTT and OPC UA suites, and the
# compilers that new modules are built with.
set -euo pipefail
cd "$(dirname "$0")"
./install-mqtt.sh
./install-opcua.sh
./install-wasm.sh
