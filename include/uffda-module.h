/* uffda-module.h: the C ABI of uffda modules, for C (C99 and later) and C++.
 *
 * A module is a shared object that adds page sources and memory types to uffda. It exports one C function:
 *
 *   UFFDA_MODULE_EXPORT int uffda_module_register(struct uffda_registry *registry) {
 *     return registry->add_source(registry, &my_source);
 *   }
 *
 * and is loaded by `uffda serve --module ./my.so --export disk=mod:NAME?KEY=VALUE --socket PATH` (exec and mount the
 * same), by uffda::load_module() in a program of one's own, and tested by `uffda module check ./my.so`.
 * docs/modules.md is the way from nothing to a tested module; modules/ has complete ones.
 *
 * Rules of this interface
 *
 * - Each kind has one struct. Its first fields are its size and the version of this interface, filled by a macro; new
 *   fields are only ever added at the end. The host copies the struct when it is registered and fills what an older
 *   module does not know with zeroes; a newer module with fields that this host does not know is refused, unless they
 *   are zero. The module's struct must stay as it is while the module is loaded, which is until the process ends.
 * - Numbers of bytes are uint64_t; offsets count from the start of the source or the memory. Times are nanoseconds.
 * - Errors are negative errno values (-EIO); words for a person are given through struct uffda_error, which the host
 *   copies, cuts to UFFDA_ERROR_TEXT bytes, and shows together with the module's name.
 * - Nothing of the host crosses: no lock, page table, userfaultfd or descriptor of its own, and no C++ exception in
 *   either direction. Memory that the host hands to a call belongs to the call: it is not to be touched after the
 *   call has returned (fetch_async: after it was completed).
 * - Threads: calls come from threads of the host, never from one that handles faults. Calls for one object come one at
 *   a time (UFFDA_SERIALISED) or several at once (UFFDA_PARALLEL); calls for different objects always come in
 *   parallel. `open` and `create` may run at the same time as any call.
 * - Every call has a deadline. One that has not returned by then fails the fault at hand, and the error names the
 *   module and the call; its thread is written off until it returns.
 * - What a module returns is checked, always. What breaks this contract fails that one call with an error that names
 *   the module, and changes nothing else.
 * - With --isolate the module runs in a process of its own, without network, new processes or files open for writing.
 *   Nothing of this interface is different there.
 */
/* NOLINTBEGIN(readability-identifier-naming,modernize-use-nullptr,cppcoreguidelines-init-variables): for C, with C's
 * names */
#ifndef UFFDA_MODULE_H
#define UFFDA_MODULE_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this interface. It changes only if old modules cannot be understood any more. */
#define UFFDA_MODULE_VERSION 1U

/* Longest text of an error, in bytes; what is longer is cut. */
#define UFFDA_ERROR_TEXT 256U
/* Longest name of a source or a type, in bytes: [a-z][a-z0-9._-]* */
#define UFFDA_NAME_LENGTH 63U

/* The first two fields of struct uffda_source and struct uffda_memory_type:
 *   static const struct uffda_source source = {UFFDA_HEADER(struct uffda_source), ...
 * With designated initialisers, in C and in C++20: .header = UFFDA_HEADER(struct uffda_source), .name = ... */
struct uffda_header {
  uint32_t size;    /* bytes of the struct that starts with this header, as the module knows it */
  uint32_t version; /* UFFDA_MODULE_VERSION */
};
#define UFFDA_HEADER(type) {(uint32_t)sizeof(type), UFFDA_MODULE_VERSION}

enum uffda_thread_model {
  UFFDA_SERIALISED = 0, /* one call at a time for each object */
  UFFDA_PARALLEL = 1    /* several calls at once for one object */
};

/* Takes words about an error. Owned by the host, valid during the call that it is given to; that call's thread only. */
struct uffda_error {
  struct uffda_header header;
  /* Copies `text` (not null, ends with a zero byte). The last call counts. */
  void (*set)(struct uffda_error* error, const char* text);
};

/* return uffda_fail(error, EIO, "the tape is torn"): the words, and the value to return. */
static inline int uffda_fail(struct uffda_error* error, int number, const char* text) {
  if (error != NULL && error->set != NULL) error->set(error, text);
  return -number;
}

/* What stands behind the '?' of a URI, decoded. Valid during the call. */
struct uffda_argument {
  const char* key;
  const char* value;
};
struct uffda_arguments {
  struct uffda_header header;
  uint64_t count;
  const struct uffda_argument* list;
};

/* The value of an argument, or null if it was not given. */
static inline const char* uffda_argument_of(const struct uffda_arguments* arguments, const char* key) {
  uint64_t i;
  for (i = 0; i < arguments->count; ++i) {
    if (strcmp(arguments->list[i].key, key) == 0) return arguments->list[i].value;
  }
  return NULL;
}

/* An argument that a source takes; others are refused by the host. */
struct uffda_parameter {
  const char* key;  /* [a-z][a-z0-9_-]* */
  const char* help; /* one line: values and default */
};

/* --- page sources -------------------------------------------------------------------------------------------------*/

/* What an opened source is. The host fills in the defaults, the module what differs. Asked once, after open. */
struct uffda_source_properties {
  struct uffda_header header;
  uint64_t size;           /* bytes, more than 0; never changes */
  uint64_t block_size;     /* fetches start at a multiple of it, and end at one or at the end of the source. A power of
                              two, at most 1 MiB. Default 1 */
  uint64_t preferred_read; /* bytes: a good size for one read. Default 65536 */
  uint32_t parallel;       /* fetches that may be in flight at once, 1 to 64. Default 16. With UFFDA_SERIALISED and no
                              fetch_async the host uses 1 thread whatever this says */
};

/* One asynchronous fetch. Valid until fetch_async returns: copy what is needed. */
struct uffda_fetch {
  struct uffda_header header;
  uint64_t offset;
  uint64_t length;      /* bytes to write to `buffer` */
  void* buffer;         /* page-aligned, the module's until it completes the fetch, even after the deadline */
  uint64_t deadline_ns; /* on CLOCK_MONOTONIC; afterwards the answer is not used any more */
  uint64_t token;
  /* Answers the fetch, exactly once, from any thread, at any time, also before fetch_async returns. `result`: bytes
   * that were written (fewer than `length` is an error: a short read) or a negative errno. `text`: words about an
   * error, copied, or null. A second answer for one token changes nothing and is reported. */
  void (*complete)(uint64_t token, int64_t result, const char* text);
};

/* A kind of page source. Constant. */
struct uffda_source {
  struct uffda_header header;
  uint32_t thread_model; /* enum uffda_thread_model */
  uint32_t flags;        /* 0 */
  const char* name;      /* the NAME in mod:NAME?KEY=VALUE */
  const char* help;      /* one line */
  const char* example;   /* arguments with which `uffda module check` can open it: "size=1M"; null: none are needed */
  const struct uffda_parameter* parameters; /* ends with a null key; null: it takes none */

  /* Opens a source and stores it in *source (not null). 0, or a negative errno: then nothing is left open.
   * Requires nothing; comes from any thread. */
  int (*open)(const struct uffda_arguments* arguments, void** source, struct uffda_error* error);
  /* Ends a source. No call on it is under way or comes later. If one has never returned, close is not called. */
  void (*close)(void* source);
  /* Fills in what the source is. 0, or a negative errno. */
  int (*properties)(void* source, struct uffda_source_properties* properties, struct uffda_error* error);
  /* Reads `length` bytes from `offset` on into `buffer` (page-aligned), and returns their number. Fewer is an error,
   * reported as a short read; or returns a negative errno. Never returns other bytes than the source's. */
  int64_t (*fetch)(void* source, uint64_t offset, void* buffer, uint64_t length, struct uffda_error* error);
  /* Optional: starts a read and returns at once; fetch is not called then and may be null. */
  void (*fetch_async)(void* source, const struct uffda_fetch* fetch);
};

/* --- memory types -------------------------------------------------------------------------------------------------*/

/* Faults that mappings of the type can raise: UFFDIO_REGISTER_MODE_*. */
#define UFFDA_MODE_MISSING ((uint64_t)1 << 0)
#define UFFDA_MODE_WP ((uint64_t)1 << 1)
#define UFFDA_MODE_MINOR ((uint64_t)1 << 2)
/* Resolutions that they accept: the bits of uffdio_register.ioctls. */
#define UFFDA_IOCTL_COPY ((uint64_t)1 << 3)
#define UFFDA_IOCTL_ZEROPAGE ((uint64_t)1 << 4)
#define UFFDA_IOCTL_MOVE ((uint64_t)1 << 5)
#define UFFDA_IOCTL_WRITEPROTECT ((uint64_t)1 << 6)
#define UFFDA_IOCTL_CONTINUE ((uint64_t)1 << 7)
#define UFFDA_IOCTL_POISON ((uint64_t)1 << 8)

/* A cached folio, referenced and locked, as get_folio and fault describe it to the host. */
struct uffda_folio {
  struct uffda_header header;
  uint64_t object;     /* the number that create() was given */
  uint64_t index;      /* the folio's offset divided by the type's folio_size */
  uint64_t offset;     /* where it stands in the memory: index * folio_size */
  uint64_t bytes;      /* folio_size */
  uint32_t locked;     /* 1: it is neither dropped nor changed until it is released */
  uint32_t references; /* that are held on it now, the host's included: at least 1 */
};

/* What fault() and get_folio() return, beside negative errnos. */
enum uffda_lookup {
  UFFDA_FOLIO_READY = 0,  /* *folio describes it; the host will release it */
  UFFDA_FOLIO_ABSENT = 1, /* nothing is cached there */
  UFFDA_FOLIO_RETRY = 2   /* ask again */
};

/* Flag of fault(): the lookup of UFFDIO_CONTINUE. Look up; never allocate, fetch or wait. */
#define UFFDA_FAULT_USERFAULT_CONTINUE 1U

/* A kind of memory. Constant. Contradictions are refused when it is registered: minor faults need CONTINUE; missing
 * faults need COPY or CONTINUE; wp needs WRITEPROTECT; get_folio needs CONTINUE; CONTINUE needs get_folio or fault. */
struct uffda_memory_type {
  struct uffda_header header;
  uint32_t thread_model; /* enum uffda_thread_model */
  uint32_t flags;        /* 0 */
  const char* name;
  const char* help;    /* one line */
  uint64_t modes;      /* UFFDA_MODE_* */
  uint64_t ioctls;     /* UFFDA_IOCTL_* */
  uint64_t folio_size; /* bytes: a power of two, 4096 to 1 MiB */

  /* Makes memory for `size` bytes, all folios absent, and stores it in *memory (not null). `object` is its number, for
   * struct uffda_folio; `name` is for messages. 0, or a negative errno: then nothing is left. */
  int (*create)(uint64_t object, uint64_t size, const char* name, void** memory, struct uffda_error* error);
  /* Ends it. No call on it is under way or comes later. If one has never returned, destroy is not called. */
  void (*destroy)(void* memory);
  /* Makes whole folios hold `bytes`: who has them mapped sees nothing of a folio or all of it. `offset` is a folio's;
   * the range ends at a folio's end or with the memory. It overwrites whatever was there. 0, or a negative errno:
   * then the folios count as absent. No two calls for one folio come at once. */
  int (*publish)(void* memory, uint64_t offset, const void* bytes, uint64_t length, struct uffda_error* error);
  /* Frees the folios of a range, and unmaps them wherever they are mapped. 0, or a negative errno: then they stay. */
  int (*drop)(void* memory, uint64_t offset, uint64_t length, struct uffda_error* error);
  /* Copies published bytes to `buffer`. 0, or a negative errno. */
  int (*read)(void* memory, uint64_t offset, void* buffer, uint64_t length, struct uffda_error* error);
  /* The descriptor that is mapped in the host's process, open for reading and writing: the module's, valid as long as
   * the memory; the host duplicates it. Or a negative errno. Asked once, after create. */
  int (*mapping)(void* memory, struct uffda_error* error);
  /* Optional: a new descriptor for a client of a server to map, good for reading only; the host closes it. Null: the
   * memory cannot be shared with other processes. */
  int (*share)(void* memory, struct uffda_error* error);
  /* Optional, with CONTINUE: looks a folio up. With UFFDA_FAULT_USERFAULT_CONTINUE never allocates; other flags are not
   * used today. Asked only if get_folio is null. */
  int (*fault)(void* memory, uint64_t index, uint32_t flags, struct uffda_folio* folio, struct uffda_error* error);
  /* Optional, with CONTINUE: the folio cached at `index`, locked and referenced. Never allocates, never does I/O. */
  int (*get_folio)(void* memory, uint64_t index, struct uffda_folio* folio, struct uffda_error* error);
  /* Gives a folio of fault or get_folio back, exactly once. Returns the references that are left, or a negative errno.
   * Required with CONTINUE. */
  int64_t (*release)(void* memory, const struct uffda_folio* folio);
};

/* --- the entry point ----------------------------------------------------------------------------------------------*/

/* Valid during uffda_module_register. Both copy the struct. 0, or a negative errno; the host says why. */
struct uffda_registry {
  struct uffda_header header;
  int (*add_source)(struct uffda_registry* registry, const struct uffda_source* source);
  int (*add_memory_type)(struct uffda_registry* registry, const struct uffda_memory_type* type);
};

#if defined(__GNUC__)
#define UFFDA_MODULE_EXPORT __attribute__((visibility("default")))
#else
#define UFFDA_MODULE_EXPORT
#endif

/* Called once, when the module is loaded. 0, or a negative errno: then nothing of the module is used. */
UFFDA_MODULE_EXPORT int uffda_module_register(struct uffda_registry* registry);

#ifdef __cplusplus
}
#endif
#endif /* UFFDA_MODULE_H */
/* NOLINTEND(readability-identifier-naming,modernize-use-nullptr,cppcoreguidelines-init-variables) */
