"""A Vagrant box for libvirt out of Debian packages alone: for where no box can be downloaded.

A normal Debian with its own kernel, ssh and networkd on one disk that boots by itself. A BIOS reads 446 bytes from the
disk's first sector (GRUB's boot.img), which read GRUB's core image from the sectors before the first partition; both
are put there as bytes, so neither a loop device nor a mount is needed.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from vagrant.vm.errors import PackageError, RootError
from vagrant.vm.images import size_of
from vagrant.vm.place import require, require_architecture, require_room, search_path
from vagrant.vm.tree import grow, key

NAME = "sallyport/debian12"
SYSTEM = "debian12"
ROOM_MEGABYTES = 12000
PACKAGES = (
    "linux-image-cloud-amd64", "initramfs-tools", "grub-pc-bin", "grub-common", "openssh-server", "sudo", "rsync",
    "dbus", "make",
)  # fmt: skip
SPARE_MEGABYTES = 4096
SECTOR = 512
FIRST_SECTOR = 2048
KEY_PLACES = (
    "usr/share/rubygems-integration/all/gems/vagrant-*/keys/vagrant.pub",
    "opt/vagrant/embedded/gems/gems/vagrant-*/keys/vagrant.pub",
)
_CORE = "boot/grub/core.img"

# Vagrant's well-known key lets it in the first time; it puts one of its own in its place then.
IN_BOX = """
useradd --create-home --shell /bin/bash vagrant
install -d -m 700 -o vagrant -g vagrant /home/vagrant/.ssh
echo '{key}' >/home/vagrant/.ssh/authorized_keys
chown vagrant: /home/vagrant/.ssh/authorized_keys
echo 'vagrant ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/vagrant
systemctl enable systemd-networkd ssh
# One lease for one card: without this a machine asks by its identity, which copies of a disk share.
printf '%s\\n' '[Match]' 'Name=eth*' '[Network]' DHCP=ipv4 '[DHCPv4]' ClientIdentifier=mac \\
    >/etc/systemd/network/99-dhcp.network
echo '/dev/vda1 / ext4 defaults 0 1' >/etc/fstab
mkdir -p /boot/grub
# Writable from the start: the machine makes an identity of its own at its first boot, and has no lease without one.
cat >/boot/grub/grub.cfg <<CFG
linux /vmlinuz root=/dev/vda1 rw console=ttyS0 net.ifnames=0 quiet
initrd /initrd.img
boot
CFG
grub-mkimage -O i386-pc -p '(hd0,msdos1)/boot/grub' -o /boot/grub/core.img biosdisk part_msdos ext2 linux normal boot
cp /usr/lib/grub/i386-pc/boot.img /boot/grub/boot.img
"""

DISK_FOR_LIBVIRT = """\
Vagrant.configure("2") do |config|
  config.vm.provider :libvirt do |libvirt|
    libvirt.disk_bus = "virtio"
  end
end
"""


def master_record(boot: bytes, sectors: int) -> bytes:
    """The first sector: GRUB's code and one bootable Linux partition of that many sectors, behind the core image."""
    entry = struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", FIRST_SECTOR, sectors)
    return boot[:440].ljust(446, b"\0") + entry + b"\0" * 48 + b"\x55\xaa"


def obtain(checkout: Path, cache: Path, say: Callable[[str], None]) -> Path:
    """Return the box's file, built when it is not there. Needs root to build."""
    box = cache / "boxes" / f"{SYSTEM}-{key(SYSTEM, checkout, IN_BOX)}.box"
    if box.exists():
        return box
    require_architecture()
    if os.geteuid() != 0:
        raise RootError("Building a box needs root.", hint="Run make box once as root, or through sudo.")
    box.parent.mkdir(exist_ok=True)
    require(["debootstrap", "mke2fs", "unshare", "qemu-img", "vagrant"])
    inside = IN_BOX.format(key=first_key())
    require_room(box.parent, ROOM_MEGABYTES, "building a box")
    say(f"building the box {NAME} (some minutes): {box}")
    with tempfile.TemporaryDirectory(prefix="box.", dir=box.parent) as folder:
        work = Path(folder)
        tree = grow(SYSTEM, checkout, work, say, packages=PACKAGES, more=inside)
        say("  disk image")
        raw, disk = work / "disk.raw", work / "box.img"
        gigabytes = disk_image(tree, raw)
        shutil.rmtree(tree)
        _call(["qemu-img", "convert", "-O", "qcow2", str(raw), str(disk)])
        raw.unlink()
        (work / "metadata.json").write_text(
            json.dumps({"provider": "libvirt", "format": "qcow2", "virtual_size": gigabytes})
        )
        (work / "Vagrantfile").write_text(DISK_FOR_LIBVIRT)
        with tarfile.open(work / "box", "w") as tar:
            for name in ("metadata.json", "Vagrantfile", "box.img"):
                tar.add(work / name, name)
        for old in box.parent.glob(f"{SYSTEM}-*.box"):
            old.unlink()
        (work / "box").rename(box)
    return box


def add(box: Path) -> None:
    """Tell Vagrant of the box, in place of one of that name."""
    _call(["vagrant", "box", "add", "--force", "--provider", "libvirt", "--name", NAME, str(box)])


def first_key() -> str:
    """Vagrant's well-known public key, from the Vagrant that is installed here."""
    for place in KEY_PLACES:
        for file in sorted(Path("/").glob(place)):
            return file.read_text().strip()
    raise PackageError("Vagrant's first key is not where it is known to be.", hint="Install Debian's package vagrant.")


def disk_image(tree: Path, disk: Path) -> int:
    """Make a disk that boots out of a root tree; return its size in whole GB."""
    boot, core = (tree / "boot/grub/boot.img").read_bytes(), (tree / _CORE).read_bytes()
    if len(core) > (FIRST_SECTOR - 1) * SECTOR:
        raise PackageError("GRUB's core image does not fit before the partition.", hint="Give it fewer modules.")
    gigabytes = (size_of(tree) + SPARE_MEGABYTES) // 1024 + 1
    sectors = (gigabytes << 30) // SECTOR - FIRST_SECTOR
    with disk.open("wb") as file:
        file.truncate(gigabytes << 30)
    offset = FIRST_SECTOR * SECTOR
    kilobytes = sectors * SECTOR // 1024
    features = f"offset={offset},lazy_itable_init=1"
    _call(["mke2fs", "-q", "-F", "-t", "ext4", "-E", features, "-d", str(tree), str(disk), f"{kilobytes}k"])
    with disk.open("r+b") as file:
        file.write(master_record(boot, sectors))
        file.write(core)
    return gigabytes


def _call(words: list[str]) -> None:
    done = subprocess.run(words, check=False, capture_output=True, text=True, env={**os.environ, "PATH": search_path()})
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise PackageError(f"{words[0]} failed while the box was made.", hint=f"It said: {last}")
