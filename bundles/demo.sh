#!/usr/bin/env bash
# From phantoms to a distilled student, its reports, a segmented scan and a segmented slide: the README's commands.
# Sizes are for two CPU cores, on which two commands run side by side; METHOD=graph_flow distills by another method than
# distill.yaml's own terms.
set -euo pipefail
cd "$(dirname "$0")/.."

# Keeps freed memory for the next step: on virtual machines small steps run up to twice as fast.
export MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_MMAP_THRESHOLD_=4294967296
# Two commands at once, one core each.
export OMP_NUM_THREADS=1
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

METHOD=${METHOD:-}
OUT=outputs/demo
SLIDES=$OUT/slides
rm -rf $OUT

say() { printf '\n== %s\n' "$*"; }

# Shows a command as one would type it, and runs it.
bundle() {
  local config=bundles/$1/configs/$2.yaml word line=''
  case $2 in paraphrase | distill | evaluate) config="['bundles/$1/configs/train.yaml','$config']" ;; esac
  shift 2
  for word; do [[ $word == *[\ \{\[]* ]] && line+=" \"$word\"" || line+=" $word"; done
  echo "+ python -m monai.bundle run --config_file \"$config\"$line"
  python -W ignore -m monai.bundle run --config_file "$config" "$@"
}

# Runs functions side by side, each line with the name of its function; fails if one of them does.
together() {
  local job pids=()
  for job; do
    "$job" > >(sed -u "s/^/${job//_/ } | /") 2>&1 &
    pids+=($!)
  done
  for job in "${pids[@]}"; do wait "$job"; done
}

# distill BUNDLE FOLDER STUDENT OPTION...: a student of FOLDER/teacher; Graph Flow trains paraphrasers before.
distill() {
  local kind=$1 folder=$2 student=$3 how=()
  shift 3
  [ -z "$METHOD" ] || how=(--method "$METHOD")
  if [ "$METHOD" = graph_flow ]; then
    bundle "$kind" paraphrase --dataset_dir $folder/data --batch_size 8 --epochs 10 --student "$student" --teacher $folder/teacher/model.pt --run_dir $folder/paraphraser
    how+=(--paraphraser $folder/paraphraser/paraphraser.pt)
  fi
  bundle "$kind" distill --dataset_dir $folder/data ${how[@]+"${how[@]}"} --student "$student" --teacher $folder/teacher/model.pt "$@" --run_dir $folder/distilled
}

# Both students have the same network, loss, steps, rate and seed: they differ by the distillation alone.
RECIPE=(--size 64 --batch_size 8 --loss dice_ce --augmentation affine --learning_rate 3e-3 --val_interval 5)
TEACHER="{'name': 'monai.networks.nets.UNet', 'channels': [16,32,64,128], 'strides': [2,2,2], 'num_res_units': 1, 'norm': 'BATCH'}"
STUDENT="{'name': 'monai.networks.nets.UNet', 'channels': [8,16,32,64], 'strides': [2,2,2], 'num_res_units': 1, 'norm': 'BATCH'}"
STUDENT_EPOCHS=20
TISSUE=(--size 64 --batch_size 8 --loss dice_ce --learning_rate 3e-3 --val_interval 5)

scans() { python -m data_prep.phantom_ct --output $OUT/data --cases 12 --size 64 --slices 20; }
tissue() {
  python -m data_prep.phantom_slides --output $SLIDES/data --images 64 --side 256 --color --crop 256 --size 64
  python -m data_prep.phantom_slides --whole-slide $SLIDES/whole.tif --side 4096
}
teacher() { bundle synapse train --dataset_dir $OUT/data "${RECIPE[@]}" --network "$TEACHER" --epochs 40 --run_dir $OUT/teacher; }
student_alone() { bundle synapse train --dataset_dir $OUT/data "${RECIPE[@]}" --network "$STUDENT" --epochs $STUDENT_EPOCHS --run_dir $OUT/student; }
tissue_teacher() { bundle gastric train --dataset_dir $SLIDES/data "${TISSUE[@]}" --network fanet --width 0.125 --epochs 25 --run_dir $SLIDES/teacher; }
student_distilled() { distill synapse $OUT "$STUDENT" "${RECIPE[@]}" --epochs $STUDENT_EPOCHS; }
tissue_distilled() { distill gastric $SLIDES enet "${TISSUE[@]}" --epochs 40; }
report() { bundle synapse evaluate --dataset_dir $OUT/data --checkpoint $OUT/$1/model.pt --run_dir $OUT/$1/report; }
report_teacher() { report teacher; }
report_alone() { report student; }
report_distilled() { report distilled; }
comparison() {
  python -m pipeline.comparison.figures --dataset $OUT/data --output $OUT/comparison.png --predictions \
    teacher=$OUT/teacher/report/predictions "student alone"=$OUT/student/report/predictions "student distilled"=$OUT/distilled/report/predictions
  python -W ignore -m pipeline.comparison $OUT/teacher $OUT/student $OUT/distilled --dataset $OUT/data --output $OUT/comparison
}
held_out_scan() { bundle synapse inference --checkpoint $OUT/distilled/model.pt --input $OUT/data/images/phantom_11.nii.gz --output_dir $OUT/segmented; }
tissue_report() { bundle gastric evaluate --dataset_dir $SLIDES/data --checkpoint $SLIDES/distilled/model.pt --run_dir $SLIDES/distilled/report; }
whole_slide() { bundle gastric inference --checkpoint $SLIDES/distilled/model.pt --input $SLIDES/whole.tif --output_dir $SLIDES/segmented; }

say "1/6 phantoms: CT scans; stained tissue and a whole slide"
together scans tissue
say "2/6 scans: the teacher, a U-Net, and the student by itself; tissue: the teacher, a narrow FANet"
student_and_tissue() { student_alone; tissue_teacher; }
together teacher student_and_tissue
say "3/6 the students, distilled by ${METHOD:-kd and review, the default}"
together student_distilled tissue_distilled
say "4/6 reports on the test splits"
together report_teacher report_alone
together report_distilled tissue_report
say "5/6 the comparison, a held-out scan and the whole slide, segmented by the distilled students"
slides_and_scans() { whole_slide; held_out_scan; }
together comparison slides_and_scans
say "done: $OUT/*/report/per_organ.csv, $OUT/comparison/comparison.html, $OUT/comparison.png, $OUT/segmented, $SLIDES/distilled/report/per_class.csv, $SLIDES/segmented/whole_overview.png"
