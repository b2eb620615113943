"""A real Slurm of one node, started and ended here: munge, slurmctld and slurmd from Debian."""

import importlib.util
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel")
# The node claims more than the machine has, so that the committed profile fits as it stands.
CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={next_port}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={at}/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={at}/state
SlurmdSpoolDir={at}/spool
SlurmctldPidFile={at}/slurmctld.pid
SlurmdPidFile={at}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MinJobAge=86400
SlurmdParameters=config_overrides
GresTypes=gpu
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=64 RealMemory=1000000 Gres=gpu:8 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=2-0 State=UP
"""


def why_not() -> str:
    """Why no Slurm can be started here; empty if it can."""
    if not importlib.util.find_spec("snakemake_executor_plugin_slurm"):
        return "no snakemake-executor-plugin-slurm"
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        return f"no {', '.join(missing)}: apt install munge slurmctld slurmd slurm-client"
    return "" if os.geteuid() == 0 else "slurmd starts jobs as root alone"


@contextmanager
def one_node(at: Path) -> Iterator[dict[str, str]]:
    """Run a cluster whose files lie in `at`; yields the environment by which it is found."""
    for name in ("bin", "munge", "state", "spool"):
        (at / name).mkdir(parents=True, mode=0o700)
    (at / "munge" / "key").write_bytes(os.urandom(1024))
    (at / "munge" / "key").chmod(0o600)
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        ports = {"port": one.getsockname()[1], "next_port": two.getsockname()[1]}
    host = socket.gethostname().split(".")[0]
    (at / "slurm.conf").write_text(CONF.format(at=at, host=host, **ports), encoding="utf-8")
    for number in range(8):  # a device that is none stands for a card
        os.mknod(at / f"gpu{number}", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    (at / "gres.conf").write_text(f"Name=gpu File={at}/gpu[0-7]\n", encoding="utf-8")
    # The plug-in's jobs forget SLURM_CONF before they call srun: a wrapper tells it again.
    env = os.environ | {"SLURM_CONF": str(at / "slurm.conf")}
    env["PATH"] = f"{at}/bin:{env['PATH']}"
    told = f'#!/bin/sh\nSLURM_CONF="{at}/slurm.conf" exec {shutil.which("srun")} "$@"\n'
    (at / "bin" / "srun").write_text(told, encoding="utf-8")
    (at / "bin" / "srun").chmod(0o755)
    munge = [f"--{name}-file={at}/munge/{name}" for name in ("key", "pid", "log", "seed")]
    munge = ["munged", "--force", "--foreground", f"--socket={at}/munge/socket", *munge]
    commands = munge, ["slurmctld", "-D"], ["slurmd", "-D"]
    daemons = []
    try:
        for command in commands:
            with (at / f"{command[0]}.out").open("wb") as out:
                daemons.append(subprocess.Popen(command, env=env, stdout=out, stderr=out))
            time.sleep(1)
        ask = ["sinfo", "--noheader", "--format=%t"]
        for _ in range(60):
            told = subprocess.run(ask, env=env, capture_output=True, text=True, check=False).stdout
            if told.strip() == "idle":
                break
            time.sleep(0.5)
        else:
            raise RuntimeError(f"no idle node: {told} {(at / 'slurmd.out').read_text()[-2000:]}")
        yield env
    finally:
        everything = ["scancel", "--user", "root", "--full"]
        subprocess.run(everything, env=env, capture_output=True, check=False)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
