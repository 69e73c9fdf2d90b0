"""The start-up script's disk, on a real image: formatted when blank, kept after that, never overwritten."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.compose import ROOT

SCRIPT = ROOT / "infra_terraform" / "modules" / "node" / "disk.sh"
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
TOOLS = ("losetup", "mkfs.ext4", "blkid", "wipefs", "resize2fs", "mountpoint")
SIZE = 64 << 20


def _do_without(missing: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


class Boot:
    """A machine that finds an image as its data disk."""

    def __init__(self, image: Path, folder: Path) -> None:
        self.folder = folder
        self.device = run("losetup", "--find", "--show", str(image)).stdout.strip()

    def mount(self) -> subprocess.CompletedProcess[str]:
        return run(
            "bash", "-c", f'source "{SCRIPT}"; mount_data "{self.device}" "{self.folder}"', check=False
        )

    def off(self) -> None:
        run("umount", str(self.folder), check=False)
        run("losetup", "--detach", self.device)


def run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, check=check, capture_output=True, text=True, env={**os.environ, "PATH": PATH}
    )


@pytest.fixture
def boots(image: Path, tmp_path: Path) -> Iterator[list[Boot]]:
    """What was started and has to be switched off."""
    if missing := [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]:
        _do_without(f"not on this machine: {', '.join(missing)} (Debian: apt install e2fsprogs util-linux)")
    if os.geteuid() != 0:
        _do_without("only root may mount a disk image")
    if run("losetup", "--find", check=False).returncode != 0:
        _do_without("this machine has no loop devices")
    running: list[Boot] = []
    yield running
    for boot in running:
        boot.off()


def boot(image: Path, boots: list[Boot]) -> Boot:
    boots.append(Boot(image, image.parent / "data"))
    return boots[-1]


def off(boots: list[Boot]) -> None:
    boots.pop().off()


def test_the_first_boot_formats_and_the_second_keeps_the_data(image: Path, boots: list[Boot]) -> None:
    first = boot(image, boots)
    said = first.mount()
    assert said.returncode == 0, said.stderr
    assert "is blank, making a file system" in said.stdout
    (first.folder / "kafka").mkdir()
    (first.folder / "kafka" / "log").write_text("records")
    assert "is mounted" in first.mount().stdout  # the script runs again
    off(boots)
    second = boot(image, boots)
    said = second.mount()
    assert said.returncode == 0, said.stderr
    assert "making a file system" not in said.stdout
    assert (second.folder / "kafka" / "log").read_text() == "records"


def test_a_disk_from_a_snapshot_is_mounted_with_what_was_on_it(image: Path, boots: list[Boot]) -> None:
    """A snapshot is taken while the disk is in use: what was synced is there, and the journal made good."""
    first = boot(image, boots)
    first.mount()
    (first.folder / "log").write_text("records")
    run("sync", "--file-system", str(first.folder))
    (first.folder / "later").write_text("not on the disk yet")
    snapshot = image.parent / "restored" / "disk.img"
    snapshot.parent.mkdir()
    shutil.copy(image, snapshot)
    off(boots)
    restored = boot(snapshot, boots)
    said = restored.mount()
    assert said.returncode == 0, said.stderr
    assert "making a file system" not in said.stdout
    assert (restored.folder / "log").read_text() == "records"


def test_a_damaged_file_system_is_one_clear_line_and_left_as_it_is(image: Path, boots: list[Boot]) -> None:
    first = boot(image, boots)
    first.mount()
    (first.folder / "log").write_text("records")
    off(boots)
    # Where the files are described, behind the superblock; marked as in use, as after a crash.
    run("debugfs", "-w", "-R", "set_super_value state 0", str(image))
    found = run("dumpe2fs", str(image)).stdout
    table = int(found[found.index("Inode table at ") :].split()[3].split("-")[0])
    with image.open("r+b") as file:
        file.seek(table * int(found[found.index("Block size:") :].split()[2]))
        file.write(b"\xff" * 4096)
    second = boot(image, boots)
    said = second.mount()
    assert said.returncode != 0
    assert said.stderr.splitlines()[-1].startswith(f"error: {second.device}: its file system is damaged")
    assert "docs/operations.md" in said.stderr


def test_a_disk_that_grew_is_used_whole(image: Path, boots: list[Boot]) -> None:
    first = boot(image, boots)
    first.mount()
    before = shutil.disk_usage(first.folder).total
    off(boots)
    os.truncate(image, 2 * SIZE)
    second = boot(image, boots)
    assert second.mount().returncode == 0
    assert shutil.disk_usage(second.folder).total > 1.8 * before


@pytest.mark.parametrize(
    "make",
    [
        ("mkfs.ext4", "-q", "-L", "somebody", "{}"),
        ("mkfs.ext4", "-q", "{}"),
        ("mkswap", "-q", "{}"),
    ],
    ids=["another's file system", "one without a label", "swap"],
)
def test_a_foreign_file_system_is_never_overwritten(
    image: Path, boots: list[Boot], make: tuple[str, ...]
) -> None:
    run(*(part.format(image) for part in make))
    before = image.read_bytes()
    machine = boot(image, boots)
    said = machine.mount()
    assert said.returncode != 0
    assert said.stderr.count("\n") == 1
    assert "it is left alone" in said.stderr
    off(boots)
    assert image.read_bytes() == before


def test_data_without_a_file_system_is_never_overwritten(image: Path, boots: list[Boot]) -> None:
    with image.open("r+b") as file:
        file.seek(100_000)
        file.write(b"somebody's bytes")
    machine = boot(image, boots)
    said = machine.mount()
    assert said.returncode != 0
    assert "holds data of no kind that we know" in said.stderr
    off(boots)
    assert image.read_bytes()[100_000:100_016] == b"somebody's bytes"


def test_a_disk_that_is_not_attached_is_one_clear_line(tmp_path: Path) -> None:
    said = run("bash", "-c", f'source "{SCRIPT}"; mount_data /dev/nowhere "{tmp_path}"', check=False)
    assert said.returncode != 0
    assert "there is no such disk" in said.stderr
