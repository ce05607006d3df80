#!/usr/bin/env python3
"""Writes the seeds of fuzz/handoff.cpp into fuzz/corpus/handoff: each request of the protocol, right and slightly wrong."""
import pathlib
import struct

MAGIC, VERSION = 0x41444655, 1
OPEN, ATTACH, MAP, UNMAP, READ, DEVICE, WATCH, STATS = range(1, 9)
FIX_HEADER, WITH_DESCRIPTOR = 1, 2


def packet(kind, body=b"", flags=0, magic=MAGIC, version=VERSION, more=0):
    whole = struct.pack("<IHHII", magic, version, kind, 16 + len(body) + more, 0) + body
    return struct.pack("<BH", flags, len(whole)) + whole


def name(text):
    return text.encode().ljust(128, b"\0")


def token(first):
    return bytes([first]) + bytes(15)


attach = packet(ATTACH, struct.pack("<Q", 0x7F), WITH_DESCRIPTOR)
place = struct.pack("<QQQ", 0x7F0000000000, 1 << 20, 4096)
seeds = {
    "open": packet(OPEN, name("disk")),
    "open_unknown": packet(OPEN, name("other")),
    "open_unterminated": packet(OPEN, b"x" * 128),
    "attach_map_unmap": attach + packet(MAP, token(1) + name("disk") + place)
    + packet(UNMAP, token(1) + struct.pack("<QQ", 0x7F0000000000, 1 << 20)),
    "attach_without_descriptor": packet(ATTACH, struct.pack("<Q", 0)),
    "map_wrong_token": packet(MAP, token(9) + name("disk") + place),
    "read": packet(READ, name("disk") + struct.pack("<QII", 4096, 131072, 0)),
    "read_end": packet(READ, name("disk") + struct.pack("<QII", 999_990, 4096, 0)),
    "read_too_much": packet(READ, name("disk") + struct.pack("<QII", 0, 0xFFFFFFFF, 0)),
    "device_watch_stats": packet(DEVICE) + packet(WATCH) + packet(STATS),
    "descriptor_unasked": packet(STATS, flags=WITH_DESCRIPTOR),
    "fixed_header": packet(OPEN, name("disk"), FIX_HEADER, magic=0, version=9),
    "wrong_magic": packet(STATS, magic=1),
    "wrong_version": packet(STATS, version=2),
    "wrong_size": packet(STATS, more=8),
    "reply_as_request": packet(STATS | 0x8000),
}
corpus = pathlib.Path(__file__).parent / "corpus" / "handoff"
corpus.mkdir(parents=True, exist_ok=True)
for seed, content in seeds.items():
    (corpus / seed).write_bytes(content)
