# The first process of a "machine" of the end-to-end tests: machine.sh NAME DIRECTORY
#
# It runs in namespaces of its own and makes what a real machine has for itself: a name, writable system folders
# (kept in DIRECTORY) and the root of the cgroups. Then it only collects orphans until it is killed.
set -eu
name=$1 directory=$2
hostname "$name"
mount --make-rprivate /

# The same hierarchies as outside; in this cgroup namespace their root is the machine's own cgroup.
cgroups=$directory/cgroup
mkdir -p "$cgroups"
grep ' - cgroup' /proc/self/mountinfo | while read -r _ _ _ _ at rest; do
    set -- ${rest##* - }
    options=$(echo "$3" | sed 's/^r[wo],\{0,1\}//; s/^xattr,//; s/^name=/none,name=/')
    if [ "$at" = /sys/fs/cgroup ]; then
        mount -t cgroup2 cgroup2 "$cgroups"
        mkdir "$cgroups/init"
        echo $$ > "$cgroups/init/cgroup.procs"
        break
    fi
    [ -e "$cgroups/mounted" ] || { mount -t tmpfs tmpfs "$cgroups"; touch "$cgroups/mounted"; }
    mkdir "$cgroups/${at##*/}"
    if [ "$1" = cgroup2 ]; then
        mount -t cgroup2 cgroup2 "$cgroups/${at##*/}"
    else
        mount -t cgroup -o "$options" cgroup "$cgroups/${at##*/}"
    fi
done
mount --rbind "$cgroups" /sys/fs/cgroup

for folder in var/lib var/log opt; do
    mkdir -p "$directory/$folder"
    mount --bind "$directory/$folder" "/$folder"
done
mkdir -p "$directory/etc/upper" "$directory/etc/work"
mount -t overlay -o "lowerdir=/etc,upperdir=$directory/etc/upper,workdir=$directory/etc/work" overlay /etc
mount -t tmpfs tmpfs /run

echo ready
while :; do
    sleep 3600 &
    wait $!
done
