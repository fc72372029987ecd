#!/bin/bash
# Predict a folder as an array job of Slurm: one shard per task, and `fgvc merge` when all are complete.
#
#   sbatch examples/slurm_array.sh /archive /results/preds.h5 --weights groceries-vit --maps
#
# SOURCES, the folder of OUT and the weights are on a file system that all nodes see. A task that is killed or
# requeued goes on where it was. With `--array` give as many tasks as you like; the shards follow from it.
#SBATCH --job-name=fgvc
#SBATCH --array=0-15
#SBATCH --cpus-per-task=4
#SBATCH --gres=gpu:1
#SBATCH --requeue
set -euo pipefail
sources=$1 out=$2
shift 2
first=${SLURM_ARRAY_TASK_MIN:-0} count=$SLURM_ARRAY_TASK_COUNT
index=$((SLURM_ARRAY_TASK_ID - first))

status=0
fgvc predict "$sources" --out "$out" --shard "$index/$count" --workers "${SLURM_CPUS_PER_TASK:-2}" "$@" || status=$?
# 3: complete, but some images could not be read; their rows say why.
[ "$status" -eq 0 ] || [ "$status" -eq 3 ] || exit "$status"

# Whoever is last merges: before that, fgvc merge says what is missing and changes nothing.
if fgvc merge "$out" --quiet 2> "$out.merge.$index"; then echo "merged into $out"; fi
rm -f "$out.merge.$index"
