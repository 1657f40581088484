#!/usr/bin/env bash
# The MQTT peers: the broker and the clients of Eclipse Mosquitto; and of npm
# (into a folder that git ignores) the broker aedes, an MQTT client and a
# Sparkplug B encoder. OpenSSL encrypts a key for the tests.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v npm >/dev/null || conformance/ensure.sh nodejs npm
conformance/ensure.sh mosquitto mosquitto-clients openssl
npm install --prefix sources/mqtt/testdata --no-audit --no-fund --no-package-lock --loglevel=error
