"""A Slurm of the tests' own: munge, a controller and two node daemons on 127.0.0.1, in a temporary folder."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
FIRST_PORT = 16817
CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=3
AccountingStorageType=accounting_storage/none
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=4 RealMemory=8000 State=UNKNOWN
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=4 RealMemory=8000 State=UNKNOWN
PartitionName=tests Nodes=node1,node2 Default=YES MaxTime=INFINITE DefaultTime=00:10:00 State=UP
"""


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs the daemons and points SLURM_CONF to them; skipped with a message where they are not installed."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing or os.geteuid():
        pytest.skip(f"no Slurm here: {', '.join(missing) or 'root is needed'} (apt-get install slurm-wlm munge)")
    root = tmp_path_factory.mktemp("slurm")
    root.chmod(0o755)
    for parent in root.parents:  # munged refuses a socket below a folder that only its owner may enter
        if parent.stat().st_uid == os.geteuid() and parent != parent.parent:
            parent.chmod(parent.stat().st_mode | 0o055)
    (root / "state").mkdir()
    for node in ("node1", "node2"):
        (root / f"spool.{node}").mkdir()
    (root / "munge").mkdir(mode=0o755)
    key = root / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    configuration = root / "slurm.conf"
    base = FIRST_PORT + 10 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))  # each worker of pytest has a Slurm
    ports = {"port": base, "first": base + 1, "second": base + 2}
    configuration.write_text(CONFIGURATION.format(root=root, host=platform.node().split(".")[0], **ports))
    munge = {name: root / "munge" / name for name in ("socket", "pid", "log", "seed")}
    started = [
        ["munged", f"--key-file={key}", f"--socket={munge['socket']}", f"--pid-file={munge['pid']}", f"--log-file={munge['log']}",
         f"--seed-file={munge['seed']}", "--force"],
        ["slurmctld", "-f", str(configuration)],
        ["slurmd", "-f", str(configuration), "-N", "node1"],
        ["slurmd", "-f", str(configuration), "-N", "node2"],
    ]  # fmt: skip
    os.environ["SLURM_CONF"] = str(configuration)
    try:
        for command in started:
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        _wait_for_nodes(root)
        yield
    finally:
        subprocess.run(["scancel", "--user=root", "--quiet"], check=False, timeout=60)
        for file in [root / "slurmctld.pid", root / "slurmd.node1.pid", root / "slurmd.node2.pid", munge["pid"]]:
            if file.exists():
                with suppress(ProcessLookupError):
                    os.kill(int(file.read_text()), signal.SIGTERM)
        os.environ.pop("SLURM_CONF", None)


def _wait_for_nodes(root: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        states = subprocess.run(["sinfo", "-h", "-N", "-o", "%t"], capture_output=True, text=True, check=False, timeout=60).stdout.split()
        if states == ["idle", "idle"]:
            return
        assert time.monotonic() < deadline, (root / "slurmctld.log").read_text()[-2000:]
        time.sleep(0.1)
