#!/usr/bin/env bash
# The papers' figures of where a model looks, from your own trainings and images.
# A few seconds each for one image; a folder in place of IMAGE gives a figure for each in it.
#   usage: examples/figures.sh IMAGE RUNS VIT
# RUNS holds the folders table3, delta and gamma of `fgvc train --ablate` (examples/table3_grocery.sh), VIT is the
# model.safetensors of a multi-stage ViT, or groceries-vit.
set -euo pipefail
image=$1 runs=$2 vit=$3

# CRA-SMRA (Wang et al. 2025). Fig. 4: the backbone alone, with CRAM, with CRAM and SMRAM; stages 3, 4, 5 beside
# each other. Fig. 5 varies delta, Fig. 6 gamma. The channel averages, as the text defines them; then its Grad-CAM.
fgvc explain "$image" --out fig4.png --weights "backbone=$runs/table3/plain-s0" \
  --weights "+ CRAM=$runs/table3/cram-s0" --weights "+ CRAM + SMRAM=$runs/table3/cram+smram-s0"
fgvc explain "$image" --out fig4-gradcam.png --method gradcam --weights "backbone=$runs/table3/plain-s0" \
  --weights "+ CRAM=$runs/table3/cram-s0" --weights "+ CRAM + SMRAM=$runs/table3/cram+smram-s0"
fgvc explain "$image" --out fig5.png --weights "$runs/delta"
fgvc explain "$image" --out fig6.png --weights "$runs/gamma"

# Multi-stage ViT (Conde & Turgutlu 2021). One page has them all: Fig. 3 (the crop, the erased image), Fig. 4
# (image with the box, attention alone and over it, the crop and its attention), Fig. 5 (and the two parts).
fgvc explain "$image" --out vit-figs3-5.png --weights "$vit"
