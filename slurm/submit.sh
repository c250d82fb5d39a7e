#!/usr/bin/env bash
# One stage, or a chain of stages that start when the one before has finished:
#
#   slurm/submit.sh --sbatch=-N4 --sbatch=--gpus-per-node=8 \
#     pretrain experiment=... run.dir=runs/p -- \
#     sft model.checkpoint=runs/p run.dir=runs/s -- \
#     dpo model.checkpoint=runs/s run.dir=runs/d
#
# Every run folder gets the code (code/, with the commit in code/COMMIT) and the resolved configuration
# (submitted.yaml) as they are now: editing the checkout changes nothing for jobs in the queue or after a requeue.
# A checkout with changes that are not committed is refused; --allow-dirty freezes them with the rest.
# --sbatch=OPTION, as often as needed: for sbatch, every stage. --after=JOB: the first stage waits for that job.
set -euo pipefail
shopt -s inherit_errexit

allow_dirty=
after=
sbatch_options=()
while [ $# -gt 0 ]; do
  case $1 in
    --allow-dirty) allow_dirty=yes ;;
    --after=*) after=${1#*=} ;;
    --sbatch=*) sbatch_options+=("${1#*=}") ;;
    -*) echo "no option $1; there are --allow-dirty, --after=JOB and --sbatch=OPTION" >&2; exit 2 ;;
    *) break ;;
  esac
  shift
done
[ $# -gt 0 ] || { sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ -f slurm/site.sh ] || { echo "call it from the checkout: slurm/site.sh is missing in $PWD" >&2; exit 2; }

commit=$(git rev-parse HEAD)
changes=$(git status --porcelain)
if [ -n "$changes" ] && [ -z "$allow_dirty" ]; then
  printf 'the checkout has changes that are not committed:\n%s\ncommit them, or freeze them with --allow-dirty\n' \
    "$changes" >&2
  exit 2
fi

run_dir_of() { # the folder in run.dir=FOLDER
  local word
  for word in "$@"; do
    case $word in
      run.dir=\"*\") word=${word#run.dir=?}; printf '%s' "${word%?}"; return ;;
      run.dir=*) printf '%s' "${word#run.dir=}"; return ;;
    esac
  done
  echo "give run.dir=... for the stage $1" >&2
  return 2
}

freeze() { # RUN_DIR STAGE key=value ...: code and configuration into the run folder, once
  local run_dir=$1
  shift
  if [ -e "$run_dir/code/COMMIT" ]; then
    if [ "$(head -n1 "$run_dir/code/COMMIT")" != "$commit" ] || [ -n "$changes" ]; then
      echo "$run_dir was submitted with other code ($(head -n1 "$run_dir/code/COMMIT")): it goes on with that code;" \
        "delete $run_dir/code to take today's" >&2
    fi
    return
  fi
  mkdir -p "$run_dir/code.part"
  # What git tracks, and new files it does not ignore (there are none unless --allow-dirty).
  git ls-files -z --cached --others --exclude-standard |
    tar --create --exclude="$run_dir" --ignore-failed-read --null --files-from=- |
    tar --extract --directory="$run_dir/code.part"
  printf '%s\n%s\n' "$commit" "$changes" > "$run_dir/code.part/COMMIT"
  mv "$run_dir/code.part" "$run_dir/code"
  (source slurm/site.sh && site_setup && use_frozen_code "$run_dir/code" &&
    "${site_container[@]}" python -m qa_train "$@" --cfg job --resolve > "$run_dir/submitted.yaml") ||
    { rm -rf "$run_dir/code"; echo "these settings cannot be resolved: see above" >&2; return 2; }
}

use_frozen_code() { # without PYTHONSAFEPATH, python -m would find the checkout's package first
  PYTHONPATH=$(cd "$1" && pwd)${PYTHONPATH:+:$PYTHONPATH}
  export PYTHONPATH PYTHONSAFEPATH=1
}

submit() { # STAGE key=value ...: prints the job's number
  local run_dir options=("${sbatch_options[@]}")
  run_dir=$(run_dir_of "$@")
  freeze "$run_dir" "$@"
  [ -z "$after" ] || options+=("--dependency=afterok:$after" "--kill-on-invalid-dep=yes")
  options+=("--job-name=$1-$(basename "$run_dir")" "--export=ALL,QA_TRAIN_CODE=$(cd "$run_dir/code" && pwd)")
  sbatch --parsable "${options[@]}" slurm/train.sbatch "$@"
}

stage=()
for word in "$@" --; do
  if [ "$word" != -- ]; then
    stage+=("$word")
    continue
  fi
  [ "${#stage[@]}" -gt 0 ] || { echo "a stage is missing between two --" >&2; exit 2; }
  # A cluster's name may follow the number.
  job=$(submit "${stage[@]}")
  after=${job%%;*}
  echo "job $after: ${stage[*]}"
  stage=()
done
