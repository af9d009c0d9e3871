#!/usr/bin/env bash
# A correction panel: drafts of a table go in, a person looks at each change, what was accepted goes back.
#
#   ./correction_panel.sh import MODEL [DB.]TABLE    once, and again after it was cut short
#   ./correction_panel.sh review TASK                item by item: a accept, r reject, e edit, s later, q enough
#   ./correction_panel.sh export TASK                as often as you like; a row changed meanwhile is left alone
#
# The table has the columns id, body and status. AI_WORKER_DB_URL says where AI Worker is.
set -euo pipefail

field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

import() {
  local task
  task=$(ai-worker import --table "$2" --column body --where "status = 'draft'" --context-columns status \
    --type correction --model "$1" --description 'Articles of a magazine' --key "drafts of $(date +%F)" --json | field id_task)
  ai-worker run --task "$task" >&2 || [ $? = 3 ]  # 3: some ended in ERROR; `ai-worker status` says why
  ai-worker results "$task" --format html --output "task-$task.html" >&2
  echo "$task"
}

review() {
  local item answer text
  while read -r item; do
    ai-worker review "$1" --after $((item - 1)) --limit 1
    read -r -p 'a/r/e/s/q? ' answer <&3 || return 0
    case $answer in
      a) ai-worker review "$1" "$item" accept ;;
      r) ai-worker review "$1" "$item" reject ;;
      e) read -r -p 'the text: ' text <&3 && ai-worker review "$1" "$item" accept --text "$text" ;;
      q) return 0 ;;
    esac
  done < <(ai-worker review "$1" --limit 1000 --json |
    python3 -c 'import json, sys; [print(item["id_task_item"]) for item in json.load(sys.stdin)["items"]]')
}

export_() {
  ai-worker export "$1" --dry-run || [ $? = 3 ]  # 3: some rows were changed meanwhile
  ai-worker export "$1"
}

case ${1-} in
  import) import "$2" "$3" ;;
  review) review "$2" 3<&0 ;;
  export) export_ "$2" ;;
  *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
