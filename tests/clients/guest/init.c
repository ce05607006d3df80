// The only program of the guest: a line protocol on the serial port. Memory that it fills has a word of its own at every
// place, so that a page that is old, of another place, or zero is found.
//
//   ping               -> pong
//   fill MIB SEED      -> filled PAGES
//   scan               -> scanned PAGES MICROSECONDS      one word of each page is read and checked
//   verify             -> bad WORDS of WORDS
//   random COUNT SEED  -> random BAD MICROSECONDS         COUNT words, anywhere
//   write PAGES SEED   -> wrote PAGES                     pages, anywhere, filled anew with the pattern
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { kPage = 4096, kWords = kPage / 8 };

static uint64_t* memory;
static uint64_t words, seed_of_all;

static uint64_t mix(uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdULL;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ULL;
  return x ^ x >> 33;
}
static uint64_t word_at(uint64_t i) { return mix(i + seed_of_all * 0x9e3779b97f4a7c15ULL) | 1; }

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void fill(uint64_t mib, uint64_t seed) {
  if (memory) munmap(memory, words * 8);
  words = mib << 17;
  seed_of_all = seed;
  memory = mmap(0, words * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    memory = 0;
    words = 0;
    printf("error no memory\n");
    return;
  }
  for (uint64_t i = 0; i < words; ++i) memory[i] = word_at(i);
  printf("filled %llu\n", (unsigned long long)(words / kWords));
}

static void scan(void) {
  const uint64_t start = now();
  uint64_t bad = 0;
  for (uint64_t i = 0; i < words; i += kWords) bad += ((volatile uint64_t*)memory)[i] != word_at(i);
  if (bad) printf("error %llu bad\n", (unsigned long long)bad);
  else printf("scanned %llu %llu\n", (unsigned long long)(words / kWords), (unsigned long long)(now() - start));
}

static void verify(void) {
  uint64_t bad = 0;
  for (uint64_t i = 0; i < words; ++i) bad += memory[i] != word_at(i);
  printf("bad %llu of %llu\n", (unsigned long long)bad, (unsigned long long)words);
}

static void look_around(uint64_t count, uint64_t seed) {
  const uint64_t start = now();
  uint64_t bad = 0;
  for (uint64_t n = 0; n < count && words; ++n) {
    const uint64_t i = mix(seed ^ n << 20) % words;
    bad += ((volatile uint64_t*)memory)[i] != word_at(i);
  }
  printf("random %llu %llu\n", (unsigned long long)bad, (unsigned long long)(now() - start));
}

static void write_some(uint64_t pages, uint64_t seed) {
  for (uint64_t n = 0; n < pages && words; ++n) {
    const uint64_t first = mix(seed ^ n << 20) % (words / kWords) * kWords;
    for (uint64_t i = first; i < first + kWords; ++i) ((volatile uint64_t*)memory)[i] = word_at(i);
  }
  printf("wrote %llu\n", (unsigned long long)pages);
}

int main(void) {
  mount("dev", "/dev", "devtmpfs", 0, 0);
  const int port = open("/dev/ttyS0", O_RDWR);
  struct termios raw;
  tcgetattr(port, &raw);
  cfmakeraw(&raw);
  tcsetattr(port, TCSANOW, &raw);
  dup2(port, 0);
  dup2(port, 1);
  setvbuf(stdout, 0, _IOLBF, 0);
  printf("ready\n");
  char line[128];
  while (fgets(line, sizeof line, stdin)) {
    char word[32] = "";
    unsigned long long a = 0, b = 0;
    sscanf(line, "%31s %llu %llu", word, &a, &b);
    if (!strcmp(word, "ping")) printf("pong\n");
    else if (!strcmp(word, "fill")) fill(a, b);
    else if (!strcmp(word, "scan")) scan();
    else if (!strcmp(word, "verify")) verify();
    else if (!strcmp(word, "random")) look_around(a, b);
    else if (!strcmp(word, "write")) write_some(a, b);
    else if (*word) printf("error unknown\n");
    fflush(stdout);
  }
  reboot(RB_POWER_OFF);
  return 0;
}
