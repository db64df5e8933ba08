#!/usr/bin/env bash
# install.sh VENV: the tests' packages into it. pip takes one package after another, on one processor, most of the time for
# the index's pages. Two of them share what constraints.txt pins; the last adds what it does not name, and us.
set -euo pipefail
pip=$1/bin/pip
half() { # 0|1. No test wants gcsfs; the environment's own setuptools stays while pip uses it.
    grep -vE '^(gcsfs|setuptools)=' constraints.txt | awk -v half="$1" 'NR % 2 == half' |
        "$pip" install --quiet --no-compile --no-deps -r /dev/stdin
}
half 0 &
first=$!
half 1 &
second=$!
build=--no-build-isolation # the builder is among the pins
wait $first || build=
wait $second || build=
# Also where another Python or system lacks one of the pins, and nothing of its half is there yet.
"$pip" install --quiet --no-compile $build -c constraints.txt -e gateway/client -e models/embedded -e '.[test]'
