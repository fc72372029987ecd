#!/usr/bin/env bash
# The embedded model `groceries`, from the ImageNet weights of a MobileNetV2.
# Measured 2026-11-20 on one core of a shared machine: 60 minutes beside another training; val top-1 82.8 % of 296,
# test top-1 86.0 % of 2,485.
#   usage: FGVC_DATA=/data examples/train_groceries.sh mobilenetv2_100.safetensors
set -euo pipefail
fgvc train --dataset grocery --model crasmra-mobilenetv2_100 --recipe crasmra-paper --init "$1" \
  --epochs 28 --batch-size 32 --input-px 224 --set preprocess.resize_px=256 \
  --set augment.train_px=192 --set augment.crop=resized --set augment.scale_min=0.25 \
  --set augment.color_jitter=0.3 --set loss.label_smoothing=0.1 --set ema_decay=0.995 \
  --set optim.name=sgd --set optim.warmup_epochs=2 --set optim.lr_backbone=0.004 \
  --set optim.lr_cram=0.015 --set optim.lr_heads=0.015 --set optim.lr_smram=0.004 \
  --set options.fuse=weighted --set options.head_pool=avg
