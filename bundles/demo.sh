#!/usr/bin/env bash
# From phantoms to distilled students, their reports, a segmented scan and a segmented slide: the README's commands.
# Sizes are for two CPU cores; the figures prove that everything runs, not how accurate the method is.
set -euo pipefail
cd "$(dirname "$0")/.."

# Keeps freed memory for the next step: on virtual machines small steps run up to twice as fast.
export MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_MMAP_THRESHOLD_=4294967296

say() { printf '\n== %s\n' "$*"; }
bundle() { local config=bundles/$1/configs/$2.yaml; shift 2; echo "+ python -m monai.bundle run --config_file $config $*"; python -W ignore -m monai.bundle run --config_file "$config" "$@"; }

OUT=outputs/demo
rm -rf $OUT
RECIPE=(--dataset_dir $OUT/data --size 64 --batch_size 8 --loss dice_ce --augmentation affine --learning_rate 2e-3 --val_interval 3)

say "scans 1/7 phantom CT data"
python -m data_prep.phantom_ct --output $OUT/data --cases 12
say "scans 2/7 teacher: a narrow FANet"
bundle synapse train "${RECIPE[@]}" --network fanet --width 0.25 --epochs 9 --run_dir $OUT/teacher
say "scans 3/7 paraphrasers of the teacher for Mobile U-Net"
bundle synapse paraphrase --dataset_dir $OUT/data --batch_size 8 --epochs 1 --teacher $OUT/teacher/model.pt --run_dir $OUT/paraphraser
say "scans 4/7 student without distillation"
bundle synapse train "${RECIPE[@]}" --network mobile_unet --epochs 6 --run_dir $OUT/student
say "scans 5/7 student with Graph Flow"
bundle synapse distill "${RECIPE[@]}" --student mobile_unet --epochs 6 --settings "{'adversarial_kind':'hinge'}" --teacher $OUT/teacher/model.pt --paraphraser $OUT/paraphraser/paraphraser.pt --run_dir $OUT/graph_flow
say "scans 6/7 reports on the test scans, and their comparison"
for run in teacher student graph_flow; do
  bundle synapse evaluate --dataset_dir $OUT/data --checkpoint $OUT/$run/model.pt --run_dir $OUT/$run/report
done
python -m pipeline.evaluation.figures --dataset $OUT/data --output $OUT/comparison.png \
  --predictions teacher=$OUT/teacher/report/predictions student=$OUT/student/report/predictions "graph flow"=$OUT/graph_flow/report/predictions
python -W ignore -m pipeline.evaluation.compare $OUT/teacher $OUT/student $OUT/graph_flow --dataset $OUT/data --output $OUT/comparison
say "scans 7/7 a held-out scan, segmented by the distilled student"
bundle synapse inference --checkpoint $OUT/graph_flow/model.pt --input $OUT/data/images/phantom_11.nii.gz --output_dir $OUT/segmented

SLIDES=$OUT/slides
RECIPE=(--dataset_dir $SLIDES/data --batch_size 8 --learning_rate 3e-3 --val_interval 5)

say "slides 1/5 phantom tissue, cut into tiles, and a whole slide"
python -m data_prep.phantom_slides --output $SLIDES/data --images 16 --side 512 --color --crop 256 --size 64
python -m data_prep.phantom_slides --whole-slide $SLIDES/whole.tif --side 4096
say "slides 2/5 teacher: a narrow FANet"
bundle gastric train "${RECIPE[@]}" --size 64 --network fanet --width 0.125 --epochs 10 --run_dir $SLIDES/teacher
say "slides 3/5 ENet with Graph Flow, after the paraphrasers"
bundle gastric paraphrase --dataset_dir $SLIDES/data --batch_size 8 --epochs 3 --student enet --teacher $SLIDES/teacher/model.pt --run_dir $SLIDES/paraphraser
bundle gastric distill "${RECIPE[@]}" --student enet --epochs 20 --settings "{'adversarial': 0}" --teacher $SLIDES/teacher/model.pt --paraphraser $SLIDES/paraphraser/paraphraser.pt --run_dir $SLIDES/graph_flow
say "slides 4/5 its report on the test pictures"
bundle gastric evaluate --dataset_dir $SLIDES/data --checkpoint $SLIDES/graph_flow/model.pt --run_dir $SLIDES/graph_flow/report
say "slides 5/5 the whole slide, segmented"
bundle gastric inference --checkpoint $SLIDES/graph_flow/model.pt --input $SLIDES/whole.tif --output_dir $SLIDES/segmented

say "done: $OUT/*/report/per_organ.csv, $OUT/comparison/comparison.html, $OUT/comparison.png, $OUT/segmented, $SLIDES/graph_flow/report/per_class.csv, $SLIDES/segmented/whole_overview.png"
