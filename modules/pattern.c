/* The smallest read-only source: bytes that follow from their place. In C.
 *
 *   gcc -std=c11 -O2 -fPIC -shared pattern.c -o pattern.so
 *   uffda serve --module ./pattern.so --export disk='mod:pattern?size=1G&seed=7' --socket /run/disk.sock
 */
#include <stdlib.h>
#include <uffda-module.h>

struct pattern {
  uint64_t size;
  uint64_t seed;
};

/* A number with K, M or G behind it. 0 if it is something else. */
static uint64_t number_of(const char *text) {
  char *end;
  uint64_t number = strtoull(text, &end, 10);
  if (*end == 'K' || *end == 'M' || *end == 'G') {
    number <<= *end == 'K' ? 10 : *end == 'M' ? 20 : 30;
    ++end;
  }
  return *end == '\0' ? number : 0;
}

static int pattern_open(const struct uffda_arguments *arguments, void **source, struct uffda_error *error) {
  const char *size = uffda_argument_of(arguments, "size");
  const char *seed = uffda_argument_of(arguments, "seed");
  struct pattern *self;
  if (size == NULL || number_of(size) == 0) return uffda_fail(error, EINVAL, "give size=BYTES, as in size=1M");
  self = malloc(sizeof *self);
  if (self == NULL) return -ENOMEM;
  self->size = number_of(size);
  self->seed = seed != NULL ? number_of(seed) : 0;
  *source = self;
  return 0;
}

static void pattern_close(void *source) { free(source); }

static int pattern_properties(void *source, struct uffda_source_properties *properties, struct uffda_error *error) {
  (void)error;
  properties->size = ((struct pattern *)source)->size;
  return 0;
}

static int64_t pattern_fetch(void *source, uint64_t offset, void *buffer, uint64_t length, struct uffda_error *error) {
  const struct pattern *self = source;
  unsigned char *bytes = buffer;
  uint64_t i;
  (void)error;
  for (i = 0; i < length; ++i) {
    uint64_t word = ((offset + i) / 8 + 1 + self->seed) * UINT64_C(0x9E3779B97F4A7C15);
    word ^= word >> 29;
    bytes[i] = (unsigned char)(word >> ((offset + i) % 8 * 8));
  }
  return (int64_t)length;
}

static const struct uffda_parameter parameters[] = {
    {"size", "its size: 4096, 64K, 1M, 2G"},
    {"seed", "another number makes other bytes (default: 0)"},
    {NULL, NULL},
};

static const struct uffda_source pattern = {
    .header = UFFDA_HEADER(struct uffda_source),
    .thread_model = UFFDA_PARALLEL,
    .name = "pattern",
    .help = "bytes that follow from their place",
    .example = "size=1M",
    .parameters = parameters,
    .open = pattern_open,
    .close = pattern_close,
    .properties = pattern_properties,
    .fetch = pattern_fetch,
};

int uffda_module_register(struct uffda_registry *registry) { return registry->add_source(registry, &pattern); }
