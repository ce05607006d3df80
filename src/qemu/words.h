// The words of QEMU's migration protocol (migration/savevm.c, ram.c and migration.c of QEMU 7.2; the same up to 10.0).
#pragma once

#include <cstdint>

namespace uffda::qemu {

inline constexpr std::uint32_t kStreamMagic = 0x5145564d;  // "QEVM"
inline constexpr std::uint32_t kStreamVersion = 3;
inline constexpr std::uint64_t kBitmapEnd = 0x0123456789abcdefULL;

/// What a part of a stream begins with.
enum class Mark : std::uint8_t {
  end = 0,
  start = 1,
  part = 2,
  last_part = 3,
  full = 4,
  subsection = 5,
  description = 6,
  configuration = 7,
  command = 8,
  footer = 0x7e,
};

enum class CommandWord : std::uint16_t {
  open_return_path = 1,
  ping = 2,
  postcopy_advise = 3,
  postcopy_listen = 4,
  postcopy_run = 5,
  postcopy_discard = 6,
  packaged = 7,
  postcopy_resume = 9,
  ask_received = 10,
  switchover_start = 11,
};

enum class ReplyWord : std::uint16_t {
  closed = 1,
  pong = 2,
  request_named = 3,
  request = 4,
  received = 5,
  resumed = 6,
  may_switch_over = 7,
};

// The low bits of a record of RAM; the others are an offset.
inline constexpr std::uint64_t kRecordFlags = 0xfff;
inline constexpr std::uint64_t kZeroPage = 0x02;
inline constexpr std::uint64_t kTable = 0x04;
inline constexpr std::uint64_t kPage = 0x08;
inline constexpr std::uint64_t kEndOfRecords = 0x10;
inline constexpr std::uint64_t kSameBlock = 0x20;

inline constexpr std::uint32_t kRamVersion = 4;

}  // namespace uffda::qemu
