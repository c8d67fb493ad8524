"""The control plane itself: it listens on this machine only, and leaves no process behind."""

from pathlib import Path

import psutil
from control_plane import ControlPlane


def test_every_program_listens_on_127_0_0_1_only(cluster: ControlPlane) -> None:
    addresses = {
        name: {
            connection.laddr.ip
            for connection in psutil.Process(process.pid).net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        for name, process in cluster.processes.items()
    }

    assert addresses["kube-apiserver"]
    assert addresses["etcd"]
    assert set().union(*addresses.values()) == {"127.0.0.1"}


def test_it_stops_every_process_also_when_etcd_is_gone_first(tools: Path, tmp_path: Path) -> None:
    with ControlPlane(tools, tmp_path / "another") as started:
        processes = list(started.processes.values())
        assert {"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"} == started.processes.keys()
        assert "v1." in started.kubectl("version")
        started.processes["etcd"].kill()

    assert all(process.poll() is not None for process in processes)
    assert not any(psutil.pid_exists(process.pid) for process in processes)
