#include "sources/pack/chain.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace uffda::pack {
namespace {

std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// The part of `bytes`, which were read from `start` on, that is a section; checked.
Result<std::span<const std::byte>> part(const Section& section, std::span<const std::byte> bytes, ByteOffset start,
                                        std::string_view what) {
  const auto found = bytes.subspan((section.range.start - start).value, section.range.length.value);
  UFFDA_TRY_VOID(check_section(section, found, what));
  return found;
}

Result<void> read_tables(Pack& pack) {
  BlockingReader reader(*pack.source, kOpenTimeout);
  const ByteCount size = pack.source->properties().size;
  std::array<std::byte, kHeaderBytes> head{};
  if (size.value < head.size()) return fail(Errc::io, "not a pack: too short");
  UFFDA_TRY_VOID(reader.read({0}, head));
  pack.header = UFFDA_TRY(parse_header(head, size));

  // Index, metadata and name lie side by side: one read.
  const ByteOffset start = pack.header.index.range.start;
  std::vector<std::byte> tables((pack.header.base_name.range.end() - start).value);
  UFFDA_TRY_VOID(reader.read(start, tables));
  const auto metadata = UFFDA_TRY(part(pack.header.metadata, tables, start, "the metadata"));
  pack.metadata = UFFDA_TRY(parse_metadata(as_text(metadata)));
  pack.base_name = as_text(UFFDA_TRY(part(pack.header.base_name, tables, start, "the name of the base")));
  if (!pack.base_name.empty() && !valid_base_name(pack.base_name)) {
    return fail(Errc::io, "the name of the base is not the name of a file");
  }
  tables.resize(pack.header.index.range.length.value);
  pack.index = UFFDA_TRY(Index::parse(std::move(tables), pack.header));
  return {};
}

/// Everything that `pack` takes from `base` is there, and is what it was.
Result<void> check_base(const Pack& pack, const Pack& base) {
  if (base.index.identity() != pack.index.base()) {
    return fail(Errc::io, fmt::format("{}: {} is not the base that it was made from: index checksum {} instead of {}",
                                      pack.name, base.name, base.index.identity().text(), pack.index.base().text()));
  }
  const auto wrong = [&](std::uint64_t number) {
    return fail(Errc::io, fmt::format("{}: frame {} is not in the base {}", pack.name, number, base.name));
  };
  if (pack.index.frame_size() != base.index.frame_size()) return wrong(0);
  for (std::uint64_t number = 0; number < pack.index.frames(); ++number) {
    const Frame frame = pack.index.frame(number);
    if (frame.kind != FrameKind::base) continue;
    if (frame.place >= base.index.frames()) return wrong(number);
    const Frame other = base.index.frame(frame.place);
    const bool same = other.kind != FrameKind::zero && other.checksum == frame.checksum &&
                      base.index.range(frame.place).length == pack.index.range(number).length;
    if (!same) return wrong(number);
  }
  return {};
}

}  // namespace

Result<Pack> open_pack(std::unique_ptr<PageSource> source) {
  Pack pack{.source = std::move(source), .name = {}, .header = {}, .index = {}, .metadata = {}, .base_name = {}};
  pack.name = pack.source->name();
  if (auto read = read_tables(pack); !read) return std::unexpected(read.error().within(pack.name));
  return pack;
}

Result<std::vector<std::byte>> read_working_set(const Pack& pack) {
  const Section& section = pack.header.working_set;
  std::vector<std::byte> bytes(section.range.length.value);
  BlockingReader reader(*pack.source, kOpenTimeout);
  UFFDA_TRY_VOID(reader.read(section.range.start, bytes));
  UFFDA_TRY_VOID(check_section(section, bytes, pack.name + ": the working set"));
  return bytes;
}

Result<Chain> Chain::open(std::unique_ptr<PageSource> top, const OpenBase& open_base) {
  Chain chain;
  chain.packs_.push_back(UFFDA_TRY(open_pack(std::move(top))));
  while (!chain.packs_.back().base_name.empty()) {
    const Pack& pack = chain.packs_.back();
    if (chain.packs_.size() == kMaxDepth) {
      return fail(Errc::out_of_range,
                  fmt::format("{}: more than {} packs build on each other", chain.packs_.front().name, kMaxDepth));
    }
    const auto is_base = [&](const Pack& one) { return one.index.identity() == pack.index.base(); };
    if (std::ranges::any_of(chain.packs_, is_base)) return fail(Errc::io, pack.name + ": builds on itself");
    Pack base = UFFDA_TRY(open_pack(UFFDA_TRY(open_base(pack, chain.packs_.size() - 1))));
    UFFDA_TRY_VOID(check_base(pack, base));
    chain.packs_.push_back(std::move(base));
  }
  return chain;
}

Place Chain::locate(std::uint64_t number) const {
  for (std::size_t depth = 0;; ++depth) {
    const Index& index = packs_.at(depth).index;
    Frame frame = index.frame(number);
    if (frame.kind == FrameKind::duplicate) frame = index.frame(frame.place);
    if (frame.kind != FrameKind::base) return {.pack = depth, .frame = frame};
    number = frame.place;
  }
}

void Chain::close_sources() {
  for (Pack& pack : packs_) pack.source.reset();
}

Result<void> unpack_frame(const Frame& frame, std::span<const std::byte> stored, std::span<std::byte> contents,
                          Decompressor& decompressor) noexcept {
  if (frame.kind == FrameKind::raw) {
    std::memcpy(contents.data(), stored.data(), contents.size());
  } else if (auto unpacked = decompressor.decompress(stored, contents); !unpacked) {
    return std::unexpected(unpacked.error().within("is damaged"));
  }
  if (checksum_of(contents) == frame.checksum) return {};
  return fail(Errc::io, "is damaged: its checksum differs");
}

Error frame_error(const Chain& chain, std::uint64_t number, const Error& why) {
  const ByteRange range = chain.index().range(number);
  const Place place = chain.locate(number);
  std::string where = fmt::format("{}: frame {}, bytes {} to {}", chain.packs().front().name, number, range.start.value,
                                  range.end().value);
  if (place.pack != 0) where += fmt::format(", which is in {}", chain.packs().at(place.pack).name);
  return why.within(where);
}

FrameReader::FrameReader(const Chain& chain, Decompressor decompressor)
    : chain_(&chain), decompressor_(std::move(decompressor)), stored_(chain.index().frame_size().value) {
  for (const Pack& pack : chain.packs()) readers_.emplace_back(*pack.source, kOpenTimeout);
}

Result<FrameReader> FrameReader::create(const Chain& chain) {
  return FrameReader(chain, UFFDA_TRY(Decompressor::create()));
}

Result<void> FrameReader::read_stored(const Place& place, std::span<std::byte> contents) {
  const auto stored = std::span(stored_).first(place.frame.stored);
  UFFDA_TRY_VOID(readers_.at(place.pack).read({place.frame.place}, stored));
  return unpack_frame(place.frame, stored, contents, decompressor_);
}

Result<void> FrameReader::read(std::uint64_t number, std::span<std::byte> contents) {
  const Place place = chain_->locate(number);
  if (place.frame.kind == FrameKind::zero) {
    std::ranges::fill(contents, std::byte{0});
    return {};
  }
  if (auto read = read_stored(place, contents); !read) {
    return std::unexpected(frame_error(*chain_, number, read.error()));
  }
  return {};
}

}  // namespace uffda::pack
