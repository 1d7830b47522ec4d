#!/usr/bin/env bash
# The main job, end to end: config -> data set -> two networks -> study -> report. `make demo` runs it.
# Usage: bash examples/demo.sh OUT     (from the root of the checkout, with `qsim` on the PATH)
set -euo pipefail
out=${1:?usage: demo.sh OUT}
[ "$out" = demo ] || { echo "the configs of the demo write to ./demo; call: bash examples/demo.sh demo" >&2; exit 2; }
configs=configs/sabidussi2021
# one thread per process: the two trainings run side by side
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
mkdir -p "$out"

echo "1/4  data set: 6144 patches of simulated inversion recovery on MNI152 anatomy"
qsim generate $configs/generate_t1_small.yaml --out "$out/brain.zarr" --workers 2
qsim inspect "$out/brain.zarr" --html "$out/brain.html"

echo "2/4  training a ResNet in the background (log: $out/resnet.log) ..."
qsim train $configs/train_resnet_small.yaml --out "$out/resnet" --resume >"$out/resnet.log" 2>&1 &
resnet=$!
trap 'kill $resnet 2>/dev/null || true' EXIT
echo "3/4  ... and a Recurrent Inference Machine"
qsim train $configs/train_rim_small.yaml --out "$out/rim" --resume
wait $resnet || { cat "$out/resnet.log" >&2; exit 1; }
trap - EXIT
tail -n 1 "$out/resnet.log"

echo "4/4  Monte Carlo study on held-out anatomy"
qsim study $configs/study_t1_small.yaml --out "$out/study" --workers 2
echo "Open $out/study/report.html in a browser; the training data are shown in $out/brain.html."
