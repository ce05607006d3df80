// A program that maps a file in every way and checks each byte it sees. The file's bytes must be shim_pattern.h. It
// knows nothing of the shim: it runs on a plain file, under the shim with shim_server, and under `uffda exec`.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

namespace probe {

inline constexpr size_t kPage = 4096;

struct File {
  const char* path;
  int fd;
  uint64_t size;
  bool served;  // mappings must be the server's memory, not the file itself
};
extern File g_file;

#define CHECK(condition)                                             \
  do {                                                               \
    if (!(condition)) ::probe::fail(__FILE__, __LINE__, #condition); \
  } while (false)

[[noreturn]] void fail(const char* file, int line, const char* what);

struct Case {
  const char* name;
  void (*run)();
};
std::vector<Case> mapping_cases();
std::vector<Case> change_cases();
std::vector<Case> fork_cases();
/// Run only when they are named: they need a server that refuses, or much time.
std::vector<Case> special_cases();

inline size_t pages() { return (g_file.size + kPage - 1) / kPage; }

/// mmap of g_file that must succeed (and be served, if that was asked of this run).
uint8_t* map_file(size_t length, int protection, int flags, uint64_t offset = 0, void* address = nullptr);
/// Every byte of [memory, memory + length), which shows the file from `offset`.
void check_bytes(const uint8_t* memory, size_t length, uint64_t offset = 0);
/// The first 64 bytes of `many` random pages of a mapping of the whole file.
void check_random(const uint8_t* memory, size_t many, uint64_t seed);
/// "PERMS PATH" of the mapping that holds `address`; "" if there is none.
const char* mapping_of(const void* address);
/// Runs `body` in a child: 0, or the signal that ended it, or 1000 + its exit status.
int in_child(const std::function<void()>& body, pid_t (*fork_call)() = nullptr);

}  // namespace probe
