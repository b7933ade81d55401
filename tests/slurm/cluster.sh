#!/usr/bin/env bash
# A real SLURM on one machine for the tests marked `slurm`: two nodes of two CPUs, no systemd, no GPU, no cgroups.
#   cluster.sh install     Debian's packages; as root
#   cluster.sh up DIR      starts munged, slurmctld and two slurmd; then: export SLURM_CONF=DIR/slurm.conf
#   cluster.sh down DIR    stops what `up DIR` started
# DIR must be reachable by the user munge, so not below a private home. Partitions: `low` is preempted by `high`. Several
# clusters can run side by side: each has free ports of its own.
set -euo pipefail

NODES=(node1 node2)
MARK="# test cluster of span-sparse in"

install_packages() {
    local tool missing=
    for tool in slurmctld slurmd sbatch munged; do command -v "$tool" >/dev/null || missing=1; done
    [ "$missing" ] || return 0
    apt-get update -qq
    # RUNLEVEL=1: no service is started
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        slurmctld slurmd slurm-client munge >/dev/null
}

# as many ports as asked for, which nobody uses now
free_ports() {
    python3 -c 'import socket, sys
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*[one.getsockname()[1] for one in sockets])' "$1"
}

write_configuration() {
    local dir="$1" host ports
    host=$(hostname -s)
    read -ra ports <<<"$(free_ports $((1 + ${#NODES[@]})))"
    cat >"$dir/slurm.conf" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/pid/slurmctld
SlurmdPidFile=$dir/pid/slurmd-%n
SlurmctldLogFile=$dir/log/slurmctld
SlurmdLogFile=$dir/log/slurmd-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=5,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
MinJobAge=86400
PartitionName=low  Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1  PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=ALL Default=NO  MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
    local index
    for index in "${!NODES[@]}"; do
        echo "NodeName=${NODES[index]} NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[index + 1]} CPUs=2" \
            "RealMemory=2000" >>"$dir/slurm.conf"
    done
}

up() {
    local dir="$1" node
    rm -rf "$dir"/{state,spool,pid,log,munge}
    mkdir -p "$dir"/{state,spool,pid,log}
    chmod 755 "$dir"
    install -d -o munge -g munge -m 0755 "$dir/munge"
    [ -s /etc/munge/munge.key ] || /usr/sbin/mungekey --create
    runuser -u munge -- /usr/sbin/munged --socket="$dir/munge/socket" --pid-file="$dir/munge/pid" \
        --log-file="$dir/munge/log" --seed-file="$dir/munge/seed"
    write_configuration "$dir"
    # the first node is where a job's processes meet, so its name must resolve
    echo "127.0.0.1 ${NODES[*]} $MARK $dir" >>/etc/hosts
    export SLURM_CONF="$dir/slurm.conf"
    /usr/sbin/slurmctld
    for node in "${NODES[@]}"; do /usr/sbin/slurmd -N "$node"; done
    for _ in $(seq 150); do
        [ "$(sinfo --noheader --Node --partition=low --format=%t 2>/dev/null | grep -c '^idle$')" = ${#NODES[@]} ] && return
        sleep 0.2
    done
    echo "the nodes did not become idle; see $dir/log" >&2
    exit 1
}

# kill a daemon by its pid file and wait; a zombie (nobody reaps in some containers) has ended
stop() {
    local pid
    [ -s "$1" ] && pid=$(cat "$1") && kill "$pid" 2>/dev/null || return 0
    for _ in $(seq 100); do
        grep -q '^State:[[:space:]]*[^Z[:space:]]' "/proc/$pid/status" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
}

down() {
    local dir="$1" file
    export SLURM_CONF="$dir/slurm.conf"
    scancel --quiet --user=root 2>/dev/null || true
    for file in "$dir"/pid/slurmd-* "$dir/pid/slurmctld" "$dir/munge/pid"; do stop "$file"; done
    # not `sed -i`, which renames: /etc/hosts may be a mount
    grep -vF "$MARK $dir" /etc/hosts >"$dir/hosts" || true
    cat "$dir/hosts" >/etc/hosts
}

case "${1:-}" in
install) install_packages ;;
up | down) "$1" "$(realpath -m "${2:?folder}")" ;;
*) sed -n '2,7p' "${BASH_SOURCE[0]}" >&2 && exit 2 ;;
esac
