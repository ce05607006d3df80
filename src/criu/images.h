// The images of a CRIU dump that say which task has which memory, taken apart: pstree.img, mm-PID.img, pagemap-PID.img.
//
// Each is two magic numbers and then records, each a length and a protobuf message. Nothing in them is trusted: what
// these functions return is in order, page-aligned and within what an address space can be.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda::criu {

/// [start, start + length) of a task's memory.
struct MemoryRange {
  Address start;
  ByteCount length;
  [[nodiscard]] Address end() const { return start + length; }
};

/// Pages of a task, and where their bytes are.
struct PagemapRun {
  enum class Where : std::uint8_t {
    here,    ///< in this dump's pages-ID.img, behind those of the runs before
    parent,  ///< in the dump that this one builds on
    remote,  ///< with the process that made the dump
  };
  MemoryRange range;
  Where where = Where::here;
};

struct Pagemap {
  std::uint32_t pages_id = 0;
  std::vector<PagemapRun> runs;  ///< by address, disjoint
};

/// The tasks, in the order of the image. Errors: protocol.
Result<std::vector<pid_t>> parse_tasks(std::span<const std::byte> image);
/// The private anonymous memory that CRIU restores lazily, by address. Errors: protocol.
Result<std::vector<MemoryRange>> parse_lazy_memory(std::span<const std::byte> image);
/// Both encodings of the number of pages: that of CRIU 4.1 and older, and that of 4.2. Errors: protocol.
Result<Pagemap> parse_pagemap(std::span<const std::byte> image);

/// The beginning of a pagemap image, and one of its entries, as CRIU of every version reads them. `flags` are the
/// entry's own. Requires: pages fits 32 bits.
std::vector<std::byte> pagemap_beginning(std::uint32_t pages_id);
std::vector<std::byte> pagemap_entry(Address address, std::uint64_t pages, std::uint32_t flags);

}  // namespace uffda::criu
