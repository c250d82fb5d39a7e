# qa-train completion for bash: eval "$(qa-train completion bash)"
_qa_train() {
  local line=${COMP_LINE:0:COMP_POINT} word
  word=${line##* }
  mapfile -t COMPREPLY < <(qa-train completion query "$line" 2>/dev/null)
  # bash counts "=" as the end of a word: what stands before it is on the line already.
  if [[ $word == *=* && $COMP_WORDBREAKS == *=* ]]; then COMPREPLY=("${COMPREPLY[@]#"${word%%=*}="}"); fi
  if [[ ${COMPREPLY[0]} == *= ]]; then compopt -o nospace 2>/dev/null; fi
  return 0
}
complete -o default -F _qa_train qa-train
