# Runs the scripts that come over the machine's channel, one after the other.
import json, os, subprocess, tempfile, time

PORT = "/dev/vport0p1"
for module in ("virtio_pci", "virtio_console"):
    subprocess.run(["modprobe", module], check=True)
if not os.path.ismount("/payload"):
    subprocess.run(["mount", "-o", "ro", "/dev/nvme1n1", "/payload"], check=True)
while not os.path.exists(PORT):
    time.sleep(0.05)
port = os.open(PORT, os.O_RDWR)


def say(value):
    # A line before it ends what another boot left half said.
    data = ("\n" + json.dumps(value) + "\n").encode()
    while data:
        data = data[os.write(port, data):]


say({"boot": open("/proc/sys/kernel/random/boot_id").read().strip()})
rest = b""
while True:
    read = os.read(port, 65536)
    if not read:
        time.sleep(0.05)
        continue
    *lines, rest = (rest + read).split(b"\n")
    for line in lines:
        asked = json.loads(line)
        # Files, not pipes: what a script leaves running does not hold its end up.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            code = subprocess.run(["bash", "-c", asked["script"]], stdin=subprocess.DEVNULL, stdout=out, stderr=err).returncode
            text = {}
            for name, file in (("out", out), ("err", err)):
                file.seek(0)
                text[name] = file.read().decode(errors="replace")
        say({"id": asked["id"], "code": 128 - code if code < 0 else code, **text})
