#!/usr/bin/env bash
# From phantom scans to a distilled student, its report and a segmented scan: the commands of the README, one by one.
# Sizes are for two CPU cores; the figures prove that everything runs, not how accurate the method is.
set -euo pipefail
cd "$(dirname "$0")/../.."

# Keeps freed memory for the next step: on virtual machines small steps run up to twice as fast.
export MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_MMAP_THRESHOLD_=4294967296

OUT=outputs/demo
CONFIGS=bundles/synapse/configs
RECIPE=(--dataset_dir $OUT/data --size 64 --batch_size 8 --loss dice_ce --augmentation affine --learning_rate 2e-3 --val_interval 4)

say() { printf '\n== %s\n' "$*"; }
bundle() { local config=$1; shift; echo "+ python -m monai.bundle run --config_file $CONFIGS/$config.yaml $*"; python -W ignore -m monai.bundle run --config_file "$CONFIGS/$config.yaml" "$@"; }

rm -rf $OUT
say "1/7 phantom CT data"
python -m data_prep.phantom_ct --output $OUT/data --cases 12
say "2/7 teacher: a narrow FANet"
bundle train "${RECIPE[@]}" --network fanet --width 0.25 --epochs 16 --run_dir $OUT/teacher
say "3/7 paraphrasers of the teacher for Mobile U-Net"
bundle paraphrase --dataset_dir $OUT/data --batch_size 8 --epochs 3 --teacher $OUT/teacher/model.pt --run_dir $OUT/paraphraser
say "4/7 student without distillation"
bundle train "${RECIPE[@]}" --network mobile_unet --epochs 8 --run_dir $OUT/student
say "5/7 student with Graph Flow"
bundle distill "${RECIPE[@]}" --student mobile_unet --epochs 8 --settings "{'adversarial_kind':'hinge'}" --teacher $OUT/teacher/model.pt --paraphraser $OUT/paraphraser/paraphraser.pt --run_dir $OUT/graph_flow
say "6/7 reports on the test scans"
for run in teacher student graph_flow; do
  bundle evaluate --dataset_dir $OUT/data --checkpoint $OUT/$run/model.pt --run_dir $OUT/report_$run
done
python -m pipeline.evaluation.figures --dataset $OUT/data --output $OUT/comparison.png \
  --predictions teacher=$OUT/report_teacher/predictions student=$OUT/report_student/predictions "graph flow"=$OUT/report_graph_flow/predictions
say "7/7 a held-out scan, segmented by the distilled student"
bundle inference --checkpoint $OUT/graph_flow/model.pt --input $OUT/data/images/phantom_11.nii.gz --output_dir $OUT/segmented
say "done: $OUT/report_*/per_organ.csv, $OUT/comparison.png, $OUT/segmented"
