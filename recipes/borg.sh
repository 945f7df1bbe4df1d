#!/bin/sh
# Back up images and files of a run's VMs with Borg: borg.sh [VM...]
#
# Each VM becomes an archive VM-NOW with the time of the run. BORG_REPO says where to, and BORG_PASSCOMMAND,
# such as `cat /etc/atoll/borg-password`, gives the passphrase; `borg init` makes the place, once.
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"
: "${BORG_REPO:?where to back up to}" "${BORG_PASSCOMMAND:?a command that prints its passphrase}"

back_up() (
  files=$(files_of "$1")
  cd "$top/$1" || exit
  # shellcheck disable=SC2086 # options are split
  borg create --sparse --timestamp "$top/$1/image" --exclude pp:image/raw ${RECIPE_OPTIONS:-} \
    "::$1-$(date +%Y-%m-%dT%H:%M:%S)" image "$files"
)

mount_run
for_each_vm back_up "$@"
