#!/usr/bin/env python3
"""Writes the seeds of fuzz/qemu_stream.cpp into fuzz/corpus/qemu_stream: streams, answers and heads, right and refused."""
import pathlib
import struct

out = pathlib.Path(__file__).parent / "corpus/qemu_stream"
out.mkdir(parents=True, exist_ok=True)
STREAM, REPLIES, HEAD = range(3)


def seed(name, kind, data): (out / name).write_bytes(bytes([kind, 40]) + data)
def named(text): return bytes([len(text)]) + text.encode()


begin = struct.pack(">II", 0x5145564D, 3) + b"\x07" + struct.pack(">I", 3) + b"q35"
capability = b"\x05" + named("configuration/capabilities") + struct.pack(">II", 1, 1) + named("x-ignore-shared")
def start(name="ram"): return b"\x01" + struct.pack(">I", 3) + named(name) + struct.pack(">II", 0, 4)
eos = struct.pack(">Q", 0x10) + b"\x7e" + struct.pack(">I", 3)
def table(extra=b""):
    return struct.pack(">Q", 12288 | 4) + named("pc.ram") + struct.pack(">Q", 8192) + extra + named("vga") + struct.pack(">Q", 4096) + extra + eos
def section(mark, records): return bytes([mark]) + struct.pack(">I", 3) + records + eos
def page(offset, block, value=1):
    flag = 8 | (0 if block else 0x20)
    return struct.pack(">Q", offset | flag) + (named(block) if block else b"") + bytes([value]) * 4096
def zero(offset, block, value=0): return struct.pack(">Q", offset | 2) + named(block) + bytes([value])
def devices(text): return text + b"\x00\x06" + struct.pack(">I", 2) + b"{}"


whole = begin + start() + table() + section(2, page(0, "pc.ram") + page(4096, "")) + section(3, zero(0, "vga", 7))
seed("stream", STREAM, whole + devices(b"\x04timer"))
seed("stream_without_description", STREAM, whole + b"\x04timer\x00")
seed("stream_cut", STREAM, whole)
seed("stream_ignores_shared", STREAM, begin + capability + start() + table(bytes(8)) + section(3, zero(0, "vga")) + devices(b"x"))
seed("stream_command", STREAM, begin + b"\x08" + struct.pack(">HH", 11, 0) + start() + table())
seed("stream_block", STREAM, begin + start("block"))
seed("stream_compressed", STREAM, begin + start() + table() + section(2, struct.pack(">Q", 0x100)))


def message(kind, body): return struct.pack(">HH", kind, len(body)) + body


bits = message(5, named("vga")) + struct.pack(">Q", 8) + bytes(range(8)) + struct.pack(">Q", 0x0123456789ABCDEF)
seed("replies", REPLIES, message(2, bytes(4)) + message(3, struct.pack(">QI", 4096, 4096) + named("pc.ram"))
     + message(4, struct.pack(">QI", 0, 8192)) + bits + message(6, bytes(4)) + message(1, bytes(4)))
seed("replies_too_many_bits", REPLIES, message(5, named("vga")) + struct.pack(">Q", 1 << 40))


def head(blocks, devices, length):
    data = b"uffdqemu" + struct.pack("<IIQQI", 1, len(blocks), devices, length, 3) + b"q35"
    for place, size, page_size, name in blocks: data += struct.pack("<QQQI", place, size, page_size, len(name)) + name.encode()
    return data


seed("head", HEAD, head([(65536, 8192, 4096, "pc.ram"), (131072, 2 << 20, 2 << 20, "huge")], 4 << 20, 1000))
seed("head_overlaps", HEAD, head([(65536, 131072, 4096, "pc.ram"), (131072, 8192, 4096, "rom")], 4 << 20, 1000))
