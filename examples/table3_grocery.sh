#!/usr/bin/env bash
# Table 3 of CRA-SMRA on the Grocery Store set with a MobileNetV2: the plain backbone, its stages' heads alone,
# CBAM, CRAM, CRAM and SMRAM, three seeds each, every row with the same epochs, augmentation and rates.
# Fifteen trainings of 10 to 25 minutes on one shared CPU core; measured figures: benchmarks/RESULTS.md.
# With average pooling in front of each head, the default then. The same command again resumes.
#   usage: FGVC_DATA=/data examples/table3_grocery.sh mobilenetv2_100.safetensors
set -euo pipefail
fgvc train --dataset grocery --model crasmra-mobilenetv2_100 --init "$1" \
  --ablate table3 --seeds 0,1,2 --out runs/table3-grocery \
  --epochs 6 --batch-size 32 --input-px 160 --set preprocess.resize_px=184 \
  --set augment.train_px=128 --set augment.crop=resized --set augment.scale_min=0.3 \
  --set augment.color_jitter=0.3 --set loss.label_smoothing=0.1 --set options.padding=same --set options.head_pool=avg \
  --set optim.name=adamw --set optim.weight_decay=0.05 --set optim.warmup_epochs=1 \
  --set optim.clip_grad=5 --set optim.lr_backbone=0.002 --set optim.lr_heads=0.008 \
  --set optim.lr_cram=0.008 --set optim.lr_smram=0.002 --workers 1
