#!/bin/sh
# Mirror images and files of a run's VMs with rsync: rsync.sh TARGET [VM...]
#
# TARGET, a directory or HOST:DIRECTORY, gets VM/image and VM/files. Of an image only what differs is
# written, in place, so that snapshots which keep older states there are small. Times are compared to
# the nanosecond: two runs may lie within a second.
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"
target=${1:?where to mirror to}
shift

back_up() {
  good=0
  # shellcheck disable=SC2086 # options are split
  rsync -aHAXS --numeric-ids --modify-window=-1 --delete --mkpath ${RECIPE_OPTIONS:-} \
    "$top/$1/$(files_of "$1")" "$target/$1/" || good=1
  # shellcheck disable=SC2086
  rsync -aS --modify-window=-1 --delete --mkpath --inplace --no-whole-file --exclude=/image/raw \
    ${RECIPE_OPTIONS:-} "$top/$1/image" "$target/$1/" || good=1
  return $good
}

mount_run
for_each_vm back_up "$@"
