#!/usr/bin/env bash
# The full comparison on one GPU: FANet at full width; Mobile U-Net, ENet and ERFNet alone and with kd, kd and review,
# coco and Graph Flow in both presets; three seeds. Call it again until it exits with 0: each call works for MINUTES (9)
# and saves.
#   bash bundles/full_grid.sh gastric outputs/data/ebhi outputs/full_ebhi      # EBHI-Seg: --classes tumour --color
#   bash bundles/full_grid.sh synapse outputs/data/chaos outputs/full_chaos    # CHAOS MR
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -eq 3 ] || { echo "usage: bash bundles/full_grid.sh synapse|gastric DATASET_DIR RUN_DIR" >&2; exit 2; }

# Epochs are such that each run sees about 14,000 images: the 45 distillations of a dataset, each with the teacher's
# 0.26 TFLOP an image, then take some ten minutes of an H200-class GPU.
case $1 in
  gastric) EPOCHS=20 LOSS=ce AUGMENTATION=stain TITLE="EBHI-Seg, full width, 224 x 224" ;;
  synapse) EPOCHS=40 LOSS=dice_ce AUGMENTATION=affine TITLE="CHAOS MR, full width, 224 x 224" ;;
  *) echo "unknown bundle '$1'; give synapse or gastric" >&2; exit 2 ;;
esac
TRAINING="{'size': 224, 'batch_size': 16, 'epochs': $EPOCHS, 'learning_rate': 1e-3, 'loss': '$LOSS', 'augmentation': '$AUGMENTATION', 'precision': 'bfloat16', 'val_interval': 5}"
exec python -W ignore -m monai.bundle run --config_file "bundles/$1/configs/benchmark.yaml" \
  --dataset_dir "$2" --run_dir "$3" --training "$TRAINING" --paraphraser "{'epochs': 10}" \
  --title "$TITLE" --jobs "${JOBS:-4}" --minutes "${MINUTES:-9}"
