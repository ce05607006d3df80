// The images of a CRIU dump, as anybody may have written them: they are refused, or what they say is in order,
// page-aligned and within an address space.
//
// Input: a byte that says which image, and the image.
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/log.h"
#include "criu/images.h"

namespace {

void expect_possible(const uffda::criu::MemoryRange& range, uffda::Address& before) {
  UFFDA_ASSERT(range.start >= before && range.length.value != 0);
  UFFDA_ASSERT(range.start.value % uffda::kPageSize.value == 0 && range.length.value % uffda::kPageSize.value == 0);
  UFFDA_ASSERT(range.end() > range.start && range.end().value <= std::uint64_t{1} << 57U);
  before = range.end();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  namespace criu = uffda::criu;
  if (size == 0) return 0;
  const auto image = std::as_bytes(std::span(data, size)).subspan(1);
  uffda::Address before;
  switch (data[0] % 3) {
    case 0:
      if (const auto tasks = criu::parse_tasks(image)) {
        for (const pid_t pid : *tasks) UFFDA_ASSERT(pid > 0);
      }
      break;
    case 1:
      if (const auto memory = criu::parse_lazy_memory(image)) {
        for (const criu::MemoryRange& range : *memory) expect_possible(range, before);
      }
      break;
    default:
      if (const auto pagemap = criu::parse_pagemap(image)) {
        for (const criu::PagemapRun& run : pagemap->runs) expect_possible(run.range, before);
      }
  }
  return 0;
}
