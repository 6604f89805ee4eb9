#!/bin/bash
# Start a SLURM cluster of one controller and one node on this machine, for tests: start_slurm.sh FOLDER
#
# Everything that belongs to it (configuration, key, sockets, logs) lies in FOLDER, which should be new; nothing is
# read from or written to /etc. Needs Debian's packages: apt-get install -y slurm-wlm munge
# Works in containers too: no systemd, no cgroups; the daemons are started by hand, as the user who calls this.
# Use it with  export SLURM_CONF=FOLDER/slurm.conf PATH=FOLDER/bin:$PATH  and end it with  kill $(cat FOLDER/*.pid)
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin

folder=$(mkdir -p "$1" && cd "$1" && pwd)
for program in munged slurmctld slurmd sbatch; do
  command -v "$program" >/dev/null || { echo "$program is missing: apt-get install -y slurm-wlm munge" >&2; exit 2; }
done
umask 022
mkdir -p "$folder"/{state,spool,munge}
chmod 755 "$folder" "$folder/munge"
export SLURM_CONF=$folder/slurm.conf
name=$(hostname -s)
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

(umask 077 && head -c 128 /dev/urandom >"$folder/munge/key")
# --force: the folder of a test usually lies below /tmp, which everybody may write to.
munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munged.pid" \
  --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"

cat >"$SLURM_CONF" <<END
ClusterName=loopback
SlurmctldHost=$name(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=1,sched_min_interval=200000
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MinJobAge=3600
NodeName=$name NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(free -m | awk '/^Mem:/ {print $2}') State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefMemPerCPU=100 State=UP
END

# Snakemake's job steps clear SLURM_CONF before they call srun, which would then look in /etc.
mkdir -p "$folder/bin"
printf '#!/bin/sh\nSLURM_CONF=%q exec %q "$@"\n' "$SLURM_CONF" "$(command -v srun)" >"$folder/bin/srun"
chmod 755 "$folder/bin/srun"

slurmctld
slurmd
for _ in $(seq 60); do
  [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ] && { echo "export SLURM_CONF=$SLURM_CONF PATH=$folder/bin:\$PATH"; exit 0; }
  sleep 0.5
done
echo "SLURM did not come up in 30 s; see the logs in $folder" >&2
tail -n 5 "$folder"/slurm*.log >&2
exit 1
