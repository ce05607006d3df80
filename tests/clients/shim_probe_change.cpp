// Cases of shim_probe: changing mappings.
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <thread>
#include <vector>

#include "shim_pattern.h"
#include "shim_probe.h"

namespace probe {
namespace {

constexpr int kDontUnmap = 4;

uint8_t* remap(void* from, size_t length, size_t to_length, int flags, void* target = nullptr) {
  void* memory = mremap(from, length, to_length, flags, target);
  CHECK(memory != MAP_FAILED);
  return static_cast<uint8_t*>(memory);
}

uint8_t* reserve(size_t length) {
  void* memory = mmap(nullptr, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(memory != MAP_FAILED);
  return static_cast<uint8_t*>(memory);
}

void unmap_parts() {
  uint8_t* memory = map_file(64 * kPage, PROT_READ, MAP_SHARED, 300 * kPage);
  check_bytes(memory + 20 * kPage, 4 * kPage, 320 * kPage);
  CHECK(munmap(memory + 10 * kPage, 3 * kPage) == 0);
  CHECK(munmap(memory, kPage) == 0);
  CHECK(munmap(memory + 60 * kPage, 4 * kPage - 100) == 0);
  check_bytes(memory + kPage, 9 * kPage, 301 * kPage);
  check_bytes(memory + 13 * kPage, 47 * kPage, 313 * kPage);
  CHECK(in_child([&] {
          check_bytes(memory + kPage, 9 * kPage, 301 * kPage);
          check_bytes(memory + 13 * kPage, 47 * kPage, 313 * kPage);
        }) == 0);
  CHECK(in_child([&] { (void)*const_cast<volatile uint8_t*>(memory + 11 * kPage); }) == SIGSEGV);
  CHECK(munmap(memory, 64 * kPage) == 0);
  CHECK(munmap(memory, 64 * kPage) == 0);
}

void grow_in_place() {
  uint8_t* place = reserve(64 * kPage);
  CHECK(munmap(place, 64 * kPage) == 0);
  uint8_t* memory = map_file(4 * kPage, PROT_READ, MAP_SHARED | MAP_FIXED, 10 * kPage, place);
  check_bytes(memory, 2 * kPage, 10 * kPage);
  CHECK(remap(memory, 4 * kPage, 40 * kPage, 0) == memory);
  check_bytes(memory, 40 * kPage, 10 * kPage);
  CHECK(remap(memory, 40 * kPage, 6 * kPage, 0) == memory);
  check_bytes(memory, 6 * kPage, 10 * kPage);
  CHECK(in_child([&] { check_bytes(memory, 6 * kPage, 10 * kPage); }) == 0);
  munmap(memory, 6 * kPage);
}

void grow_and_move() {
  uint8_t* place = reserve(9 * kPage);
  uint8_t* memory = map_file(8 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, 50 * kPage, place);
  memory[3 * kPage + 5] = 0xEE;
  uint8_t* moved = remap(memory, 8 * kPage, 100 * kPage, MREMAP_MAYMOVE);
  CHECK(moved != memory);
  CHECK(moved[3 * kPage + 5] == 0xEE);
  check_bytes(moved, 3 * kPage, 50 * kPage);
  check_bytes(moved + 4 * kPage, 96 * kPage, 54 * kPage);
  CHECK(in_child([&] {
          CHECK(moved[3 * kPage + 5] == 0xEE);
          check_bytes(moved + 4 * kPage, 96 * kPage, 54 * kPage);
        }) == 0);
  CHECK(in_child([&] { (void)*const_cast<volatile uint8_t*>(memory); }) == SIGSEGV);
  munmap(moved, 100 * kPage);
}

void move_to_fixed() {
  uint8_t* memory = map_file(32 * kPage, PROT_READ, MAP_SHARED, 7 * kPage);
  uint8_t* under = map_file(32 * kPage, PROT_READ, MAP_SHARED, 500 * kPage);
  check_bytes(under, 2 * kPage, 500 * kPage);
  // The middle of one over the middle of the other.
  CHECK(remap(memory + 8 * kPage, 4 * kPage, 4 * kPage, MREMAP_MAYMOVE | MREMAP_FIXED, under + 10 * kPage) ==
        under + 10 * kPage);
  check_bytes(under, 10 * kPage, 500 * kPage);
  check_bytes(under + 10 * kPage, 4 * kPage, 15 * kPage);
  check_bytes(under + 14 * kPage, 18 * kPage, 514 * kPage);
  check_bytes(memory, 8 * kPage, 7 * kPage);
  check_bytes(memory + 12 * kPage, 20 * kPage, 19 * kPage);
  CHECK(in_child([&] {
          check_bytes(under + 10 * kPage, 4 * kPage, 15 * kPage);
          check_bytes(memory + 12 * kPage, 20 * kPage, 19 * kPage);
        }) == 0);
  // Anonymous memory over a served mapping.
  auto* anonymous =
      static_cast<uint8_t*>(mmap(nullptr, 4 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  std::memset(anonymous, 9, 4 * kPage);
  CHECK(remap(anonymous, 4 * kPage, 4 * kPage, MREMAP_MAYMOVE | MREMAP_FIXED, under + 2 * kPage) == under + 2 * kPage);
  CHECK(under[2 * kPage] == 9 && under[6 * kPage - 1] == 9);
  CHECK(in_child([&] { CHECK(under[2 * kPage] == 9 && under[6 * kPage - 1] == 9); }) == 0);
  check_bytes(under, 2 * kPage, 500 * kPage);
  munmap(memory, 32 * kPage);
  munmap(under, 32 * kPage);
}

void move_and_keep() {
  uint8_t* memory = map_file(32 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE, 7 * kPage);
  memory[kPage] = 0xEE;
  check_bytes(memory + 4 * kPage, 4 * kPage, 11 * kPage);
  uint8_t* moved = remap(memory, 32 * kPage, 32 * kPage, MREMAP_MAYMOVE | kDontUnmap);
  CHECK(moved != memory && moved[kPage] == 0xEE);
  check_bytes(moved + 2 * kPage, 30 * kPage, 9 * kPage);
  check_bytes(memory, 32 * kPage, 7 * kPage);
  munmap(moved, 32 * kPage);
  munmap(memory, 32 * kPage);
}

void duplicate() {
  uint8_t* memory = map_file(32 * kPage, PROT_READ, MAP_SHARED, 7 * kPage);
  uint8_t* second = remap(memory + 4 * kPage, 0, 8 * kPage, MREMAP_MAYMOVE);
  CHECK(second != memory + 4 * kPage);
  check_bytes(second, 8 * kPage, 11 * kPage);
  check_bytes(memory, 32 * kPage, 7 * kPage);
  munmap(memory, 32 * kPage);
  check_bytes(second, 8 * kPage, 11 * kPage);
  munmap(second, 8 * kPage);
}

void grow_past_the_end() {
  uint8_t* memory = map_file(4 * kPage, PROT_READ, MAP_SHARED, (pages() - 4) * kPage);
  uint8_t* grown = remap(memory, 4 * kPage, 8 * kPage, MREMAP_MAYMOVE);
  check_bytes(grown, 4 * kPage, (pages() - 4) * kPage);
  CHECK(in_child([&] { (void)*const_cast<volatile uint8_t*>(grown + 5 * kPage); }) == SIGBUS);
  munmap(grown, 8 * kPage);
  memory = map_file(2 * kPage, PROT_READ, MAP_SHARED, (pages() - 4) * kPage);
  grown = remap(memory, 2 * kPage, 8 * kPage, MREMAP_MAYMOVE);
  check_bytes(grown, 4 * kPage, (pages() - 4) * kPage);
  munmap(grown, 8 * kPage);
}

void protection() {
  uint8_t* memory = map_file(16 * kPage, PROT_READ, MAP_SHARED, 33 * kPage);
  errno = 0;
  CHECK(mprotect(memory, kPage, PROT_READ | PROT_WRITE) == -1 && errno == EACCES);
  CHECK(mprotect(memory + 2 * kPage, 4 * kPage, PROT_NONE) == 0);
  CHECK(in_child([&] { (void)*const_cast<volatile uint8_t*>(memory + 2 * kPage); }) == SIGSEGV);
  CHECK(mprotect(memory, 16 * kPage, PROT_READ) == 0);
  check_bytes(memory, 16 * kPage, 33 * kPage);
  CHECK(in_child([&] { *const_cast<volatile uint8_t*>(memory) = 1; }) == SIGSEGV);
  munmap(memory, 16 * kPage);
  memory = map_file(16 * kPage, PROT_NONE, MAP_PRIVATE, 33 * kPage);
  CHECK(mprotect(memory, 8 * kPage, PROT_READ | PROT_WRITE) == 0);
  memory[0] = 0xEE;
  CHECK(mprotect(memory, 16 * kPage, PROT_READ) == 0);
  CHECK(memory[0] == 0xEE);
  check_bytes(memory + kPage, 15 * kPage, 34 * kPage);
  munmap(memory, 16 * kPage);
}

void advice() {
  uint8_t* memory = map_file(600 * kPage, PROT_READ, MAP_SHARED, 0);
  check_bytes(memory, 10 * kPage);
  CHECK(madvise(memory, 600 * kPage, MADV_DONTNEED) == 0);
  check_bytes(memory, 20 * kPage);
  errno = 0;
  CHECK(madvise(memory, kPage, MADV_FREE) == -1 && errno == EINVAL);
  CHECK(madvise(memory, kPage, MADV_REMOVE) == -1 && errno == EACCES);
  if (g_file.served) CHECK(madvise(memory, 600 * kPage, 25 /* MADV_COLLAPSE */) == -1 && errno == EINVAL);
  (void)madvise(memory, 600 * kPage, MADV_HUGEPAGE);
  CHECK(madvise(memory, 600 * kPage, MADV_SEQUENTIAL) == 0);
  CHECK(madvise(memory, 600 * kPage, MADV_COLD) == 0);
  CHECK(madvise(memory, 600 * kPage, MADV_PAGEOUT) == 0);
  CHECK(madvise(memory, 600 * kPage, MADV_DONTDUMP) == 0);
  check_bytes(memory, 600 * kPage);
  munmap(memory, 600 * kPage);
}

// What the shim cannot see: the place is used again for something else.
void raw_system_calls() {
  uint8_t* memory = map_file(64 * kPage, PROT_READ, MAP_SHARED, 0);
  check_bytes(memory, 2 * kPage);
  CHECK(syscall(SYS_munmap, memory, 64 * kPage) == 0);
  void* anonymous = mmap(memory, 64 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(anonymous == memory);
  std::memset(anonymous, 3, 64 * kPage);
  CHECK(in_child([&] { CHECK(memory[0] == 3 && memory[63 * kPage] == 3); }) == 0);
  CHECK(in_child([&] { CHECK(memory[0] == 3 && memory[63 * kPage] == 3); }) == 0);
  CHECK(munmap(anonymous, 64 * kPage) == 0);
  void* raw = reinterpret_cast<void*>(syscall(SYS_mmap, nullptr, 64 * kPage, PROT_READ, MAP_PRIVATE, g_file.fd, 0));
  check_bytes(static_cast<uint8_t*>(raw), 64 * kPage);
  munmap(raw, 64 * kPage);
}

// What was unmapped is nobody's: who takes its place by a raw system call is not taken for the file.
void forgotten_places() {
  uint8_t* memory = map_file(8 * kPage, PROT_READ, MAP_SHARED);
  CHECK(mprotect(memory, kPage, PROT_READ | PROT_WRITE) == -1 && errno == EACCES);
  CHECK(munmap(memory, 8 * kPage) == 0);
  constexpr long kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
  const long raw = syscall(SYS_mmap, memory, 8 * kPage, PROT_READ, kFlags, -1, 0);
  CHECK(raw == reinterpret_cast<long>(memory));
  CHECK(mprotect(memory, 8 * kPage, PROT_READ | PROT_WRITE) == 0);
  memory[0] = 7;
  CHECK(munmap(memory, 8 * kPage) == 0);
}

// Threads that take each other's places: a mapping that is there stays known to be the file, and read-only.
void reused_places() {
  const auto known = [](uint8_t* memory) {
    return mprotect(memory, 4 * kPage, PROT_READ | PROT_WRITE) == -1 && errno == EACCES;
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 6; ++i) {
    threads.emplace_back([&known] {
      for (int round = 0; round < 150; ++round) {
        uint8_t* memory = map_file(4 * kPage, PROT_READ, MAP_SHARED);
        CHECK(known(memory));
        sched_yield();
        CHECK(known(memory));
        CHECK(munmap(memory, 4 * kPage) == 0);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// With a server that answers the first MAP only: nothing would fill the new part, so there is none.
void refused_growth() {
  uint8_t* place = reserve(9 * kPage);
  const uint8_t* memory = map_file(8 * kPage, PROT_READ, MAP_SHARED | MAP_FIXED, 50 * kPage, place);
  check_bytes(memory, 2 * kPage, 50 * kPage);
  errno = 0;
  CHECK(mremap(place, 8 * kPage, 100 * kPage, MREMAP_MAYMOVE) == MAP_FAILED && errno == ENOMEM);
  check_bytes(memory, 8 * kPage, 50 * kPage);
  CHECK(munmap(place + 8 * kPage, kPage) == 0);
  CHECK(mremap(place, 8 * kPage, 9 * kPage, 0) == MAP_FAILED && errno == ENOMEM);
  check_bytes(memory, 8 * kPage, 50 * kPage);
  munmap(place, 8 * kPage);
}

// A child that the server does not take has no memory rather than zeroes, and may not make it readable again.
void refused_child() {
  uint8_t* memory = map_file(8 * kPage, PROT_READ, MAP_SHARED, 50 * kPage);
  CHECK(in_child([&] { (void)*const_cast<volatile uint8_t*>(memory); }) == SIGSEGV);
  CHECK(in_child([&] {
          CHECK(mprotect(memory, 8 * kPage, PROT_READ) == -1 && errno == ENOMEM);
          CHECK(in_child([&] { (void)*const_cast<volatile uint8_t*>(memory); }) == SIGSEGV);
          CHECK(munmap(memory, 8 * kPage) == 0);
        }) == 0);
  check_bytes(memory, 8 * kPage, 50 * kPage);
  munmap(memory, 8 * kPage);
}

// As many mappings as the kernel allows, and then some: the last ones may be the file itself.
void many_mappings() {
  std::vector<uint8_t*> all;
  while (all.size() < 70000) {
    const uint64_t page = all.size() % 2 * 5 + all.size() % (pages() - 10);
    void* memory = mmap(nullptr, kPage, PROT_READ, MAP_SHARED, g_file.fd, static_cast<off_t>(page * kPage));
    if (memory == MAP_FAILED) break;
    all.push_back(static_cast<uint8_t*>(memory));
  }
  const auto check = [&] {
    for (size_t i = 0; i < all.size(); i += 7) {
      check_bytes(all[i], 16, (i % 2 * 5 + i % (pages() - 10)) * kPage);
    }
  };
  check();
  for (size_t i = 0; i < all.size(); i += 3) munmap(all[i], kPage);
  for (size_t i = 0; i < all.size(); ++i) {
    if (i % 3 != 0) check_bytes(all[i], 16, (i % 2 * 5 + i % (pages() - 10)) * kPage);
  }
  for (uint8_t* one : all) munmap(one, kPage);
}

}  // namespace

std::vector<Case> special_cases() {
  return {{"refused_growth", refused_growth}, {"refused_child", refused_child}, {"many_mappings", many_mappings}};
}

std::vector<Case> change_cases() {
  return {{"unmap_parts", unmap_parts},
          {"grow_in_place", grow_in_place},
          {"grow_and_move", grow_and_move},
          {"move_to_fixed", move_to_fixed},
          {"move_and_keep", move_and_keep},
          {"duplicate", duplicate},
          {"grow_past_the_end", grow_past_the_end},
          {"protection", protection},
          {"advice", advice},
          {"raw_system_calls", raw_system_calls},
          {"forgotten_places", forgotten_places},
          {"reused_places", reused_places}};
}

}  // namespace probe
