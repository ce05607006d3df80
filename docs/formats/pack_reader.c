/* Reads packs as docs/formats/pack.md describes them, with libzstd and libxxhash and nothing of uffda:
 *
 *   cc -O2 pack_reader.c -o pack_reader -lzstd -lxxhash
 *   pack_reader PACK [BASE [BASE OF THE BASE ...]] > CONTENTS
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>

enum { HEADER = 256, INDEX_HEAD = 32, ENTRY = 32, MAX_FRAMES = 1 << 24, MAX_DEPTH = 64 };
enum kind { ZERO, ZSTD, RAW, DUPLICATE, BASE };

struct pack {
  FILE *file;
  unsigned char *index;
  uint64_t index_at, size, frames;
  uint32_t frame_size;
};

static void die(const char *why, uint64_t where) {
  fprintf(stderr, "pack_reader: %s (%llu)\n", why, (unsigned long long)where);
  exit(1);
}

static uint64_t number(const unsigned char *at, int bytes) {
  uint64_t value = 0;
  while (bytes-- > 0) value = value << 8 | at[bytes];
  return value;
}

static int is_checksum(const unsigned char *expected, const void *bytes, size_t size) {
  XXH128_canonical_t sum;
  XXH128_canonicalFromHash(&sum, XXH3_128bits(bytes, size));
  return memcmp(sum.digest, expected, 16) == 0;
}

static void read_at(FILE *file, uint64_t at, void *to, size_t size) {
  if (fseeko(file, (off_t)at, SEEK_SET) != 0 || fread(to, 1, size, file) != size) die("cannot read at", at);
}

static void *allocate(size_t size) {
  void *memory = malloc(size);
  if (memory == NULL) die("no memory for bytes", size);
  return memory;
}

static void open_pack(struct pack *pack, const char *path) {
  unsigned char head[HEADER];
  uint64_t file_size, length;
  pack->file = fopen(path, "rb");
  if (pack->file == NULL || fseeko(pack->file, 0, SEEK_END) != 0) die(path, 0);
  file_size = (uint64_t)ftello(pack->file);
  read_at(pack->file, 0, head, HEADER);
  if (memcmp(head, "uffdpack", 8) != 0) die("not a pack", 0);
  if (number(head + 8, 4) != 1) die("of version", number(head + 8, 4));
  if (!is_checksum(head + 240, head, 240)) die("the header is damaged", 0);
  if (number(head + 16, 8) != file_size) die("the file has another size", file_size);
  pack->index_at = number(head + 32, 8);
  length = number(head + 40, 8);
  if (pack->index_at > file_size || length > file_size - pack->index_at || length < INDEX_HEAD) die("no index", length);
  pack->index = allocate(length);
  read_at(pack->file, pack->index_at, pack->index, length);
  if (!is_checksum(head + 48, pack->index, length)) die("the index is damaged", 0);
  pack->size = number(pack->index, 8);
  pack->frame_size = (uint32_t)number(pack->index + 8, 4);
  if (pack->frame_size < 4096 || pack->frame_size > 1 << 20) die("frame size", pack->frame_size);
  pack->frames = pack->size / pack->frame_size + (pack->size % pack->frame_size != 0);
  if (pack->frames > MAX_FRAMES || length != INDEX_HEAD + pack->frames * ENTRY) die("length of the index", length);
}

static uint32_t length_of(const struct pack *pack, uint64_t frame) {
  uint64_t left = pack->size - frame * pack->frame_size;
  return left < pack->frame_size ? (uint32_t)left : pack->frame_size;
}

/* The first of `packs` is the one with the frame; the others are its bases. */
static void read_frame(const struct pack *packs, int count, uint64_t frame, unsigned char *contents,
                       unsigned char *stored) {
  const struct pack *pack = packs;
  const unsigned char *wanted = pack->index + INDEX_HEAD + frame * ENTRY, *entry = wanted;
  uint32_t length = length_of(pack, frame), bytes;
  uint64_t place;
  for (;;) { /* to where it is stored: at most one duplicate in each pack */
    place = number(entry, 8);
    if (entry[12] != DUPLICATE && entry[12] != BASE) break;
    if (entry[12] == BASE && ++pack == packs + count) die("the base is missing of frame", frame);
    if (place >= pack->frames || length_of(pack, place) != length) die("leads nowhere: frame", frame);
    if (entry[12] == DUPLICATE && place >= (uint64_t)(entry - pack->index - INDEX_HEAD) / ENTRY) die("leads on: frame", frame);
    entry = pack->index + INDEX_HEAD + place * ENTRY;
  }
  bytes = (uint32_t)number(entry + 8, 4);
  if (entry[12] == ZERO) {
    memset(contents, 0, length);
    if (entry != wanted) die("leads to zeroes: frame", frame);
    return;
  }
  if (bytes > length || place > pack->index_at || bytes > pack->index_at - place) die("lies outside: frame", frame);
  read_at(pack->file, place, stored, bytes);
  if (entry[12] == RAW && bytes == length) {
    memcpy(contents, stored, length);
  } else if (entry[12] != ZSTD || ZSTD_decompress(contents, length, stored, bytes) != length) {
    die("is damaged: frame", frame);
  }
  if (!is_checksum(wanted + 16, contents, length)) die("its checksum differs: frame", frame);
}

int main(int argc, char **argv) {
  static struct pack packs[MAX_DEPTH];
  unsigned char *contents, *stored;
  int count = argc - 1;
  if (count < 1 || count > MAX_DEPTH) die("write: pack_reader PACK [BASE ...]", 0);
  for (int i = 0; i < count; ++i) {
    open_pack(&packs[i], argv[i + 1]);
    if (i == 0) continue;
    if (packs[i].frame_size != packs[0].frame_size) die("a base with another frame size", packs[i].frame_size);
    if (!is_checksum(packs[i - 1].index + 16, packs[i].index, INDEX_HEAD + packs[i].frames * ENTRY))
      die("another base than the one that it was made from", (uint64_t)i);
  }
  contents = allocate(packs[0].frame_size);
  stored = allocate(packs[0].frame_size);
  for (uint64_t frame = 0; frame < packs[0].frames; ++frame) {
    uint32_t length = length_of(&packs[0], frame);
    read_frame(packs, count, frame, contents, stored);
    if (fwrite(contents, 1, length, stdout) != length) die("cannot write frame", frame);
  }
  return fflush(stdout) == 0 ? 0 : 1;
}
