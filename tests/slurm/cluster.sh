#!/usr/bin/env bash
# A throw-away Slurm cluster of two nodes on one machine, for tests of slurm/train.sbatch.
#
#   cluster.sh check              says why a cluster cannot be started here, and fails; else says nothing
#   cluster.sh start|stop STATE   STATE: an absolute path of at most 80 characters
#   cluster.sh kill|boot STATE    the second node loses its power; it comes back (with namespaces only)
#
# After start, SLURM_CONF=STATE/slurm.conf makes sbatch and the rest talk to it. Each node lives in a network
# namespace of its own, with its own name and address. Where namespaces are not allowed, both nodes share the
# machine's address and names, which tests less: rendezvous by node name is then always on this machine.
set -euo pipefail

net=10.213.7
bridge=qatrain0
nodes=(qatrain1 qatrain2)
controller_port=26817
node_port=26818

check() {
  local tool
  for tool in slurmctld slurmd sbatch munged mungekey; do
    command -v "$tool" >/dev/null || { echo "$tool is not on PATH"; return 1; }
  done
  [ "$(id -u)" = 0 ] || { echo "only root can start slurmd for its nodes"; return 1; }
  # slurmd insists on it, even with no cgroup plugin.
  grep -q ' /sys/fs/cgroup' /proc/mounts || { echo "/sys/fs/cgroup is not mounted"; return 1; }
}

create_namespaces() {
  command -v ip >/dev/null && command -v nsenter >/dev/null && ip link add "$bridge" type bridge &&
    ip netns add "${nodes[0]}" && ip netns add "${nodes[1]}"
}

create_network() {
  local i name
  ip addr add "$net.1/24" dev "$bridge"
  ip link set "$bridge" up
  { echo "127.0.0.1 localhost"; echo "$net.1 $(hostname)"; } > "$state/hosts"
  for i in "${!nodes[@]}"; do echo "$net.1$i ${nodes[i]}" >> "$state/hosts"; done
  for i in "${!nodes[@]}"; do
    name=${nodes[i]}
    ip link add "$name" type veth peer name eth0 netns "$name"
    ip link set "$name" master "$bridge" up
    ip -n "$name" link set lo up
    ip -n "$name" addr add "$net.1$i/24" dev eth0
    ip -n "$name" link set eth0 up
  done
}

delete_network() {
  local name pid
  for name in "${nodes[@]}"; do
    for pid in $(ip netns pids "$name" 2>/dev/null); do kill -9 "$pid" 2>/dev/null || true; done
    ip netns del "$name" 2>/dev/null || true
    ip link del "$name" 2>/dev/null || true
  done
  ip link del "$bridge" 2>/dev/null || true
}

write_config() {
  cat > "$SLURM_CONF" <<END
ClusterName=qatrain
SlurmctldHost=$(hostname)($1)
SlurmctldPort=$controller_port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job starts again one second after its credential has expired: two minutes by default.
AuthInfo=socket=$state/munge.sock,cred_expire=5
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd-%n.pid
StateSaveLocation=$state/controller
SlurmdSpoolDir=$state/spool-%n
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
# The nodes may have more CPUs than the machine.
SlurmdParameters=config_overrides
KillWait=5
# A dead node is noticed within some 20 s, instead of five minutes.
SlurmdTimeout=15
ReturnToService=2
END
  local i
  for i in "${!nodes[@]}"; do
    if [ "$1" = 127.0.0.1 ]; then
      echo "NodeName=${nodes[i]} NodeHostname=$(hostname) NodeAddr=$1 Port=$((node_port + i)) CPUs=2"
    else
      echo "NodeName=${nodes[i]} NodeAddr=$net.1$i Port=$node_port CPUs=2"
    fi
  done >> "$SLURM_CONF"
  echo "PartitionName=test Nodes=ALL Default=YES State=UP" >> "$SLURM_CONF"
}

start_munged() {
  # A private one, so that a munged of the machine is neither needed nor touched.
  mungekey --create --keyfile="$state/munge.key"
  munged --force --key-file="$state/munge.key" --socket="$state/munge.sock" --pid-file="$state/munged.pid" \
    --log-file="$state/munged.log" --seed-file="$state/munge.seed" 2>> "$state/start.log"
}

start_in_namespace() {
  # nsenter and not `ip netns exec`, which would hide /sys/fs/cgroup.
  nsenter --net="/run/netns/$1" unshare --uts --mount \
    sh -c 'hostname "$1"; mount --bind "$2/hosts" /etc/hosts; exec slurmd -f "$SLURM_CONF"' sh "$1" "$state"
}

wait_until_idle() {
  local _
  for _ in $(seq 150); do
    [ "$(sinfo -h -t idle -o %D 2>/dev/null | head -n1)" = 2 ] && return
    sleep 0.1
  done
  echo "the nodes are not idle after 15 s; see the logs in $state" >&2
  return 1
}

start() {
  local name
  mkdir -p "$state/controller"
  delete_network # what a killed run may have left
  if create_namespaces 2>> "$state/start.log"; then
    create_network
    write_config "$net.1"
    start_munged
    slurmctld -f "$SLURM_CONF"
    for name in "${nodes[@]}"; do start_in_namespace "$name"; done
  else
    delete_network
    # The ranks look up only the first node's name, which has to mean this machine.
    # ("localhost" will not do: Slurm puts the host name in its place.)
    nodes=("$(hostname)" "$(hostname)-b")
    write_config 127.0.0.1
    start_munged
    slurmctld -f "$SLURM_CONF"
    for name in "${nodes[@]}"; do slurmd -f "$SLURM_CONF" -N "$name"; done
  fi
  wait_until_idle
}

stop() {
  local pidfile pid _
  if [ -f "$state/slurmctld.pid" ]; then
    scancel --user=root 2>/dev/null || true # no job may outlive its node
    for _ in $(seq 100); do
      [ -z "$(squeue -h 2>/dev/null)" ] && break
      sleep 0.2
    done
  fi
  for pidfile in "$state"/*.pid; do
    pid=$(cat "$pidfile" 2>/dev/null) || continue
    kill "$pid" 2>/dev/null || continue
    timeout 10 tail --pid="$pid" -f /dev/null || kill -9 "$pid" 2>/dev/null || true
  done
  delete_network
}

in_namespaces() {
  [ -e "/run/netns/${nodes[1]}" ] || { echo "the nodes share this machine's network: none can be killed alone"; return 1; }
}

kill_node() {
  in_namespaces
  # Twice: a process may have started another one meanwhile.
  for _ in 1 2; do ip netns pids "${nodes[1]}" | xargs -r kill -9; done
}

boot_node() {
  in_namespaces
  start_in_namespace "${nodes[1]}"
}

action=${1:-}
state=${2:-}
export SLURM_CONF=$state/slurm.conf
case $action in
  check) check ;;
  start) start ;;
  stop) stop ;;
  kill) kill_node ;;
  boot) boot_node ;;
  *) echo "usage: $0 check | start STATE | stop STATE | kill STATE | boot STATE" >&2; exit 2 ;;
esac
