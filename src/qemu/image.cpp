#include "qemu/image.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <string_view>

namespace uffda::qemu {
namespace {

constexpr std::string_view kImageMagic = "uffdqemu";
constexpr std::uint32_t kImageVersion = 1;

template <typename Number>
void put_little(std::vector<std::byte>& out, Number value) {
  const auto bytes = std::as_bytes(std::span(&value, 1));
  out.insert(out.end(), bytes.begin(), bytes.end());
}

void put_text_of(std::vector<std::byte>& out, std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  out.insert(out.end(), bytes.begin(), bytes.end());
}

/// Takes fields from the front. What is not there reads as zero, and `good` says so.
class Fields {
 public:
  explicit Fields(std::span<const std::byte> bytes) : bytes_(bytes) {}
  template <typename Number>
  Number number() {
    Number value{};
    if (const auto bytes = take(sizeof value); !bytes.empty()) std::memcpy(&value, bytes.data(), sizeof value);
    return value;
  }
  std::string text(std::size_t length) {
    const auto bytes = take(length);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  [[nodiscard]] bool good() const { return good_; }

 private:
  std::span<const std::byte> take(std::size_t length) {
    good_ = good_ && length <= bytes_.size();
    if (!good_) return {};
    const auto bytes = bytes_.first(length);
    bytes_ = bytes_.subspan(length);
    return bytes;
  }
  std::span<const std::byte> bytes_;
  bool good_ = true;
};

Error no_image(std::string_view what) {
  return Error(Errc::invalid_argument, fmt::format("this is no machine that `uffda qemu save` stored: {}", what));
}

bool within(ByteRange range, ByteCount size) {
  return range.start.value <= size.value && range.length.value <= size.value - range.start.value;
}

/// What is wrong with a block; null: nothing.
const char* wrong_block(const PlacedBlock& placed, ByteOffset from, ByteCount size) {
  const RamBlock& block = placed.block;
  const std::uint64_t page = block.page_size.value;
  if (block.name.empty()) return "a block has no name";
  if (!std::has_single_bit(page) || page < kTargetPage.value || page > kLargestPage.value)
    return "the size of a block's pages";
  if (block.length.value == 0 || block.length.value % page != 0) return "the length of a block";
  if (placed.place.value % kBlockAlignment.value != 0 || placed.place < from || !within(placed.range(), size))
    return "the place of a block";
  return nullptr;
}

}  // namespace

std::vector<PlacedBlock> place_blocks(std::span<const RamBlock> blocks) {
  std::vector<PlacedBlock> placed;
  std::uint64_t at = kImageHead.value;
  for (const RamBlock& block : blocks) {
    at = align_up(at, std::max(kBlockAlignment, block.page_size).value);
    placed.push_back({.block = block, .place = {at}});
    at += block.length.value;
  }
  return placed;
}

ByteOffset end_of(std::span<const PlacedBlock> blocks) {
  return blocks.empty() ? ByteOffset{kImageHead.value} : blocks.back().range().end();
}

Result<std::vector<std::byte>> encode_head(const ImageHead& head) {
  std::vector<std::byte> out;
  put_text_of(out, kImageMagic);
  put_little(out, kImageVersion);
  put_little(out, static_cast<std::uint32_t>(head.blocks.size()));
  put_little(out, head.devices.start.value);
  put_little(out, head.devices.length.value);
  put_little(out, static_cast<std::uint32_t>(head.machine.size()));
  put_text_of(out, head.machine);
  for (const PlacedBlock& placed : head.blocks) {
    put_little(out, placed.place.value);
    put_little(out, placed.block.length.value);
    put_little(out, placed.block.page_size.value);
    put_little(out, static_cast<std::uint32_t>(placed.block.name.size()));
    put_text_of(out, placed.block.name);
  }
  if (out.size() > kImageHead.value) return fail(Errc::unsupported, "the machine has too many blocks of RAM");
  out.resize(kImageHead.value);
  return out;
}

Result<ImageHead> parse_head(std::span<const std::byte> bytes, ByteCount size) {
  Fields in(bytes);
  if (in.text(kImageMagic.size()) != kImageMagic) return std::unexpected(no_image("it does not begin like one"));
  if (const auto version = in.number<std::uint32_t>(); version != kImageVersion)
    return std::unexpected(no_image(fmt::format("its version is {}, and this uffda reads {}", version, kImageVersion)));
  const auto count = in.number<std::uint32_t>();
  ImageHead head;
  head.devices.start.value = in.number<std::uint64_t>();
  head.devices.length.value = in.number<std::uint64_t>();
  head.machine = in.text(in.number<std::uint32_t>());
  if (!in.good() || count == 0 || count > kMaxBlocks) return std::unexpected(no_image("its head is damaged"));
  ByteOffset from{kImageHead.value};
  for (std::uint32_t i = 0; i < count; ++i) {
    PlacedBlock placed;
    placed.place.value = in.number<std::uint64_t>();
    placed.block.length.value = in.number<std::uint64_t>();
    placed.block.page_size.value = in.number<std::uint64_t>();
    placed.block.name = in.text(std::min<std::uint32_t>(in.number<std::uint32_t>(), 255));
    const char* wrong = in.good() ? wrong_block(placed, from, size) : "its head is damaged";
    if (wrong != nullptr) return std::unexpected(no_image(wrong));
    from = placed.range().end();
    head.blocks.push_back(std::move(placed));
  }
  if (head.devices.start < from || !within(head.devices, size) || head.devices.length > kMaxDevices)
    return std::unexpected(no_image("the state of its devices lies outside"));
  return head;
}

}  // namespace uffda::qemu
