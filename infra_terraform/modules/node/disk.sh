#!/bin/bash
# A data disk: formatted once, when it is blank, and mounted by its id ever after. What is on it already is never
# overwritten, whoever put it there.
set -euo pipefail

FILE_SYSTEM_LABEL=cryptostream

file_system_bytes() {
    dumpe2fs -h "$1" 2>/dev/null | awk -F: '/^Block count/ {count = $2} /^Block size/ {size = $2} END {print count * size}'
}

# check DEVICE OPTION…: make good what a crash left; what a person has to decide is left to a person.
check() {
    local device=$1
    shift
    if ! { e2fsck -p "$@" "$device" || [ $? -le 1 ]; }; then
        echo "error: $device: its file system is damaged, and not mounted. Look at it (e2fsck $device), or take a" \
            "snapshot (docs/operations.md)" >&2
        return 1
    fi
}

# mount_data DEVICE FOLDER
mount_data() {
    local device=$1 folder=$2 found label
    if [ ! -b "$device" ] && [ ! -f "$device" ]; then
        echo "error: $device: there is no such disk; is it attached under this name?" >&2
        return 1
    fi
    if mountpoint -q "$folder"; then
        echo "$folder: is mounted"
        return 0
    fi
    # Looks for any signature: file systems, partition tables, RAID, LVM.
    found=$(wipefs --noheadings --output TYPE "$device" | sort -u | tr '\n' ' ')
    if [ -z "$found" ]; then
        # No signature, and still not ours to format unless it is blank: the first MiB, and what is a GiB in.
        if ! cmp -s -n 1048576 "$device" /dev/zero; then
            echo "error: $device: holds data of no kind that we know; it is left alone. Wipe it if it is blank to you." >&2
            return 1
        fi
        echo "$device: is blank, making a file system"
        mkfs.ext4 -q -L "$FILE_SYSTEM_LABEL" -m 0 "$device"
    else
        label=$(blkid --match-tag LABEL --output value "$device" || true)
        if [ "$label" != "$FILE_SYSTEM_LABEL" ]; then
            echo "error: $device: holds something else (${found% }, label '${label}'); it is left alone." \
                "Attach a blank disk, or label ours: e2label $device $FILE_SYSTEM_LABEL" >&2
            return 1
        fi
        check "$device" || return 1
        if [ "$(file_system_bytes "$device")" -lt $(($(blockdev --getsize64 "$device") - 1048576)) ]; then
            echo "$device: has grown, and the file system with it"
            check "$device" -f || return 1
            resize2fs "$device"
        fi
    fi
    mkdir -p "$folder"
    mount -o defaults,noatime "$device" "$folder"
    echo "$folder: mounted from $device"
}
