// What tests share: a pattern whose every byte tells its place, and sources made of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>

#include "uffda/page_source.h"

namespace uffda::test {

/// Byte `at` depends on its place only, and no page is like another or like zeroes.
struct Pattern {
  static std::byte at(std::uint64_t at) {
    std::uint64_t x = (at / 8 + 1) * 0x9E3779B97F4A7C15ULL;
    x ^= x >> 29U;
    return static_cast<std::byte>((x >> (at % 8 * 8)) & 0xFFU);
  }
  static void fill(std::span<std::byte> bytes, std::uint64_t offset) {
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = at(offset + i);
  }
  /// The first place where `bytes`, which start at `offset`, differ.
  static std::optional<std::uint64_t> mismatch(std::span<const std::byte> bytes, std::uint64_t offset) {
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      if (bytes[i] != at(offset + i)) return offset + i;
    }
    return std::nullopt;
  }
};

/// A source of the pattern that answers in the calling thread.
std::unique_ptr<PageSource> pattern_source(ByteCount size);

/// A source of which the test decides when and how each ticket is answered. Owned by the object; the handle stays with
/// the test.
class HeldSource final : public PageSource {
 public:
  explicit HeldSource(ByteCount size, std::function<void(FetchTicket)> on_fetch) : on_fetch_(std::move(on_fetch)) {
    opened("held", {.size = size});
  }

 private:
  void do_fetch(FetchTicket ticket) noexcept override { on_fetch_(std::move(ticket)); }
  std::function<void(FetchTicket)> on_fetch_;
};

/// Fills a ticket with the pattern and completes it.
void answer(FetchTicket ticket);

}  // namespace uffda::test
