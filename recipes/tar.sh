#!/bin/sh
# Put images and files of a run's VMs into archives of GNU tar: tar.sh DIRECTORY [VM...]
#
# Each VM becomes DIRECTORY/VM-TIME.tar, with the time of the run; called .incomplete until it is whole.
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"
directory=${1:?where to put the archives}
shift

back_up() {
  archive="$directory/$1-$(taken "$1" %Y%m%dT%H%M%S).tar"
  # shellcheck disable=SC2086 # options are split
  tar --create --file "$archive.incomplete" --format=posix --sparse --acls --xattrs --numeric-owner \
    --anchored --exclude=image/raw ${RECIPE_OPTIONS:-} -C "$top/$1" image "$(files_of "$1")" &&
    mv "$archive.incomplete" "$archive"
}

mount_run
for_each_vm back_up "$@"
