// What comes from a QEMU, or from a file that says it did: a migration stream, the answers of one that is being
// restored, and the head of a stored machine. No parser crashes, asks for more room than there can be, or reports what
// lies outside. The first byte says which; the second in what pieces it comes.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "qemu/image.h"
#include "qemu/replies.h"
#include "qemu/stream.h"

namespace {

using namespace uffda;
using namespace uffda::qemu;

void require(bool holds) {
  if (!holds) std::abort();
}

struct Checked final : StreamSink {
  Result<void> blocks(std::span<const RamBlock> all) override {
    require(lengths.empty() && !all.empty() && all.size() <= kMaxBlocks);
    for (const RamBlock& block : all) lengths.push_back(block.length);
    return {};
  }
  Result<void> page(std::size_t block, ByteOffset offset, std::span<const std::byte> bytes) override {
    require(bytes.size() == kTargetPage.value);
    return zero_page(block, offset);
  }
  Result<void> zero_page(std::size_t block, ByteOffset offset) override {
    require(block < lengths.size() && offset.value + kTargetPage.value <= lengths[block].value);
    return {};
  }
  std::vector<ByteCount> lengths;
};

template <typename Push>
void in_pieces(std::span<const std::byte> bytes, std::size_t piece, const Push& push) {
  while (!bytes.empty()) {
    const auto part = bytes.first(std::min(piece, bytes.size()));
    if (!push(part)) return;
    bytes = bytes.subspan(part.size());
  }
}

void check_stream(std::span<const std::byte> bytes, std::size_t piece) {
  Checked sink;
  StreamParser parser(sink);
  bool good = true;
  in_pieces(bytes, piece, [&](auto part) { return good = parser.push(part).has_value(); });
  if (!good) return;
  const auto state = parser.finish();
  if (!state) return;
  std::vector<RamBlock> blocks;
  for (const ByteCount length : sink.lengths) blocks.push_back({.name = "b", .length = length});
  require(to_start(*state, blocks).size() > state->devices.size());
}

void check_replies(std::span<const std::byte> bytes, std::size_t piece) {
  ReplyParser parser;
  in_pieces(bytes, piece, [&](auto part) {
    parser.push(part);
    for (;;) {
      const auto reply = parser.next();
      if (!reply) return false;
      if (!*reply) return true;
    }
  });
}

void check_head(std::span<const std::byte> bytes) {
  constexpr ByteCount kSize = 64_GiB;
  const auto head = parse_head(bytes, kSize);
  if (!head) return;
  for (const PlacedBlock& placed : head->blocks) require(placed.range().end().value <= kSize.value);
  require(parse_head(*encode_head(*head), kSize) == *head);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const auto bytes = std::as_bytes(std::span(data, size)).subspan(2);
  const std::size_t piece = std::size_t{data[1]} * data[1] + 1;
  if (data[0] % 3 == 0) check_stream(bytes, piece);
  if (data[0] % 3 == 1) check_replies(bytes, piece);
  if (data[0] % 3 == 2) check_head(bytes);
  return 0;
}
