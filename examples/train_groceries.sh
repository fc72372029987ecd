#!/usr/bin/env bash
# The embedded model `groceries`, from the ImageNet weights of an EfficientNet-Lite0, taught by `groceries-vit`.
# Measured 2026-11-28 on one core of a shared machine: about 100 minutes; val top-1 88.5 % of 296, test top-1 89.3 %
# of 2,485. What is embedded has options.heat_floor=0.1 besides, which changes its object boxes only.
#   usage: FGVC_DATA=/data examples/train_groceries.sh tf_efficientnet_lite0.safetensors
set -euo pipefail
fgvc train --dataset grocery --model crasmra-tf_efficientnet_lite0 --recipe crasmra-paper --init "$1" \
  --epochs 28 --batch-size 32 --amp bf16 --input-px 224 --set preprocess.resize_px=256 \
  --set augment.train_px=176 --set augment.crop=resized --set augment.scale_min=0.25 \
  --set augment.color_jitter=0.3 --set augment.mixup=0.2 --set augment.cutmix=0.5 \
  --set teacher=groceries-vit --set teacher_options.stages=main --set loss.teacher=0.7 \
  --set optim.name=sgd --set optim.warmup_epochs=2 --set optim.lr_backbone=0.008 \
  --set optim.lr_cram=0.015 --set optim.lr_heads=0.015 --set optim.lr_smram=0.004 --set optim.lr_mask=0.008 \
  --set options.mask_norm=layer --set options.min_hidden=32 --set options.neck_channels=512 \
  --set options.fuse=weighted --set options.head_pool=top5 --set ema_decay=0.995
