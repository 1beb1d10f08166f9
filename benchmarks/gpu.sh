#!/usr/bin/env bash
# The checks that need a GPU, in under eight minutes: tests, a whole run at smoke size, then `python -m benchmarks.gpu`.
# Without a GPU there is no run, and the rest does what a CPU can. Usage: benchmarks/gpu.sh [FOLDER [OPTIONS]].
# PYTHON is the interpreter, TESTS the tests.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
out=${1:-runs/gpu}
shift $(($# > 0))
python=${PYTHON:-$(test -x .venv/bin/python && echo .venv/bin/python || echo python3)}
read -ra tests <<<"${TESTS-tests/mbml/test_gpu.py tests/mbml/test_capture.py tests/mbml/test_device.py}"
mkdir -p "$out" || exit 2

failed=0
# What hangs must not cost the measurements.
timeout 120 "$python" -m pytest -q -p no:cacheprovider "${tests[@]}" 2>&1 | tee "$out/tests.txt" || failed=1
if "$python" -c 'import ray, sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    kept=$(mktemp -d)
    timeout 150 "$python" -m pipeline run --env umaze_goal --preset smoke --learner-gpus 0.5 --cuda-graphs \
        --store "$kept/store" --out "$kept/report" 2>&1 | tee "$out/run.txt" || failed=1
    rm -rf "$kept"
fi
"$python" -m benchmarks.gpu --out "$out" "$@" || failed=1
exit "$failed"
