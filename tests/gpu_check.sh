#!/usr/bin/env bash
# Checks and times the project on a GPU that it has not run on before, within six minutes:
#
#   bash tests/gpu_check.sh [FOLDER]
#
# The project must be installed (`pip install -e '.[test]'`); nothing is downloaded. Each step prints
# one line, and its output goes to FOLDER/STEP.log (FOLDER is gpu_check unless it is given). The
# figures are FOLDER/*.json: send them to us with the printed lines. The exit code is 0 if every
# step that could run passed, 1 if one failed, and 2 if there is no GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath -m "${1:-gpu_check}")
limit=360 # seconds for everything
failed=0

say() { printf '%-28s %-8s %4d s   %s\n' "$1" "$2" "$3" "$4"; }

# step NAME SECONDS COMMAND...: runs a command within its own time and that of the whole check.
step() {
    local name=$1 seconds=$2 begin=$SECONDS left=$((limit - SECONDS)) verdict=ok code=0
    shift 2
    if [ "$left" -lt "$seconds" ]; then seconds=$left; fi
    if [ "$seconds" -le 0 ]; then
        say "$name" "left out" 0 "the $limit s for the whole check were over"
        failed=1
        return 1
    fi
    timeout --kill-after=5 "$seconds" "$@" > "$folder/$name.log" 2>&1 || code=$?
    if [ $code = 124 ] || [ $code = 137 ]; then
        verdict="too slow" # or killed from outside, for example for its memory
    elif [ $code != 0 ]; then
        verdict=FAILED
    fi
    say "$name" "$verdict" $((SECONDS - begin)) "$(tail -n 1 "$folder/$name.log" | cut -c 1-100)"
    if [ $code != 0 ]; then failed=1; fi
    return $code
}

gpu=$(python -c 'import torch; p = torch.cuda.get_device_properties(0); print(p.name, f"{p.major}.{p.minor}", sep=";")' 2> /dev/null) || {
    echo "gpu_check.sh: torch finds no GPU here: python -m ops says what it finds" >&2
    exit 2
}
mkdir -p "$folder"
echo "${gpu%;*}, compute capability ${gpu#*;}; logs and figures in $folder"

# The shipped library may lack code for this architecture, or may not have been built.
if ! python -m ops > "$folder/ops.log" 2>&1; then
    step build 240 env DEFORM_CONV_CUDA=1 TORCH_CUDA_ARCH_LIST="${gpu#*;}" \
        pip install -q --no-deps --no-build-isolation --no-index -e .
fi
step operators 30 python -m ops || exit 1

step tests 120 python -m pytest --no-cov -q -n 8 -m cuda tests/ops
for tool in memcheck racecheck; do
    if command -v compute-sanitizer > /dev/null; then
        step $tool 40 compute-sanitizer --tool $tool --error-exitcode 1 python tests/ops/small_passes.py cuda
    else
        say $tool "left out" 0 "compute-sanitizer, of the CUDA toolkit, is not on PATH"
    fi
done
step operator-benchmark 90 python -m ops.benchmark --device cuda --rounds 3 --json "$folder/operator.json"
step roi-benchmark 30 python -m ops.roi_benchmark --device cuda --rounds 3 --json "$folder/roi.json"
step training-step-benchmark 90 python -m detector.benchmark --device cuda --json "$folder/step.json"
step training 120 python train.py device=cuda hydra.run.dir="$folder/training"

# Evaluates the trained detector one image at a time and eight at a time, and prints the speed and
# the AP of each. The times do not include loading.
evaluations() {
    local size
    for size in 1 8; do
        python evaluate.py checkpoint="$1/training/checkpoints/last.pt" device=cuda \
            eval_batch_size=$size timing_images=200 hydra.run.dir="$1/evaluation-$size" || return
    done
    python - "$1" << 'END'
import json
import sys

speeds = []
for size in (1, 8):
    with open(f"{sys.argv[1]}/evaluation-{size}/metrics.json") as file:
        result = json.load(file)
    seconds = (result["timing"]["forward_ms"] + result["timing"]["post_ms"]) / 1000
    ap = 100 * result["metrics"]["AP"]
    speeds.append(f"batches of {size}: {1 / seconds:.0f} images/s, AP {ap:.3f}")
print("; ".join(speeds))
END
}
export -f evaluations
step evaluation 60 bash -c 'evaluations "$1"' bash "$folder"
exit $failed
