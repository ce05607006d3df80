/* Modules that break the contract, one rule each. Sources show the tests' pattern, except at page 16; types are memfds,
 * except for folio 16. module_test.cpp says what has to happen. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <uffda-module.h>

#define PAGE 4096U
#define BAD_PAGE 16U
#define PAGES 64U

/* --- sources ------------------------------------------------------------------------------------------------------*/

/* Who is kept waits here, until the test lets go. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int released;

UFFDA_MODULE_EXPORT void hostile_release(int on);
void hostile_release(int on) {
  pthread_mutex_lock(&mutex);
  released = on;
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&mutex);
}

static void keep(void) {
  pthread_mutex_lock(&mutex);
  while (!released) pthread_cond_wait(&changed, &mutex);
  pthread_mutex_unlock(&mutex);
}

static void fill(uint64_t offset, unsigned char *bytes, uint64_t length) {
  uint64_t i;
  for (i = 0; i < length; ++i) {
    uint64_t word = ((offset + i) / 8 + 1) * UINT64_C(0x9E3779B97F4A7C15);
    word ^= word >> 29;
    bytes[i] = (unsigned char)(word >> ((offset + i) % 8 * 8));
  }
}

static int is_bad(uint64_t offset, uint64_t length) {
  return offset < (BAD_PAGE + 1) * PAGE && offset + length > BAD_PAGE * PAGE;
}

static int open_one(const struct uffda_arguments *arguments, void **source, struct uffda_error *error) {
  (void)arguments, (void)error;
  *source = calloc(1, sizeof(int));
  return *source != NULL ? 0 : -ENOMEM;
}
static void close_one(void *source) { free(source); }
static int properties_of(void *source, struct uffda_source_properties *properties, struct uffda_error *error) {
  (void)source, (void)error;
  properties->size = PAGES * PAGE;
  return 0;
}

static int64_t good_fetch(void *source, uint64_t offset, void *buffer, uint64_t length, struct uffda_error *error) {
  (void)source, (void)error;
  fill(offset, buffer, length);
  return (int64_t)length;
}

#define BAD_FETCH(name, ...)                                                                                          \
  static int64_t name##_fetch(void *source, uint64_t offset, void *buffer, uint64_t length, struct uffda_error *error) { \
    if (is_bad(offset, length)) __VA_ARGS__                                                                           \
    return good_fetch(source, offset, buffer, length, error);                                                         \
  }

BAD_FETCH(short, { return (int64_t)length - 1; })
BAD_FETCH(boast, { return (int64_t)length + PAGE; })
BAD_FETCH(overrun, {
  fill(offset, buffer, length + 8);
  return (int64_t)length;
})
BAD_FETCH(number, { return -100000; })
BAD_FETCH(never, { keep(); })
BAD_FETCH(huge, {
  char *text = malloc(1 << 20);
  memset(text, '\n', 1 << 20);
  memcpy(text, "so sorry", 8);
  text[(1 << 20) - 1] = 0;
  length = (uint64_t)uffda_fail(error, EIO, text);
  free(text);
  return (int64_t)length;
})

/* Fails if two calls are inside at once. */
static int64_t serial_fetch(void *source, uint64_t offset, void *buffer, uint64_t length, struct uffda_error *error) {
  int *inside = source;
  int64_t got;
  if (__atomic_add_fetch(inside, 1, __ATOMIC_SEQ_CST) != 1) return uffda_fail(error, EDEADLK, "two calls at once");
  got = good_fetch(source, offset, buffer, length, error);
  sched_yield();
  __atomic_sub_fetch(inside, 1, __ATOMIC_SEQ_CST);
  return got;
}

static void async_good(const struct uffda_fetch *fetch) {
  fill(fetch->offset, fetch->buffer, fetch->length);
  fetch->complete(fetch->token, (int64_t)fetch->length, NULL);
}

#define BAD_ASYNC(name, ...)                                              \
  static void name##_async(void *source, const struct uffda_fetch *fetch) { \
    (void)source;                                                         \
    if (is_bad(fetch->offset, fetch->length)) __VA_ARGS__                 \
    async_good(fetch);                                                    \
  }

BAD_ASYNC(forget, { return; })
BAD_ASYNC(twice, { async_good(fetch); })
BAD_ASYNC(more, {
  fetch->complete(fetch->token, (int64_t)fetch->length * 2, NULL);
  return;
})

static void *complete_late(void *data) {
  struct uffda_fetch *fetch = data;
  keep();
  fill(fetch->offset + 8, fetch->buffer, fetch->length); /* wrong bytes, and late */
  fetch->complete(fetch->token, (int64_t)fetch->length, NULL);
  free(fetch);
  return NULL;
}
BAD_ASYNC(late, {
  pthread_t thread;
  struct uffda_fetch *copy = malloc(sizeof *copy);
  *copy = *fetch;
  pthread_create(&thread, NULL, complete_late, copy);
  pthread_detach(thread);
  return;
})

static int crash_open(const struct uffda_arguments *arguments, void **source, struct uffda_error *error) {
  (void)arguments, (void)source, (void)error;
  abort();
}
static int empty_open(const struct uffda_arguments *arguments, void **source, struct uffda_error *error) {
  (void)arguments, (void)source, (void)error;
  return 0;
}
static int never_open(const struct uffda_arguments *arguments, void **source, struct uffda_error *error) {
  keep();
  return open_one(arguments, source, error);
}
BAD_FETCH(crash, { abort(); })
static int64_t scribble_fetch(void *source, uint64_t offset, void *buffer, uint64_t length, struct uffda_error *error) {
  if (is_bad(offset, length)) { /* everything that it can write to around its buffer, which ends it somewhere */
    volatile unsigned char *at = buffer;
    for (;; ++at) *at = 0xEE;
  }
  return good_fetch(source, offset, buffer, length, error);
}

/* Does what an isolated module may not do: words about the first thing that worked. */
static int64_t grabby_fetch(void *source, uint64_t offset, void *buffer, uint64_t length, struct uffda_error *error) {
  if (socket(AF_UNIX, SOCK_STREAM, 0) >= 0 || socket(AF_INET, SOCK_STREAM, 0) >= 0) return uffda_fail(error, EIO, "socket");
  if (fork() >= 0) return uffda_fail(error, EIO, "fork");
  if (open("/dev/null", O_WRONLY) >= 0) return uffda_fail(error, EIO, "open for writing");
  if (open("/tmp", O_TMPFILE | O_RDWR, 0600) >= 0) return uffda_fail(error, EIO, "a new file");
  if (kill(getppid(), 0) == 0) return uffda_fail(error, EIO, "kill");
  if (chmod("/dev/null", 0666) == 0) return uffda_fail(error, EIO, "chmod");
  /* The C library of another thread may have a file open for a moment; one of the host's stays open. */
  long looks = 0;
  while (fcntl(4, F_GETFD) >= 0)
    if (++looks == 10000000) return uffda_fail(error, EIO, "a descriptor of the host");
  return good_fetch(source, offset, buffer, length, error);
}

#define SOURCE(id, model, open_function, fetch_function, async_function)                                              \
  {.header = UFFDA_HEADER(struct uffda_source), .thread_model = model, .name = id, .help = "", .open = open_function, \
   .close = close_one, .properties = properties_of, .fetch = fetch_function, .fetch_async = async_function}

static const struct uffda_source sources[] = {
    SOURCE("good", UFFDA_PARALLEL, open_one, good_fetch, NULL),
    SOURCE("short", UFFDA_PARALLEL, open_one, short_fetch, NULL),
    SOURCE("boast", UFFDA_PARALLEL, open_one, boast_fetch, NULL),
    SOURCE("overrun", UFFDA_PARALLEL, open_one, overrun_fetch, NULL),
    SOURCE("number", UFFDA_PARALLEL, open_one, number_fetch, NULL),
    SOURCE("never", UFFDA_PARALLEL, open_one, never_fetch, NULL),
    SOURCE("stuck", UFFDA_SERIALISED, open_one, never_fetch, NULL),
    SOURCE("huge", UFFDA_PARALLEL, open_one, huge_fetch, NULL),
    SOURCE("serial", UFFDA_SERIALISED, open_one, serial_fetch, NULL),
    SOURCE("forget", UFFDA_PARALLEL, open_one, NULL, forget_async),
    SOURCE("twice", UFFDA_PARALLEL, open_one, NULL, twice_async),
    SOURCE("more", UFFDA_PARALLEL, open_one, NULL, more_async),
    SOURCE("late", UFFDA_PARALLEL, open_one, NULL, late_async),
    SOURCE("open-crash", UFFDA_PARALLEL, crash_open, good_fetch, NULL),
    SOURCE("open-empty", UFFDA_PARALLEL, empty_open, good_fetch, NULL),
    SOURCE("open-never", UFFDA_PARALLEL, never_open, good_fetch, NULL),
    SOURCE("crash", UFFDA_PARALLEL, open_one, crash_fetch, NULL),
    SOURCE("grabby", UFFDA_SERIALISED, open_one, grabby_fetch, NULL),
    SOURCE("scribble", UFFDA_PARALLEL, open_one, scribble_fetch, NULL),
};

/* --- memory types -------------------------------------------------------------------------------------------------*/

enum quirk {
  WRONG_OBJECT, WRONG_INDEX, WRONG_SIZE, MISALIGNED, UNLOCKED, UNREFERENCED, DOUBLE_RELEASE, NOT_FOUND, STILL_FOUND,
  ABORTED_WRITE, PUBLISH_NEVER, SHORT_MAPPING, WRITABLE_SHARE, NO_DESCRIPTOR, ENDLESS_RETRY
};

struct memory {
  enum quirk quirk;
  uint64_t object;
  int fd;
  uint32_t references;
  unsigned char there[PAGES];
};

static int create(enum quirk quirk, uint64_t object, uint64_t size, void **memory) {
  struct memory *self = calloc(1, sizeof *self);
  if (self == NULL || size > (uint64_t)PAGES * PAGE) return -ENOMEM;
  self->quirk = quirk;
  self->object = object;
  self->fd = memfd_create("hostile", MFD_CLOEXEC);
  if (ftruncate(self->fd, quirk == SHORT_MAPPING ? (off_t)PAGE : (off_t)(PAGES * PAGE)) != 0) return -errno;
  *memory = self;
  return 0;
}
static void destroy(void *memory) {
  close(((struct memory *)memory)->fd);
  free(memory);
}
static int publish(void *memory, uint64_t offset, const void *bytes, uint64_t length, struct uffda_error *error) {
  struct memory *self = memory;
  uint64_t i;
  const int bad = is_bad(offset, length);
  if (bad && self->quirk == PUBLISH_NEVER) keep();
  if (bad && self->quirk == ABORTED_WRITE) length /= 2;
  if (pwrite(self->fd, bytes, length, (off_t)offset) != (ssize_t)length) return -EIO;
  if (bad && self->quirk == ABORTED_WRITE) return uffda_fail(error, ENOSPC, "half of it is written");
  for (i = offset / PAGE; i * PAGE < offset + length; ++i) self->there[i] = 1;
  return 0;
}
static int drop(void *memory, uint64_t offset, uint64_t length, struct uffda_error *error) {
  struct memory *self = memory;
  uint64_t i;
  (void)error;
  for (i = offset / PAGE; i * PAGE < offset + length; ++i) {
    if (self->quirk == STILL_FOUND && i == BAD_PAGE) continue;
    self->there[i] = 0;
  }
  return fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
                   (off_t)((length + PAGE - 1) / PAGE * PAGE)) == 0 ? 0 : -errno;
}
static int read_back(void *memory, uint64_t offset, void *buffer, uint64_t length, struct uffda_error *error) {
  (void)error;
  return pread(((struct memory *)memory)->fd, buffer, length, (off_t)offset) == (ssize_t)length ? 0 : -EIO;
}
static int mapping(void *memory, struct uffda_error *error) {
  const struct memory *self = memory;
  (void)error;
  return self->quirk == NO_DESCRIPTOR ? 1000000 : self->fd;
}
static int share(void *memory, struct uffda_error *error) {
  (void)error;
  return fcntl(((struct memory *)memory)->fd, F_DUPFD_CLOEXEC, 3); /* for writing, too */
}
static int get_folio(void *memory, uint64_t index, struct uffda_folio *folio, struct uffda_error *error) {
  struct memory *self = memory;
  const int bad = index == BAD_PAGE;
  (void)error;
  if (bad && self->quirk == NOT_FOUND) return UFFDA_FOLIO_ABSENT;
  if (bad && self->quirk == ENDLESS_RETRY) return UFFDA_FOLIO_RETRY;
  if (!self->there[index]) return UFFDA_FOLIO_ABSENT;
  folio->object = self->object + (bad && self->quirk == WRONG_OBJECT);
  folio->index = index + (bad && self->quirk == WRONG_INDEX);
  folio->bytes = bad && self->quirk == WRONG_SIZE ? 2 * PAGE : PAGE;
  folio->offset = index * PAGE + (bad && self->quirk == MISALIGNED ? 512 : 0);
  folio->locked = !(bad && self->quirk == UNLOCKED);
  folio->references = ++self->references;
  if (bad && self->quirk == UNREFERENCED) folio->references = 0;
  return UFFDA_FOLIO_READY;
}
static int64_t release(void *memory, const struct uffda_folio *folio) {
  struct memory *self = memory;
  --self->references;
  return folio->index == BAD_PAGE && self->quirk == DOUBLE_RELEASE ? (int64_t)self->references - 1
                                                                    : (int64_t)self->references;
}

#define CREATE(name, quirk)                                                                                    \
  static int name(uint64_t object, uint64_t size, const char *label, void **memory, struct uffda_error *error) { \
    (void)label, (void)error;                                                                                  \
    return create(quirk, object, size, memory);                                                                \
  }
CREATE(create_wrong_object, WRONG_OBJECT)
CREATE(create_wrong_index, WRONG_INDEX)
CREATE(create_wrong_size, WRONG_SIZE)
CREATE(create_misaligned, MISALIGNED)
CREATE(create_unlocked, UNLOCKED)
CREATE(create_unreferenced, UNREFERENCED)
CREATE(create_double_release, DOUBLE_RELEASE)
CREATE(create_not_found, NOT_FOUND)
CREATE(create_still_found, STILL_FOUND)
CREATE(create_aborted_write, ABORTED_WRITE)
CREATE(create_publish_never, PUBLISH_NEVER)
CREATE(create_short_mapping, SHORT_MAPPING)
CREATE(create_writable_share, WRITABLE_SHARE)
CREATE(create_no_descriptor, NO_DESCRIPTOR)
CREATE(create_endless_retry, ENDLESS_RETRY)

#define TYPE(id, create_function)                                                                                 \
  {.header = UFFDA_HEADER(struct uffda_memory_type), .thread_model = UFFDA_SERIALISED, .name = id, .help = "",    \
   .modes = UFFDA_MODE_MISSING | UFFDA_MODE_MINOR, .ioctls = UFFDA_IOCTL_CONTINUE | UFFDA_IOCTL_POISON,           \
   .folio_size = PAGE, .create = create_function, .destroy = destroy, .publish = publish, .drop = drop,           \
   .read = read_back, .mapping = mapping, .share = share, .get_folio = get_folio, .release = release}

static const struct uffda_memory_type types[] = {
    TYPE("wrong-object", create_wrong_object),     TYPE("wrong-index", create_wrong_index),
    TYPE("wrong-size", create_wrong_size),         TYPE("misaligned", create_misaligned),
    TYPE("unlocked", create_unlocked),             TYPE("unreferenced", create_unreferenced),
    TYPE("double-release", create_double_release), TYPE("not-found", create_not_found),
    TYPE("still-found", create_still_found),       TYPE("aborted-write", create_aborted_write),
    TYPE("publish-never", create_publish_never),   TYPE("short-mapping", create_short_mapping),
    TYPE("writable-share", create_writable_share), TYPE("no-descriptor", create_no_descriptor),
    TYPE("endless-retry", create_endless_retry),
};

int uffda_module_register(struct uffda_registry *registry) {
  size_t i;
  int status = 0;
  for (i = 0; status == 0 && i < sizeof sources / sizeof *sources; ++i) status = registry->add_source(registry, &sources[i]);
  for (i = 0; status == 0 && i < sizeof types / sizeof *types; ++i) status = registry->add_memory_type(registry, &types[i]);
  return status;
}
