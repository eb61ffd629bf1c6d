# Sourced by the e2e scripts: named checks with deadlines, progress with elapsed time, and the counts at the end.
#
#   check "a sentence" COMMAND...        passes when the command does; its output is shown when it does not
#   until_true SECONDS COMMAND...        repeats the command until it succeeds; fails at the deadline
#   skip "a sentence" "why"              counted, and said
#   finish                               prints `N passed, N failed, N skipped`; its status is the run's
passed=0 failed=0 skipped=0 started=$SECONDS last_failures=()

say() { printf '%4ds  %s\n' $((SECONDS - started)) "$*"; }

check() {
  local check_sentence=$1 out; shift   # no short names here: what is checked reads its own variables through these
  if out=$("$@" 2>&1); then
    passed=$((passed + 1)); say "ok    $check_sentence${CHECK_DETAIL:+ ($CHECK_DETAIL)}"
  else
    failed=$((failed + 1)); last_failures+=("$check_sentence"); say "FAIL  $check_sentence"
    printf '%s\n' "$out" | tail -n 25 | sed 's/^/          | /'
    return 1
  fi
}

until_true() {
  local check_deadline=$((SECONDS + $1)) out; shift
  until out=$("$@" 2>&1); do
    if [ $SECONDS -ge $check_deadline ]; then printf '%s\nout of time: %s\n' "$out" "$*"; return 1; fi
    sleep 0.2
  done
  printf '%s\n' "$out"
}

skip() { skipped=$((skipped + 1)); say "SKIP  $1: $2"; }

finish() {
  local each
  for each in "${last_failures[@]}"; do echo "failed: $each"; done
  echo "$passed passed, $failed failed, $skipped skipped"
  [ "$failed" -eq 0 ]
}

equals() { [ "$1" = "$2" ] || { printf 'expected: %s\nfound:    %s\n' "$2" "$1"; return 1; }; }
