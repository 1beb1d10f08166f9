#!/usr/bin/env bash
# The checks that need a GPU, in under eight minutes: tests, then `python -m benchmarks.gpu`. Without one, both do what a
# CPU can. Usage: benchmarks/gpu.sh [FOLDER [OPTIONS]]; PYTHON is the interpreter, TESTS the tests, GIVEN_UP their seconds.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
out=${1:-runs/gpu}
shift $(($# > 0))
python=${PYTHON:-$(test -x .venv/bin/python && echo .venv/bin/python || echo python3)}
read -ra tests <<<"${TESTS-tests/mbml/test_gpu.py tests/mbml/test_capture.py tests/mbml/test_device.py}"
mkdir -p "$out" || exit 2

failed=0
# A test that hangs must not cost the measurements.
timeout "${GIVEN_UP:-150}" "$python" -m pytest -q -p no:cacheprovider "${tests[@]}" 2>&1 | tee "$out/tests.txt" || failed=1
"$python" -m benchmarks.gpu --out "$out" "$@" || failed=1
exit "$failed"
