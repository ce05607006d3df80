// What a host and the process of an isolated module say to each other: packets of numbers and strings on a socket, and
// bytes in shared staging memory. The host trusts nothing that comes: readers check every length.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "modules/abi.h"
#include "uffda/result.h"

namespace uffda::modules {

inline constexpr std::size_t kMaxPacket = 32 * 1024;  // bytes; names, arguments and errors are short
inline constexpr std::uint64_t kSlot = kMaxFolio;     // bytes of staging memory that one call uses
inline constexpr std::uint64_t kSlots = 32;
inline constexpr unsigned kChildThreads = 24;  // calls inside an isolated module at once
inline constexpr int kChildSocket = 3;         // descriptors of the child
inline constexpr int kChildStaging = 4;

/// What the host asks for. A request is: id, Op, and the numbers and strings named here; its reply is: id, the outcome
/// (put_outcome), and numbers.
enum class Op : std::uint64_t {
  offers,      // -> what the module has (put_offers)
  open,        // source number, count, key, value, ... -> object
  properties,  // object -> size, block_size, preferred_read, parallel
  fetch,       // object, offset, length, slot, whether by fetch_async, deadline in ns
  close,       // object
  create,      // type number, object number of the host, size, name -> object
  publish,     // object, offset, length, slot
  drop,        // object, offset, length
  read,        // object, offset, length, slot
  look_up,     // object, index
  mapping,     // object; a descriptor comes with the reply
  share,       // the same
  destroy,     // object
};

class Writer {
 public:
  Writer& number(std::uint64_t value) {
    const auto bytes = std::as_bytes(std::span(&value, 1));
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    return *this;
  }
  Writer& text(std::string_view text) {
    number(text.size());
    const auto bytes = std::as_bytes(std::span(text));
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    return *this;
  }
  [[nodiscard]] std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

/// Takes a packet apart. What is not there is 0 or empty, and makes it bad.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  std::uint64_t number() {
    std::uint64_t value = 0;
    if (bytes_.size() < sizeof value) return fail_all();
    std::memcpy(&value, bytes_.data(), sizeof value);
    bytes_ = bytes_.subspan(sizeof value);
    return value;
  }
  std::string text() {
    const std::uint64_t length = number();
    if (bytes_.size() < length) return fail_all(), std::string();
    std::string text(reinterpret_cast<const char*>(bytes_.data()), length);
    bytes_ = bytes_.subspan(length);
    return text;
  }
  /// What was not taken yet.
  [[nodiscard]] std::span<const std::byte> rest() const { return bytes_; }
  [[nodiscard]] bool good() const { return good_; }

 private:
  std::uint64_t fail_all() {
    good_ = false;
    bytes_ = {};
    return 0;
  }
  std::span<const std::byte> bytes_;
  bool good_ = true;
};

inline void put_outcome(Writer& writer, const Result<std::int64_t>& outcome) {
  writer.number(outcome ? 1 : 0).number(outcome ? static_cast<std::uint64_t>(*outcome) : 0);
  if (outcome) return;
  writer.number(static_cast<std::uint64_t>(outcome.error().code()))
      .number(static_cast<std::uint64_t>(outcome.error().sys_errno()))
      .text(std::string_view(outcome.error().context()).substr(0, std::size_t{2} * UFFDA_ERROR_TEXT));
}

inline Result<std::int64_t> take_outcome(Reader& reader) {
  const bool good = reader.number() == 1;
  const auto value = static_cast<std::int64_t>(reader.number());
  if (good && reader.good()) return value;
  const std::uint64_t code = reader.number();
  const std::uint64_t number = reader.number();
  const std::string text = reader.text();
  if (!reader.good() || code > static_cast<std::uint64_t>(Errc::protocol) || number > 4095)
    return fail(Errc::protocol, "its process sent a reply that makes no sense");
  return fail(static_cast<Errc>(code), printable(text.c_str()), static_cast<int>(number));
}

}  // namespace uffda::modules
