# shellcheck shell=sh
# What the recipes have in common; they read this file, nobody runs it.
#
#   ATOLL_RUN       the run that is backed up, or the beginning of its name; by default the newest
#   ATOLL_MOUNT     where it is mounted, always the same place; by default /mnt/atoll-recipes
#   RECIPE_OPTIONS  more options for the backup program, split at blanks
set -eu
umask 077
run=${ATOLL_RUN:-latest}
top=${ATOLL_MOUNT:-/mnt/atoll-recipes}

say() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
}

# Under the lock whatever is mounted here is a recipe's. findmnt sees dead mounts as well.
unmount_run() {
  ! findmnt -n --mountpoint "$top" >/dev/null || atoll unmount "$top"
}

finish() {
  status=$?
  trap - EXIT
  unmount_run || status=$((status ? status : 1))
  exit "$status"
}

# Mount the run until the recipe ends, however it ends.
mount_run() {
  exec 9>"$top.lock"
  flock -n 9 || { say "another recipe is at work on $top."; exit 75; }
  unmount_run # of a recipe that was killed
  mkdir -p "$top"
  trap finish EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
  atoll mount "$run" "$top" --background 9>&-
}

# for_each_vm COMMAND [VM...]: the command with the directory's name of each VM, or of those named.
# One that fails stops no other, and makes the recipe fail in the end.
for_each_vm() {
  command=$1
  shift
  [ $# -gt 0 ] || set -- "$top"/*
  failed=""
  for vm; do
    vm=${vm##*/}
    if [ ! -d "$top/$vm/image" ]; then
      say "there is no VM $vm in this run."
    elif "$command" "$vm"; then
      continue
    fi
    failed="$failed $vm"
  done
  [ -z "$failed" ] || { say "not, or not wholly, backed up:$failed"; exit 1; }
}

# What to take besides a VM's image: the guest's own tree, or its volumes one by one where Atoll
# finds no root file system (Windows, a disk of data); volumes/not-read.txt says which it does not read.
files_of() {
  if [ -d "$top/$1/files/." ]; then
    echo files
  else
    say "$1 has no tree of files that Atoll reads; its image is backed up, and the volumes that can be read."
    echo volumes
  fi
}

# When the run was taken, as a local time in a given form.
taken() {
  date -r "$top/$1/image" "+$2"
}
