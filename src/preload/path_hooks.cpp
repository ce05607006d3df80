// Every call of libc that takes the name of a file, as a table: the name is looked up (paths.h), and libc's own
// function does the rest. dlopen is missing on purpose: it looks at who called it.
//
// The hooks have names of their own for the compiler, so that they need not agree with libc's headers in attributes.
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>  // NOLINT(modernize-deprecated-headers)
#include <stdio.h>   // NOLINT(modernize-deprecated-headers)
#include <stdlib.h>  // NOLINT(modernize-deprecated-headers)
#include <string.h>  // NOLINT(modernize-deprecated-headers)
#include <sys/types.h>

#include "preload/hook.h"
#include "preload/kernel.h"
#include "preload/paths.h"

struct stat;
struct stat64;
struct statx;
struct statfs;
struct statfs64;
struct statvfs;
struct statvfs64;
struct file_handle;
struct timespec;
struct timeval;
struct utimbuf;

namespace uffda::shim {
namespace {

// libc's function of this name. Two threads may both look: they find the same.
template <typename Function>
Function next(Function& slot, const char* name) {
  Function found = __atomic_load_n(&slot, __ATOMIC_RELAXED);
  if (found != nullptr) return found;
  found = reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
  __atomic_store_n(&slot, found, __ATOMIC_RELAXED);
  return found;
}

}  // namespace
}  // namespace uffda::shim

using namespace uffda::shim;

// PATH_HOOK(return type, name, (parameters), directory, path, arguments...): `path` is looked up relative to
// `directory`.
#define PATH_HOOK(Return, name, parameters, directory, path, ...) \
  UFFDA_HOOK(Return, name, parameters) {                          \
    using Function = Return(*) parameters;                        \
    static constinit Function slot = nullptr;                     \
    const Function function = next(slot, #name);                  \
    path = real_path(directory, path);                            \
    return function(__VA_ARGS__);                                 \
  }

// open and its kin: the mode is there only with O_CREAT and O_TMPFILE, and is passed on only then.
#define OPEN_HOOK(name, parameters, directory, path, ...)                                         \
  UFFDA_HOOK(int, name, parameters) {                                                             \
    using Function = int(*) parameters;                                                           \
    static constinit Function slot = nullptr;                                                     \
    const Function function = next(slot, #name);                                                  \
    path = real_path(directory, path);                                                            \
    if ((flags & O_CREAT) == 0 && (flags & O_TMPFILE) != O_TMPFILE) return function(__VA_ARGS__); \
    va_list more;                                                                                 \
    va_start(more, flags);                                                                        \
    const mode_t mode = va_arg(more, mode_t);                                                     \
    va_end(more);                                                                                 \
    return function(__VA_ARGS__, mode);                                                           \
  }

OPEN_HOOK(open, (const char* path, int flags, ...), AT_FDCWD, path, path, flags)
OPEN_HOOK(open64, (const char* path, int flags, ...), AT_FDCWD, path, path, flags)
OPEN_HOOK(openat, (int at, const char* path, int flags, ...), at, path, at, path, flags)
OPEN_HOOK(openat64, (int at, const char* path, int flags, ...), at, path, at, path, flags)

#define IN_CWD(Return, name, parameters, ...) PATH_HOOK(Return, name, parameters, AT_FDCWD, path, __VA_ARGS__)
#define IN_AT(Return, name, parameters, ...) PATH_HOOK(Return, name, parameters, at, path, __VA_ARGS__)

IN_CWD(int, __open_2, (const char* path, int flags), path, flags)
IN_CWD(int, __open64_2, (const char* path, int flags), path, flags)
IN_AT(int, __openat_2, (int at, const char* path, int flags), at, path, flags)
IN_AT(int, __openat64_2, (int at, const char* path, int flags), at, path, flags)
IN_CWD(int, creat, (const char* path, mode_t mode), path, mode)
IN_CWD(int, creat64, (const char* path, mode_t mode), path, mode)
IN_CWD(FILE*, fopen, (const char* path, const char* mode), path, mode)
IN_CWD(FILE*, fopen64, (const char* path, const char* mode), path, mode)
IN_CWD(FILE*, freopen, (const char* path, const char* mode, FILE* file), path, mode, file)
IN_CWD(FILE*, freopen64, (const char* path, const char* mode, FILE* file), path, mode, file)

IN_CWD(int, stat, (const char* path, struct stat* to), path, to)
IN_CWD(int, stat64, (const char* path, struct stat64* to), path, to)
IN_CWD(int, lstat, (const char* path, struct stat* to), path, to)
IN_CWD(int, lstat64, (const char* path, struct stat64* to), path, to)
IN_AT(int, fstatat, (int at, const char* path, struct stat* to, int flags), at, path, to, flags)
IN_AT(int, fstatat64, (int at, const char* path, struct stat64* to, int flags), at, path, to, flags)
IN_CWD(int, __xstat, (int version, const char* path, struct stat* to), version, path, to)
IN_CWD(int, __xstat64, (int version, const char* path, struct stat64* to), version, path, to)
IN_CWD(int, __lxstat, (int version, const char* path, struct stat* to), version, path, to)
IN_CWD(int, __lxstat64, (int version, const char* path, struct stat64* to), version, path, to)
IN_AT(int, __fxstatat, (int version, int at, const char* path, struct stat* to, int flags), version, at, path, to,
      flags)
IN_AT(int, __fxstatat64, (int version, int at, const char* path, struct stat64* to, int flags), version, at, path, to,
      flags)
IN_AT(int, statx, (int at, const char* path, int flags, unsigned mask, struct statx* to), at, path, flags, mask, to)
IN_CWD(int, statfs, (const char* path, struct statfs* to), path, to)
IN_CWD(int, statfs64, (const char* path, struct statfs64* to), path, to)
IN_CWD(int, statvfs, (const char* path, struct statvfs* to), path, to)
IN_CWD(int, statvfs64, (const char* path, struct statvfs64* to), path, to)

IN_CWD(int, access, (const char* path, int mode), path, mode)
IN_CWD(int, eaccess, (const char* path, int mode), path, mode)
IN_CWD(int, euidaccess, (const char* path, int mode), path, mode)
IN_AT(int, faccessat, (int at, const char* path, int mode, int flags), at, path, mode, flags)
IN_CWD(ssize_t, readlink, (const char* path, char* to, size_t size), path, to, size)
IN_AT(ssize_t, readlinkat, (int at, const char* path, char* to, size_t size), at, path, to, size)

IN_CWD(int, truncate, (const char* path, off_t size), path, size)
IN_CWD(int, truncate64, (const char* path, off64_t size), path, size)
IN_CWD(int, chmod, (const char* path, mode_t mode), path, mode)
IN_AT(int, fchmodat, (int at, const char* path, mode_t mode, int flags), at, path, mode, flags)
IN_CWD(int, chown, (const char* path, uid_t user, gid_t group), path, user, group)
IN_CWD(int, lchown, (const char* path, uid_t user, gid_t group), path, user, group)
IN_AT(int, fchownat, (int at, const char* path, uid_t user, gid_t group, int flags), at, path, user, group, flags)
IN_CWD(int, utime, (const char* path, const struct utimbuf* times), path, times)
IN_CWD(int, utimes, (const char* path, const struct timeval* times), path, times)
IN_AT(int, utimensat, (int at, const char* path, const struct timespec* times, int flags), at, path, times, flags)
IN_CWD(int, unlink, (const char* path), path)
IN_AT(int, unlinkat, (int at, const char* path, int flags), at, path, flags)
IN_CWD(int, remove, (const char* path), path)

IN_CWD(ssize_t, getxattr, (const char* path, const char* name, void* to, size_t size), path, name, to, size)
IN_CWD(ssize_t, lgetxattr, (const char* path, const char* name, void* to, size_t size), path, name, to, size)
IN_CWD(ssize_t, listxattr, (const char* path, char* to, size_t size), path, to, size)
IN_CWD(ssize_t, llistxattr, (const char* path, char* to, size_t size), path, to, size)
IN_AT(int, name_to_handle_at, (int at, const char* path, struct file_handle* to, int* mount, int flags), at, path, to,
      mount, flags)
IN_CWD(int, inotify_add_watch, (int fd, const char* path, uint32_t mask), fd, path, mask)
IN_CWD(int, execve, (const char* path, char* const* arguments, char* const* environment), path, arguments, environment)
IN_CWD(int, posix_spawn,
       (pid_t * child, const char* path, const void* actions, const void* attributes, char* const* arguments,
        char* const* environment),
       child, path, actions, attributes, arguments, environment)
IN_CWD(int, posix_spawn_file_actions_addopen, (void* actions, int fd, const char* path, int flags, mode_t mode),
       actions, fd, path, flags, mode)

namespace {

// The canonical name of a served file is the one that the program asked for.
char* copy_asked(const char* path, char* to) {
  const char* asked = asked_path(AT_FDCWD, path);
  if (asked == nullptr) return nullptr;
  return to == nullptr ? strdup(asked) : strcpy(to, asked);
}

}  // namespace

UFFDA_HOOK(char*, realpath, (const char* path, char* to)) {
  using Function = char* (*)(const char*, char*);
  static constinit Function slot = nullptr;
  char* asked = copy_asked(path, to);
  return asked != nullptr ? asked : next(slot, "realpath")(path, to);
}

UFFDA_HOOK(char*, __realpath_chk, (const char* path, char* to, size_t size)) {
  using Function = char* (*)(const char*, char*, size_t);
  static constinit Function slot = nullptr;
  char* asked = copy_asked(path, to);
  return asked != nullptr ? asked : next(slot, "__realpath_chk")(path, to, size);
}

UFFDA_HOOK(char*, canonicalize_file_name, (const char* path)) {
  using Function = char* (*)(const char*);
  static constinit Function slot = nullptr;
  char* asked = copy_asked(path, nullptr);
  return asked != nullptr ? asked : next(slot, "canonicalize_file_name")(path);
}
