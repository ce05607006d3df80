#include "sources/pack/format.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>

namespace uffda::pack {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the format is little-endian, and so is all that uffda runs on");

constexpr std::string_view kMagic = "uffdpack";
constexpr std::size_t kSectionBytes = 32;
constexpr std::size_t kHeaderChecksumAt = kHeaderBytes - sizeof(Checksum);

template <typename T>
T load(std::span<const std::byte> bytes, std::size_t at) {
  T value;
  std::memcpy(&value, bytes.subspan(at, sizeof value).data(), sizeof value);
  return value;
}

template <typename T>
void store(std::span<std::byte> bytes, std::size_t at, const T& value) {
  std::memcpy(bytes.subspan(at, sizeof value).data(), &value, sizeof value);
}

Section load_section(std::span<const std::byte> bytes, std::size_t at) {
  return {.range = {{load<std::uint64_t>(bytes, at)}, {load<std::uint64_t>(bytes, at + 8)}},
          .checksum = load<Checksum>(bytes, at + 16)};
}

void store_section(std::span<std::byte> bytes, std::size_t at, const Section& section) {
  store(bytes, at, section.range.start.value);
  store(bytes, at + 8, section.range.length.value);
  store(bytes, at + 16, section.checksum);
}

/// Sections follow each other without a gap up to the end of the file, and none is larger than it may be.
bool sections_fit(const Header& header) {
  constexpr ByteCount kMaxIndex{kIndexHeadBytes + kMaxFrames * kEntryBytes};
  const std::pair<ByteRange, ByteCount> sections[] = {{header.index.range, kMaxIndex},
                                                      {header.metadata.range, kMaxMetadata},
                                                      {header.base_name.range, kMaxBaseName},
                                                      {header.working_set.range, kMaxWorkingSet}};
  ByteOffset next = header.index.range.start;
  if (next.value < kHeaderBytes || next.value > header.file_size.value) return false;
  for (const auto& [range, most] : sections) {
    // No sum overflows: `next` is within the file, and a length that is compared with what is left is added to it.
    if (range.start != next || range.length > most || range.length.value > header.file_size.value - next.value) {
      return false;
    }
    next = range.end();
  }
  return next.value == header.file_size.value;
}

}  // namespace

Result<Header> parse_header(std::span<const std::byte> bytes, ByteCount file_size) {
  if (bytes.size() < kHeaderBytes || std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) {
    return fail(Errc::io, "not a pack");
  }
  if (const auto version = load<std::uint32_t>(bytes, 8); version != kVersion) {
    return fail(Errc::unsupported,
                fmt::format("a pack of version {}; this is a reader of version {}", version, kVersion));
  }
  if (checksum_of(bytes.first(kHeaderChecksumAt)) != load<Checksum>(bytes, kHeaderChecksumAt)) {
    return fail(Errc::io, "the header is damaged: its checksum differs");
  }
  const Header header{.file_size = {load<std::uint64_t>(bytes, 16)},
                      .index = load_section(bytes, 32),
                      .metadata = load_section(bytes, 32 + kSectionBytes),
                      .base_name = load_section(bytes, 32 + 2 * kSectionBytes),
                      .working_set = load_section(bytes, 32 + 3 * kSectionBytes)};
  if (header.file_size != file_size) {
    return fail(Errc::io, fmt::format("the file has {} bytes instead of {}: it is {}", file_size.value,
                                      header.file_size.value, file_size < header.file_size ? "truncated" : "longer"));
  }
  // What is reserved is zero, and so is known to be unused by whoever gives it a meaning.
  const auto reserved = bytes.subspan(32 + 4 * kSectionBytes, kHeaderChecksumAt - 32 - 4 * kSectionBytes);
  const bool clear = load<std::uint32_t>(bytes, 12) == 0 && load<std::uint64_t>(bytes, 24) == 0 &&
                     std::ranges::all_of(reserved, [](std::byte byte) { return byte == std::byte{0}; });
  if (!clear || !sections_fit(header)) return fail(Errc::io, "the header contradicts itself");
  return header;
}

std::array<std::byte, kHeaderBytes> encode_header(const Header& header) {
  std::array<std::byte, kHeaderBytes> bytes{};
  std::memcpy(bytes.data(), kMagic.data(), kMagic.size());
  store(bytes, 8, kVersion);
  store(bytes, 16, header.file_size.value);
  store_section(bytes, 32, header.index);
  store_section(bytes, 32 + kSectionBytes, header.metadata);
  store_section(bytes, 32 + 2 * kSectionBytes, header.base_name);
  store_section(bytes, 32 + 3 * kSectionBytes, header.working_set);
  store(bytes, kHeaderChecksumAt, checksum_of(std::span(bytes).first(kHeaderChecksumAt)));
  return bytes;
}

Result<void> check_section(const Section& section, std::span<const std::byte> bytes, std::string_view what) {
  if (bytes.size() == section.range.length.value && checksum_of(bytes) == section.checksum) return {};
  return fail(Errc::io, fmt::format("{} is damaged: its checksum differs", what));
}

Result<Index> Index::parse(std::vector<std::byte> bytes, const Header& header) {
  UFFDA_TRY_VOID(check_section(header.index, bytes, "the index"));
  if (bytes.size() < kIndexHeadBytes) return fail(Errc::io, "the index is too short");
  Index index;
  index.identity_ = header.index.checksum;
  index.size_ = {load<std::uint64_t>(bytes, 0)};
  index.frame_size_ = {load<std::uint32_t>(bytes, 8)};
  index.base_ = load<Checksum>(bytes, 16);
  const auto reserved = load<std::uint32_t>(bytes, 12);
  index.bytes_ = std::move(bytes);
  const std::uint64_t frame_size = index.frame_size_.value;
  if (!std::has_single_bit(frame_size) || index.frame_size_ < kMinFrame || index.frame_size_ > kMaxFrame) {
    return fail(Errc::io, fmt::format("the index is wrong: frames of {} bytes", frame_size));
  }
  const std::uint64_t size = index.size_.value;
  const std::uint64_t frames = size / frame_size + (size % frame_size != 0 ? 1 : 0);
  if (size == 0 || frames > kMaxFrames || index.bytes_.size() != kIndexHeadBytes + frames * kEntryBytes) {
    return fail(Errc::io, fmt::format("the index is wrong: its length does not fit contents of {} bytes", size));
  }
  if (reserved != 0 || index.base_.is_zero() != header.base_name.range.empty()) {
    return fail(Errc::io, "the index contradicts the header");
  }
  UFFDA_TRY_VOID(index.check(header));
  return index;
}

Result<void> Index::check(const Header& header) const {
  std::uint64_t next_place = kHeaderBytes;
  for (std::uint64_t number = 0; number < frames(); ++number) {
    const Frame one = frame(number);
    const char* why = wrong(one, number, next_place);
    // `next_place` stays within the file, so the sum does not overflow.
    if (why == nullptr && one.stored > header.index.range.start.value - next_place) why = "lies beyond the frames";
    if (why != nullptr) return fail(Errc::io, fmt::format("the index is wrong: frame {} {}", number, why));
    next_place += one.stored;
  }
  if (next_place != header.index.range.start.value)
    return fail(Errc::io, "the index is wrong: bytes that no frame has");
  return {};
}

const char* Index::wrong(const Frame& frame, std::uint64_t number, std::uint64_t next_place) const {
  const std::uint64_t length = range(number).length.value;
  if (!frame.is_stored() && frame.stored != 0) return "stores bytes though its kind does not";
  switch (frame.kind) {
    case FrameKind::zero:
      return frame.place == 0 && frame.checksum.is_zero() ? nullptr : "is of zeroes and says more";
    case FrameKind::zstd:
      if (frame.place != next_place) return "does not follow the frame before it";
      return frame.stored > 0 && frame.stored < length ? nullptr : "has an impossible compressed size";
    case FrameKind::raw:
      if (frame.place != next_place) return "does not follow the frame before it";
      return frame.stored == length ? nullptr : "is stored as it is with another size";
    case FrameKind::duplicate: {
      if (frame.place >= number) return "is a duplicate of a later frame";
      const Frame original = this->frame(frame.place);
      if (!original.is_stored()) return "is a duplicate of a frame that is not stored";
      const bool same = original.checksum == frame.checksum && range(frame.place).length.value == length;
      return same ? nullptr : "is a duplicate of a different frame";
    }
    case FrameKind::base:
      return base_.is_zero() ? "is in a base, and there is none" : nullptr;
  }
  return "is of an unknown kind";
}

Frame Index::frame(std::uint64_t number) const {
  const auto entry = std::span(bytes_).subspan(kIndexHeadBytes + number * kEntryBytes, kEntryBytes);
  // The kind's neighbours are reserved; a byte of them that is not zero makes the kind unknown.
  const auto kind = load<std::uint32_t>(entry, 12);
  return {.place = load<std::uint64_t>(entry, 0),
          .stored = load<std::uint32_t>(entry, 8),
          .kind = kind > 0xFF ? FrameKind{0xFF} : static_cast<FrameKind>(kind),
          .checksum = load<Checksum>(entry, 16)};
}

ByteRange Index::range(std::uint64_t number) const {
  const std::uint64_t start = number * frame_size_.value;
  return {{start}, {std::min(frame_size_.value, size_.value - start)}};
}

IndexBuilder::IndexBuilder(ByteCount size, ByteCount frame_size, const Checksum& base) : bytes_(kIndexHeadBytes) {
  const std::uint64_t frames = (size.value + frame_size.value - 1) / frame_size.value;
  bytes_.reserve(kIndexHeadBytes + frames * kEntryBytes);
  store(bytes_, 0, size.value);
  store(bytes_, 8, static_cast<std::uint32_t>(frame_size.value));
  store(bytes_, 16, base);
}

void IndexBuilder::add(const Frame& frame) {
  bytes_.resize(bytes_.size() + kEntryBytes);
  const auto entry = std::span(bytes_).last(kEntryBytes);
  store(entry, 0, frame.place);
  store(entry, 8, frame.stored);
  store(entry, 12, static_cast<std::uint32_t>(frame.kind));
  store(entry, 16, frame.checksum);
}

namespace {

bool valid_key(std::string_view key) {
  return !key.empty() && std::ranges::all_of(key, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
           c == '-';
  });
}

bool valid_text(std::string_view text) {
  return std::ranges::none_of(text, [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; });
}

}  // namespace

Result<std::string> encode_metadata(const Metadata& metadata) {
  std::string text;
  for (const auto& [key, value] : metadata) {
    if (!valid_key(key))
      return fail(Errc::invalid_argument, "metadata: a key is made of letters, digits, '.', '_', '-'");
    if (!valid_text(value))
      return fail(Errc::invalid_argument, "metadata " + key + ": control characters in the value");
    text.append(key).append("=").append(value).append("\n");
  }
  if (text.size() > kMaxMetadata.value) return fail(Errc::invalid_argument, "metadata: more than 1 MiB");
  return text;
}

Result<Metadata> parse_metadata(std::string_view text) {
  Metadata metadata;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    const std::string_view key = line.substr(0, line.find('='));
    const bool whole = line.size() < text.size() && key.size() < line.size();
    const bool in_order = metadata.empty() || metadata.rbegin()->first < key;
    if (!whole || !in_order || !valid_key(key) || !valid_text(line.substr(key.size() + 1))) {
      return fail(Errc::io, "the metadata is not in the form KEY=VALUE");
    }
    metadata.emplace_hint(metadata.end(), key, line.substr(key.size() + 1));
    text.remove_prefix(line.size() + 1);
  }
  return metadata;
}

bool valid_base_name(std::string_view name) {
  return !name.empty() && name.size() <= kMaxBaseName.value && name != "." && name != ".." && valid_text(name) &&
         name.find('/') == std::string_view::npos;
}

}  // namespace uffda::pack
