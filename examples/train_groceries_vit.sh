#!/usr/bin/env bash
# The embedded model `groceries-vit`, from the ImageNet weights of a ViT-Ti/16.
# Measured 2026-11-20 on one core of a shared machine: 80 minutes beside other work; val top-1 91.9 % of 296,
# test top-1 90.4 % of 2,485.
#   usage: FGVC_DATA=/data examples/train_groceries_vit.sh vit_tiny_patch16_224.safetensors
set -euo pipefail
fgvc train --dataset grocery --model vitms-vit_tiny_patch16_224 --recipe vitms-paper --init "$1" \
  --epochs 9 --batch-size 32 --amp bf16 --input-px 320 --set preprocess.resize_px=320 \
  --set options.encoder_px=160 --set augment.crop=resized --set augment.scale_min=0.3 \
  --set augment.color_jitter=0.3 --set loss.label_smoothing=0.1 --set optim.name=adamw \
  --set optim.weight_decay=0.05 --set optim.clip_grad=1 --set optim.schedule=onecycle \
  --set optim.freeze_epochs=0 --set optim.lr_backbone=0.0001 --set optim.lr_heads=0.001
