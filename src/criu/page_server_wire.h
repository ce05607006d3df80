// What CRIU's page servers speak: records without magic, version or checksum, of the host's byte order, one connection
// after the other, answers in the order of the requests. Up to CRIU 4.1 a record has 24 bytes, from 4.2 on 32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "uffda/result.h"

namespace uffda::criu {

enum class RecordSize : std::uint8_t { narrow = 24, wide = 32 };

enum class PageCommand : std::uint16_t {
  add = 1,        ///< pages of a dump, whose bytes follow
  hole = 2,       ///< pages that are not in this dump
  open = 3,       ///< of a task: its pages come next
  open2 = 4,      ///< the same; one byte answers: whether there is a parent's
  parent = 5,     ///< whether a parent's pages are there; an int answers
  add_flags = 6,  ///< as add, with flags; also the answer to get
  get = 7,        ///< asks for pages
  close = 0x1023,
  force_close = 0x1024,
};

/// The flags are those of an entry of a pagemap, too.
struct PageRecord {
  static constexpr std::size_t kMaxSize = 32;
  static constexpr std::uint32_t kInParent = 1;  ///< flag: they are in the dump that this one builds on
  static constexpr std::uint32_t kLazy = 2;  ///< flag: they may be restored lazily; without kPresent: from the process
  static constexpr std::uint32_t kPresent = 4;  ///< flag: bytes follow

  PageCommand command{};
  std::uint16_t flags = 0;
  std::uint64_t pages = 0;
  std::uint64_t address = 0;
  std::uint64_t id = 0;  ///< of get: the pid; else id << 8 | type

  bool operator==(const PageRecord&) const = default;
};

/// Requires: bytes.size() is that of a record. Errors: protocol (no command of these).
Result<PageRecord> parse_record(std::span<const std::byte> bytes, RecordSize size);
/// Fills the first bytes, as many as a record has, and returns them.
std::span<const std::byte> encode_record(const PageRecord& record, RecordSize size,
                                         std::span<std::byte, PageRecord::kMaxSize> into);

}  // namespace uffda::criu
