// What a QEMU that is being restored sends back: the return path of a migration.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda::qemu {

/// The guest waits for these bytes.
struct PageRequest {
  std::string block;
  ByteOffset start;
  ByteCount length;
  bool operator==(const PageRequest&) const = default;
};
/// Which target pages of a block have arrived: a bit for each, the lowest of a byte first.
struct ReceivedPages {
  std::string block;
  std::vector<std::byte> bits;
  bool operator==(const ReceivedPages&) const = default;
};
/// An interrupted migration goes on.
struct Resumed {
  bool operator==(const Resumed&) const = default;
};
/// The last message: the migration is over.
struct Closed {
  bool failed = false;
  bool operator==(const Closed&) const = default;
};
using Reply = std::variant<PageRequest, ReceivedPages, Resumed, Closed>;

inline constexpr ByteCount kMaxBitmap = 512_MiB;  ///< of 16 TiB

/// Cuts the messages out of the bytes that come. What needs no answer (PONG) is left out.
class ReplyParser {
 public:
  void push(std::span<const std::byte> bytes);
  /// The next message; empty: it is not there yet. Errors: protocol. After an error nothing more can be done.
  Result<std::optional<Reply>> next();

 private:
  struct Parsed {
    std::size_t taken = 0;  // 0: too few bytes are here
    std::optional<Reply> reply;
  };
  Result<Parsed> parse(std::span<const std::byte> bytes);
  Result<Parsed> request(class ByteReader& in, ByteReader body, bool named);
  static Result<Parsed> received(ByteReader& in, ByteReader body);

  std::vector<std::byte> bytes_;
  std::size_t begin_ = 0;
  std::string block_;  // of the last request
};

/// The reply to to_ping(value), as it stands among the others.
std::vector<std::byte> pong(std::uint32_t value);

}  // namespace uffda::qemu
