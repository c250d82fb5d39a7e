# What the array jobs share: one line of a list for every task.

# run_part LIST WORD...: qa-train WORD... with {} replaced by this task's line of LIST and {name} by the line's last
# path part without its ending.
run_part() {
  local list=$1 line name words=()
  shift
  [ -n "${SLURM_ARRAY_TASK_ID:-}" ] || { echo "submit it as an array: sbatch --array=1-\$(wc -l < $list) ..."; return 2; }
  line=$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$list") || return 2
  [ -n "$line" ] || { echo "$list has no line $SLURM_ARRAY_TASK_ID: array tasks count from 1"; return 2; }
  name=$(basename "$line")
  name=${name%%.*}
  local word
  for word in "$@"; do
    word=${word//\{name\}/$name}
    words+=("${word//\{\}/$line}")
  done
  echo "$(date +%T) task $SLURM_ARRAY_TASK_ID: qa-train ${words[*]}"
  "${site_container[@]}" qa-train "${words[@]}"
}

# open_site: the checkout's folder, its software.
open_site() {
  # Slurm runs a copy of the script, so the checkout is the folder sbatch was called from.
  cd "$SLURM_SUBMIT_DIR" || return 2
  [ -f slurm/site.sh ] || { echo "call sbatch from the checkout: slurm/site.sh is missing in $PWD"; return 2; }
  source slurm/site.sh
  site_setup || { echo "site_setup failed: adapt slurm/site.sh to this cluster"; return 2; }
}
