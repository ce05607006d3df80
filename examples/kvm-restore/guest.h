// The guest: a snapshot of a machine that has a pattern in its memory, and two routines to run on it.
//
//   0x1000  page tables: 2 MiB pages, each address is its own physical address
//   0x10000 the routines
//   2 MiB   from here to the end: every word is value_of(its address, kSnapshotSeed)
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace guest {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kHugePage = std::uint64_t{2} << 20U;
constexpr std::uint64_t kPageTables = 0x1000;
constexpr std::uint64_t kCode = 0x10000;
constexpr std::uint64_t kData = kHugePage;
constexpr std::uint64_t kMostMemory = std::uint64_t{8} << 30U;  // what the page tables have room for
constexpr std::uint64_t kSnapshotSeed = 0x5eed;
constexpr std::uint64_t kFactor = 0x9e3779b97f4a7c15;
constexpr std::uint16_t kDonePort = 0x10;

constexpr std::uint64_t value_of(std::uint64_t address, std::uint64_t seed) { return (address ^ seed) * kFactor; }

/// Guest addresses of the routines, which take their arguments in registers (guest.cpp) and end with a write to
/// kDonePort.
std::uint64_t verify_routine();
std::uint64_t fill_routine();

/// Writes the memory of a guest of `size` bytes, a multiple of 2 MiB, to a file.
void make_snapshot(const std::string& path, std::uint64_t size);

}  // namespace guest
