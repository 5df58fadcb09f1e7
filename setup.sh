#!/bin/sh
# Find a Python 3.10 to 3.13 and hand over to install.py: ./setup.sh [--extras dev] [--dry-run] ...
cd "$(dirname "$0")" || exit 1
for python in ${PYTHON:-python3 python3.12 python3.13 python3.11 python3.10 python}; do
    if "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; then
        exec "$python" install.py "$@"
    fi
done
printf 'error: no Python 3.10 to 3.13 was found\n\nhint: install Python 3.12, or name one: PYTHON=/path/to/python ./setup.sh\n' >&2
exit 1
