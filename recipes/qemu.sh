#!/bin/sh
# Copy the disks of a run's VMs into qcow2 images over NBD: qemu.sh DIRECTORY [VM...]
#
# Each disk becomes DIRECTORY/VM/RUN/disk-KEY.qcow2, KEY being its device key in vCenter. The first
# is whole; a later one holds what changed since the VM's last, which is its backing file.
#
#   ATOLL_RUN  the run that is copied, or the beginning of its name; by default the newest
#   FULL       anything: make it whole again
set -eu
umask 077
directory=$(realpath -e "${1:?where to put the images}")
shift
server=""

say() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
}

finish() {
  status=$?
  trap - EXIT
  end_serving || status=$((status ? status : 1))
  rm -rf "$work"
  exit "$status"
}

# A line for each VM, or those named: the run, the VM's instance UUID, and its directory.
plan() {
  atoll runs --json >"$work/runs" || return
  python3 - "$work/runs" "${ATOLL_RUN:-latest}" "$@" <<'END'
import json, sys
from urllib.parse import quote

runs, wanted, named = json.load(open(sys.argv[1])), sys.argv[2], sys.argv[3:]
found = runs[-1:] if wanted == "latest" else [run for run in runs if run["run"].startswith(wanted)]
if len(found) != 1:
    sys.exit(f"The storage has {len(found) or 'no'} runs that fit {wanted}; see `atoll runs`.")
run, vms = found[0]["run"], found[0]["vms"]
for name in dict.fromkeys(named or [vm["name"] for vm in vms]):
    same = [vm["instance_uuid"] for vm in vms if vm["name"] == name]
    if not same:
        sys.exit(f"There is no VM {name} in run {run}.")
    folder = quote(name, safe=" ").replace(".", "%2E", name.startswith("."))
    for uuid in same:
        print(run, uuid, folder if len(same) == 1 else f"{folder}.{uuid}")
END
}

# serve UUID [--since RUN]: a VM's disks over NBD. The export ends with this script, even a killed one.
serve() {
  : >"$work/served"
  setpriv --pdeathsig TERM atoll export "$run" --vm "$@" --socket "$work/nbd" --json \
    >"$work/served" 9>&- &
  server=$!
  until grep -qx ']' "$work/served"; do
    kill -0 "$server" 2>/dev/null || { end_serving; return; }
    sleep 0.1
  done
}

# With the export's own status, which tells whether all that was asked for could be read.
end_serving() {
  ended=$server
  server=""
  [ -n "$ended" ] || return 0
  kill "$ended" 2>/dev/null || :
  wait "$ended"
}

# What is served: key, size, the context that tells what changed or -, address, name.
disks() {
  python3 -c 'import json, sys
for disk in json.load(open(sys.argv[1])):
    changed = disk["contexts"][1] if len(disk["contexts"]) > 1 else "-"
    name = disk["name"].replace(",", ",,")
    print(disk["key"], disk["size_bytes"], changed, disk["uri"], name)' "$work/served"
}

# copy KEY BYTES CONTEXT ADDRESS NAME: one disk into the current directory.
copy() {
  image=disk-$1.qcow2
  if [ "$3" = - ] || [ ! -e "../$last/$image" ]; then
    qemu-img convert -f raw -O qcow2 "$4" "$image"
    return
  fi
  qemu-img create -q -f qcow2 -F qcow2 -b "../$last/$image" "$image" "$2" || return
  nbdinfo --map="$3" "$4" >"$work/map" || return
  # Each range costs the start of a program: those less than 1 MiB apart are copied as one.
  awk '
    $3 != 1 { next }
    size && $1 - start - size < 1048576 { size = $1 + $2 - start; next }
    size { printf "%.0f %.0f\n", start, size }
    { start = $1; size = $2 }
    END { if (size) printf "%.0f %.0f\n", start, size }
  ' "$work/map" >"$work/ranges" || return
  nbd="file.driver=nbd,file.server.type=unix,file.server.path=$work/nbd,file.export=$5"
  while read -r offset size; do
    part="driver=raw,offset=$offset,size=$size"
    qemu-img convert -n --image-opts --target-image-opts "$part,$nbd" \
      "$part,file.driver=qcow2,file.file.filename=$image" || return
  done <"$work/ranges"
}

# back_up UUID FOLDER: all disks of a VM or nothing.
back_up() {
  home=$directory/$2
  if [ -d "$home/$run" ]; then
    say "$home/$run is there already."
    return
  fi
  last=""
  [ -n "${FULL:-}" ] || last=$(readlink "$home/last") || last=""
  rm -rf "$home/.part" && mkdir -p "$home/.part" || return
  if [ -n "$last" ] && ! serve "$1" --since "$last"; then
    say "what changed in $2 since $last is not known; it is copied whole."
    last=""
  fi
  [ -n "$last" ] || serve "$1" || return
  disks >"$work/disks" || return
  good=yes
  while read -r key size changed address name; do
    (cd "$home/.part" && copy "$key" "$size" "$changed" "$address" "$name") || good=""
  done <"$work/disks"
  # On the disk before it has its name: the next one stands on it.
  end_serving && [ -n "$good" ] && sync -f "$home/.part" &&
    mv -T "$home/.part" "$home/$run" && ln -sfnT "$run" "$home/last"
}

work=$(mktemp -d)
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
exec 9>"$directory/.lock"
flock -n 9 || { say "another recipe is at work on $directory."; exit 75; }
plan "$@" >"$work/plan"
failed=""
while read -r run uuid folder; do
  back_up "$uuid" "$folder" && continue
  end_serving || :
  rm -rf "$directory/$folder/.part"
  failed="$failed $folder"
done <"$work/plan"
[ -z "$failed" ] || { say "not backed up:$failed"; exit 1; }
