# qa-train completion for zsh: eval "$(qa-train completion zsh)"
_qa_train() {
  local -a found
  found=(${(f)"$(qa-train completion query "${(j: :)words[1,CURRENT]}" 2>/dev/null)"})
  if (( $#found )); then compadd -S '' -- $found; else _files; fi
}
compdef _qa_train qa-train
