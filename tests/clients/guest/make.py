# make.py VMLINUZ INIT OUT: OUT/vmlinux, the kernel itself, which QEMU starts without a BIOS (PVH); and OUT/initrd, with
# one file in it.
import bz2, gzip, lzma, os, subprocess, sys, zlib

def decompressed(image):
    for magic, unpack in ((b"\xfd7zXZ\0", lambda b: lzma.LZMADecompressor().decompress(b)),
                          (b"\x1f\x8b\x08", lambda b: zlib.decompressobj(31).decompress(b)),
                          (b"\x28\xb5\x2f\xfd", lambda b: subprocess.run(["zstd", "-dcq"], input=b, capture_output=True).stdout)):
        at = image.find(magic)
        while at >= 0:
            try: kernel = unpack(image[at:])
            except (lzma.LZMAError, zlib.error): kernel = b""
            if kernel.startswith(b"\x7fELF"): return kernel
            at = image.find(magic, at + 1)
    sys.exit("no kernel found in it")

def entry(name, mode, data=b"", device=(0, 0)):
    head = [0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0]
    text = b"070701" + b"".join(b"%08X" % field for field in head) + name.encode() + b"\0"
    pad = lambda b: b + bytes(-len(b) % 4)
    return pad(text) + pad(data)

vmlinuz, init, out = sys.argv[1:]
open(f"{out}/vmlinux", "wb").write(decompressed(open(vmlinuz, "rb").read()))
archive = entry("dev", 0o040755) + entry("dev/console", 0o020600, device=(5, 1))
archive += entry("init", 0o100755, open(init, "rb").read()) + entry("TRAILER!!!", 0)
open(f"{out}/initrd", "wb").write(gzip.compress(archive, mtime=0))
