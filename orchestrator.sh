#!/usr/bin/env bash
# create | start | stop | destroy | status: builds orch when needed and hands over to it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
exec Scripts/orch "$@"
