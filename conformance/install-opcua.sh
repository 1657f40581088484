#!/usr/bin/env bash
# The OPC UA peers: node-opcua (npm), asyncua (PyPI) and Eclipse Milo (Maven),
# each into a folder that git ignores.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v npm >/dev/null || conformance/ensure.sh nodejs npm
python3 -c 'import ensurepip' 2>/dev/null || conformance/ensure.sh python3 python3-venv
npm install --prefix sources/opcua/testdata --no-audit --no-fund --no-package-lock --loglevel=error
if ! .cache/opcua-venv/bin/python -c 'import asyncua' 2>/dev/null; then
  python3 -m venv .cache/opcua-venv
  .cache/opcua-venv/bin/pip install --quiet --disable-pip-version-check asyncua==2.1.0
fi
# The quick part of the suite does without Milo: Java and Maven are large.
if [ "${CONFORMANCE:-}" = smoke ]; then
  exit 0
fi
milo=sources/opcua/testdata/milo
if ! [ .cache/milo/MiloServer.class -nt "$milo/MiloServer.java" ]; then
  { command -v mvn && command -v javac; } >/dev/null || conformance/ensure.sh maven openjdk-17-jdk-headless
  mvn -q -B -f "$milo/pom.xml" dependency:copy-dependencies -DoutputDirectory="$PWD/.cache/milo/lib"
  javac -nowarn -d .cache/milo -cp '.cache/milo/lib/*' "$milo/MiloServer.java"
fi
