#!/bin/sh
# Back up images and files of a run's VMs with restic: restic.sh [VM...]
#
# Each VM becomes a snapshot of its own, with the VM as its host and the time of the run as its
# time. RESTIC_REPOSITORY and RESTIC_PASSWORD_FILE say where to; `restic init` makes the place, once.
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"
: "${RESTIC_REPOSITORY:?where to back up to}" "${RESTIC_PASSWORD_FILE:?a file with its password}"

back_up() (
  files=$(files_of "$1")
  cd "$top/$1" || exit
  # shellcheck disable=SC2086 # options are split
  restic backup --host "$1" --time "$(taken "$1" '%F %T')" --exclude "$top/*/image/raw" \
    ${RECIPE_OPTIONS:-} image "$files"
)

mount_run
for_each_vm back_up "$@"
